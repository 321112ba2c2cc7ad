"""CL²R on the embedded data: the stream of configs/glyphs.py without replacements.

    python launch/main.py --config=configs/cl2r_glyphs.py                   # from scratch
    python launch/main.py --config=configs/cl2r_glyphs.py:start=external

`start=external` begins at the external model that configs/glyphs.py begins at, and has no other:
what differs from that run is the replacements alone.
"""

from iamcl2r_jax import config
from iamcl2r_jax.config import args

# Tasks that start from an external model, and the classes of its pre-training.
_STARTS = {"scratch": ((), ()), "external": ((0,), (100,))}


def get_config(arg=None):
    tasks, classes = args.parse(arg, {"start": _STARTS})["start"]
    c = config.default()
    c.name = "cl2r_glyphs-external" if tasks else "cl2r_glyphs"
    c.replacements.tasks, c.replacements.classes = tasks, classes
    return c
