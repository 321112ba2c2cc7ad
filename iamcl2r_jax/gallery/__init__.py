"""A live gallery: images are embedded once and searched by every later compatible model.

`Gallery` is the entry point. SQLite holds everything and is the truth; search runs in a
`VectorStore`, by default in memory. An upgrade of the model is a state machine whose transitions
are transactions, so that a process may be killed at any time.
"""

from iamcl2r_jax.gallery.errors import OutdatedError, Refused
from iamcl2r_jax.gallery.gallery import Gallery
from iamcl2r_jax.gallery.records import Hit, Item, Model, ModelInfo, NewItem, Upgrade, Verdict

__all__ = [
    "Gallery",
    "Hit",
    "Item",
    "Model",
    "ModelInfo",
    "NewItem",
    "OutdatedError",
    "Refused",
    "Upgrade",
    "Verdict",
]
