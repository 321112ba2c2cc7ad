"""External models for the embedded default: Greek, Cyrillic and symbols.

    python launch/pretrain.py --config=configs/pretrain_glyphs.py --config.classes=80

configs/glyphs.py trains the three that it needs by itself; this is for making others.
"""

from iamcl2r_jax import config


def get_config():
    return config.default_pretrain()
