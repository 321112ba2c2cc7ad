"""External models of the CIFAR100R/10 protocol: the first classes of ImageNet at 32x32 pixels.

    python launch/pretrain.py --config=configs/pretrain_imagenet32.py --config.classes=300

configs/cifar100r.py trains the three that it needs (100, 300 and 600 classes) by itself, by this
recipe; this is for making others. How the paper trained its models is not known to us: see
iamcl2r_jax/config/recipes.py for what we chose. Not yet run at full size, so there is no expected
figure.
"""

from iamcl2r_jax.config import recipes


def get_config():
    return recipes.pretrain_imagenet32()
