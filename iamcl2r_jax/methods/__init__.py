"""What each compared system trains with.

A method is a loss, a function of `LossInputs` and of its own keyword options, together with the
head, the old model, the memory and the data that it trains with. The options' defaults are the
source's. Backbone, stream, memory size, schedule and augmentation are the protocol's, the same for
all; a docstring says where that departs from the source. Adding a method takes such a function with
its `Method`, in one of the files here or a new one, and a line of `METHODS`.

At a replacement the old model is the external one, for every method; its head knows the external
classes and none of the stream's. With `replacements.replaced_weight` = α > 0 the replaced model is
an old model too, and the terms that read one are averaged over both, see `training.step`.
"""

from iamcl2r_jax.methods import distillation, embedding, replay, stationary
from iamcl2r_jax.methods.inputs import Classes, Loss, LossInputs, Method
from iamcl2r_jax.system.errors import InputError

__all__ = ["METHODS", "Classes", "Loss", "LossInputs", "Method", "get"]

METHODS: dict[str, Method] = {
    "hoc": stationary.HOC,
    "simplex": stationary.SIMPLEX,
    "simplex_fd": stationary.SIMPLEX_FD,
    "er": replay.ER,
    "bct_er": replay.BCT_ER,
    "cvs": embedding.CVS,
    "lwf": distillation.LWF,
    "fan": distillation.FAN,
    "lucir": distillation.LUCIR,
    "lce_er": embedding.LCE_ER,
    "cores": stationary.CORES,
}


def get(name: str) -> Method:
    """The method called `name`; `InputError` if there is none."""
    if name not in METHODS:
        raise InputError(f"method={name!r} is unknown; there are {', '.join(METHODS)}")
    return METHODS[name]
