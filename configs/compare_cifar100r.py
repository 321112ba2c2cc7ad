"""Every method under the paper's CIFAR100R/10 protocol, 7 or 31 tasks, with three seeds.

    python launch/compare.py --config=configs/compare_cifar100r.py
    python launch/compare.py --config=configs/compare_cifar100r.py:tasks=31

All seeds start from the same external models, as in the paper, so that the deviation is of what
else is random; --config.vary_external_models=True makes new ones for each seed.

Not yet run at full size. The paper's figures stand in configs/cifar100r.py. Retrieval of single
images, 50,000 queries in 10,000 for each pair of models, is left out by
--config.base.metrics="('identification',)".
"""

from iamcl2r_jax import methods
from iamcl2r_jax.comparisons import cells
from iamcl2r_jax.config import args, recipes


def get_config(arg=None):
    base = recipes.cifar100r(*args.parse(arg, {"tasks": recipes.TASKS})["tasks"])
    variants = {name: {"method": name} for name in methods.METHODS}
    return cells.comparison(f"compare_{base.name}", base, variants)
