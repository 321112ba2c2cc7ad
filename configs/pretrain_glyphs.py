"""External models for the embedded default: Greek, Cyrillic and symbols.

    python launch/pretrain.py --config=configs/pretrain_glyphs.py --config.classes=80
    python launch/pretrain.py --config=configs/pretrain_glyphs.py:backbone=senet18

configs/glyphs.py trains the three that it needs by itself; this is for making others, also of other
architectures: a replacement may change the architecture.
"""

from iamcl2r_jax import config
from iamcl2r_jax.config import args


def get_config(arg=None):
    c = config.default_pretrain()
    choices = {"backbone": args.Free("NAME", default=c.model.backbone)}
    config.choose_backbone(c.model, args.parse(arg, choices)["backbone"])
    return c
