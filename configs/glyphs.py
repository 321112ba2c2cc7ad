"""The embedded default: a stream of 52 letters, with external models of other scripts.

Mirrors the paper's CIFAR100R/10 protocol with 7 tasks at a size for two CPU cores (README).

    python launch/main.py --config=configs/glyphs.py
"""

from iamcl2r_jax import config


def get_config():
    return config.default()
