"""The embedded default: a stream of 52 letters, with external models of other scripts.

Mirrors the paper's CIFAR100R/10 protocol with 7 tasks at a size for two CPU cores (README).

    python launch/main.py --config=configs/glyphs.py
    python launch/main.py --config=configs/glyphs.py:backbone=senet18    # also of external models
"""

from iamcl2r_jax import config
from iamcl2r_jax.config import args


def get_config(arg=None):
    c = config.default()
    choices = {"backbone": args.Free("NAME", default=c.model.backbone)}
    backbone = args.parse(arg, choices)["backbone"]
    if backbone != c.model.backbone:
        c.name = f"glyphs-{backbone}"
    for part in (c, c.replacements.recipe):
        config.choose_backbone(part.model, backbone)
    return c
