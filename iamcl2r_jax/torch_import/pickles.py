"""Pickles as data: no name in them is looked up, and nothing of theirs is called.

A pickle is a program that may name any function and have it called. The unpickler below gives it
stubs in place of all it names; calling one makes an object that keeps its arguments and does
nothing. So there is nothing that a hostile file could run, and classes that are not installed do no
harm.
"""

import dataclasses
import io
import pickle
import struct
from typing import Any, ClassVar


class Stub:
    """An object of a class that a pickle names.

    Attributes:
      name: of the class or function, such as "collections.OrderedDict"; one subclass for each.
      args: what it was called with.
      items: what was put into it under names that are strings.
    """

    name = "?"

    def __new__(cls, *args: Any, **kwargs: Any) -> "Stub":
        self = super().__new__(cls)
        self.args, self.items = args, _Dict()
        return self

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value

    def __setstate__(self, state: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        """Does nothing; the object may be a list of some class, a deque, say."""

    def extend(self, items: list) -> None:
        """Does nothing, as `append`."""


@dataclasses.dataclass(frozen=True, eq=False)
class Persistent:
    """A reference out of the pickle; `torch.save` refers to storages in this way."""

    reference: Any


class _Dict(dict):
    """A dict of the entries whose keys are strings: no other key is hashed, or of use here."""

    __slots__ = ()

    def __setitem__(self, key: Any, value: Any) -> None:
        if isinstance(key, str):
            super().__setitem__(key, value)


class _Unpickler(pickle._Unpickler):  # in Python, so that single opcodes can be replaced
    dispatch: ClassVar = dict(pickle._Unpickler.dispatch)

    def __init__(self, data: bytes):
        super().__init__(io.BytesIO(data), encoding="latin1")
        self._stubs: dict[str, type[Stub]] = {}

    def find_class(self, module: str, name: str) -> type[Stub]:
        full = f"{module}.{name}"
        if full not in self._stubs:
            self._stubs[full] = type("Stub", (Stub,), {"name": full})
        return self._stubs[full]

    def persistent_load(self, pid: Any) -> Persistent:
        return Persistent(pid)

    def get_extension(self, code: int) -> None:
        self.append(self.find_class("extension", str(code)))

    def _empty_dict(self) -> None:
        self.append(_Dict())

    def _dict(self) -> None:
        items, made = self.pop_mark(), _Dict()
        for key, value in zip(items[::2], items[1::2], strict=True):
            made[key] = value
        self.append(made)

    def _empty_set(self) -> None:
        self.append([])

    def _add_items(self) -> None:
        self.pop_mark()

    def _frozen_set(self) -> None:
        self.append(self.pop_mark())

    def _bytearray(self) -> None:  # Python's takes the memory that the file says
        (size,) = struct.unpack("<Q", self.read(8))
        self.append(self.read(size))

    def _build(self) -> None:  # Python's sets attributes of any object
        self.stack.pop()

    dispatch |= {
        pickle.EMPTY_DICT[0]: _empty_dict,
        pickle.DICT[0]: _dict,
        pickle.EMPTY_SET[0]: _empty_set,
        pickle.ADDITEMS[0]: _add_items,
        pickle.FROZENSET[0]: _frozen_set,
        pickle.BYTEARRAY8[0]: _bytearray,
        pickle.BUILD[0]: _build,
    }


def read_pickle(data: bytes) -> Any:
    """What a pickle of protocol 0 to 5 describes, with `Stub` in place of all classes.

    Returns:
      Constants, tuples, lists, dicts, `Persistent`, and `Stub` objects and classes. Dicts keep only
      the keys that are strings; sets are lists.

    Raises:
      ValueError: if it is not a pickle, or one that does what only real objects could.
    """
    try:
        return _Unpickler(data).load()
    except Exception as error:  # a broken pickle ends in any kind
        raise ValueError(f"its pickle is broken: {type(error).__name__} {error}") from None
