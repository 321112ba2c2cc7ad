"""Every method under the protocol of the embedded default, with three seeds.

A method that reads an old model stands twice, with the external model as teacher at a replacement
and, as METHOD_both, with the replaced model beside it (`replacements.replaced_weight` = 1/2).

    python launch/compare.py --config=configs/compare_glyphs.py

A cell trains for 2,208 steps. Each seed also has external models of its own, three with the simplex
(those of seed 0 come with the package) and three with a learnable head, 7,488 steps for three; what
a method reaches depends on them more than on anything else that is random. A part, for instance on
another machine, and then the table of all:

    python launch/compare.py --config=configs/compare_glyphs.py --only=er,bct_er-seed0
    python launch/compare.py --config=configs/compare_glyphs.py --only=
"""

from iamcl2r_jax import config, methods
from iamcl2r_jax.comparisons import cells


def get_config():
    variants = {}
    for name in methods.METHODS:
        variants[name] = {"method": name}
        if methods.get(name).uses_old_model:
            variants[f"{name}_both"] = {"method": name, "replacements.replaced_weight": 0.5}
    c = cells.comparison("compare_glyphs", config.default(), variants)
    c.vary_external_models = True
    return c
