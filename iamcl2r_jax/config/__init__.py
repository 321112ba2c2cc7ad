"""The configuration of a run: its fields, what they may hold, and the files it is read from.

A file in `configs/` starts from `default()` or `default_pretrain()` and changes fields; `validate`
and `validate_pretrain` then refuse what cannot work, in one line, before any work starts. A new
field is a line in `fields` and one in `bounds`.
"""

from iamcl2r_jax.config.checks import check_stream, validate, validate_pretrain
from iamcl2r_jax.config.fields import (
    SHIPPED,
    WITHOUT_EFFECT,
    choose_backbone,
    default,
    default_pretrain,
    evaluation,
    makes_external_models,
)
from iamcl2r_jax.config.stored import differences, load, recorded, without_unused_options

__all__ = [
    "SHIPPED",
    "WITHOUT_EFFECT",
    "check_stream",
    "choose_backbone",
    "default",
    "default_pretrain",
    "differences",
    "evaluation",
    "load",
    "makes_external_models",
    "recorded",
    "validate",
    "validate_pretrain",
    "without_unused_options",
]
