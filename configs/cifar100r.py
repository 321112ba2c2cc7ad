"""The paper's protocol on CIFAR100R/10: Biondi et al., CVPR 2024, 7 and 31 tasks.

    python launch/main.py --config=configs/cifar100r.py             # 7 tasks
    python launch/main.py --config=configs/cifar100r.py:tasks=31    # 31 tasks
    python launch/main.py --config=configs/cifar100r.py:dtype=bfloat16    # networks compute in it

Published for d-Simplex-HOC, AC / AA on CIFAR-10 (identification):
              authors' notebooks    authors' page
  7 tasks         0.95 / 68.90       0.95 / 68.13
  31 tasks        0.65 / 68.07       0.65 / 67.40
The notebooks train on all 500 images of a class, where the protocol says the first 300. Not yet
run here at full size: whether we reach these figures, and in what time, is not known.

TFDS downloads CIFAR and ImageNet at 32x32; where that fails, the error says where to put the file.
Or name external models that are there already: --config.replacements.checkpoints.
"""

from iamcl2r_jax.config import args, recipes


def get_config(arg=None):
    dtypes = {name: name for name in ("float32", "bfloat16")}
    options = args.parse(arg, {"tasks": recipes.TASKS, "dtype": dtypes})
    return recipes.cifar100r(*options["tasks"], dtype=options["dtype"])
