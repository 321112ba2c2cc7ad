"""What HOC's settings do under the protocol of the embedded default, one at a time, three seeds.

    python launch/compare.py --config=configs/ablation_glyphs.py

Settings other than these: --config.groups.mu.settings="(1,10,100)". The base is run once and stands
in every table. Each seed, and of it each K, needs three external models of its own.
"""

from iamcl2r_jax import config
from iamcl2r_jax.comparisons import cells


def get_config():
    c = cells.comparison("ablation_glyphs", config.default())
    c.vary_external_models = True  # as in configs/compare_glyphs.py; the base is its hoc, run again
    cells.ablate(c, "lambda", "method_options.hoc.ce_weight", (0.01, 0.1, 0.5))
    cells.ablate(c, "mu", "method_options.hoc.mu", (3.0, 10.0, 30.0))
    cells.ablate(c, "memory_per_class", "memory_per_class", (5, 20, 80))
    # 100 classes of the stream and 600 external ones need 700.
    cells.ablate(c, "num_slots", "num_slots", (768, 1024, 2048))
    cells.ablate(c, "replaced_weight", "replacements.replaced_weight", (0.0, 0.25, 0.5, 0.75, 1.0))
    cells.ablate(c, "exclude_same_class", "method_options.hoc.exclude_same_class", (False, True))
    return c
