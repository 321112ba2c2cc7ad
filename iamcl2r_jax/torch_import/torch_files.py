"""Reads the tensors of a PyTorch checkpoint without PyTorch, and runs nothing that is in the file.

A `torch.save` file is a zip of raw storages and a pickle that says which tensor is which part of
which storage. A pickle is a program, which may name any function and have it called. Here it is
followed as data: no name in it is looked up, no class is made and nothing is called, so there is
nothing that a hostile file could run, and classes that are not installed do no harm. What the
network's tensors do not need (optimiser, arguments, data sets) is followed and left alone.
"""

import dataclasses
import io
import pickletools
import zipfile
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np

from iamcl2r_jax.system.errors import InputError

# The entries of a checkpoint that may hold the network; the first is the official code's.
_NETWORK_KEYS = ("net", "state_dict", "model")

_STORAGE_DTYPES = {
    "torch.FloatStorage": np.float32,
    "torch.DoubleStorage": np.float64,
    "torch.HalfStorage": np.float16,
    "torch.BFloat16Storage": jnp.bfloat16,
    "torch.LongStorage": np.int64,
    "torch.IntStorage": np.int32,
    "torch.ShortStorage": np.int16,
    "torch.CharStorage": np.int8,
    "torch.ByteStorage": np.uint8,
    "torch.BoolStorage": np.bool_,
}
# The first eight bytes say how long the JSON header is, which starts with a brace.
_SAFETENSORS_BRACE = 8
_BEFORE_ZIP = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the number that older files start with


def read_state_dict(path: str) -> dict[str, np.ndarray]:
    """The tensors of the network in a checkpoint, by name.

    Args:
      path: a zip-format `torch.save` file, of a state dict or of a dict that holds one as `net`,
        `state_dict` or `model`; or a `.safetensors` file.

    Returns:
      Arrays in the file's own dtypes and in its order; they may be views and are read-only.

    Raises:
      InputError: if there is no such file, it is of another format, damaged, or holds
        something else than plain tensors where they are needed.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(len(_BEFORE_ZIP))
    except OSError as error:
        raise InputError(f"checkpoint {path}: {error.strerror}") from None
    if head[:4] == b"PK\x03\x04":
        return _read_zip(path)
    if head[_SAFETENSORS_BRACE : _SAFETENSORS_BRACE + 1] == b"{":
        return _read_safetensors(path)
    if head == _BEFORE_ZIP or _is_tar(path):
        raise InputError(
            f"checkpoint {path} is in the format of PyTorch before 1.6; load and save it once with "
            "a newer PyTorch"
        )
    raise InputError(
        f"checkpoint {path} is neither a zip-format torch.save file nor a .safetensors file"
    )


def _is_tar(path: str) -> bool:
    with open(path, "rb") as file:
        file.seek(257)
        return file.read(5) == b"ustar"


def _read_safetensors(path: str) -> dict[str, np.ndarray]:
    try:
        import safetensors.numpy
    except ImportError:
        raise InputError(
            f"checkpoint {path}: reading .safetensors files needs the package safetensors; "
            'pip install "iamcl2r_jax[torch]"'
        ) from None
    try:
        return safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, AttributeError, KeyError) as error:
        # The last two are what dtypes that NumPy does not have end in.
        raise InputError(f"checkpoint {path} cannot be read: {shown(error)}") from None


def _read_zip(path: str) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            return _Archive(path, archive).state_dict()
    except InputError:
        raise
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, ValueError) as error:
        raise InputError(f"checkpoint {path} is damaged or cut short: {shown(error)}") from None


class _Archive:
    """An open zip of `torch.save`."""

    def __init__(self, path: str, archive: zipfile.ZipFile):
        self._path, self._archive = path, archive
        self._entries = {entry.filename: entry for entry in archive.infolist()}
        roots = [name.removesuffix("data.pkl") for name in self._entries if _is_pickle(name)]
        if len(roots) != 1:
            raise InputError(f"checkpoint {path} is a zip file, but not of torch.save")
        self._root = roots[0]
        self._storages: dict[str, np.ndarray] = {}

    def state_dict(self) -> dict[str, np.ndarray]:
        if self._root + "byteorder" in self._entries and self._read("byteorder") != b"little":
            raise InputError(f"checkpoint {self._path} was written on a big-endian machine")
        try:
            content = read_pickle(self._read("data.pkl"))
        except ValueError as error:
            raise InputError(f"checkpoint {self._path} is damaged: {error}") from None
        network = _as_dict(content)
        for key in _NETWORK_KEYS:
            if network is not None and _as_dict(network.get(key)) is not None:
                network = _as_dict(network[key])
                break
        if not network:
            raise InputError(
                f"checkpoint {self._path} holds no state dict but {_describe(content)}; save it as "
                "torch.save({'net': network.state_dict()}, ...)"
            )
        return {name: self._tensor(name, value) for name, value in network.items()}

    def _read(self, name: str) -> bytes:
        entry = self._entries.get(self._root + name)
        if entry is None:
            raise InputError(f"checkpoint {self._path} is damaged: {shown(name)} is missing in it")
        # torch.save never compresses, so that no entry can be larger than the file.
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise InputError(
                f"checkpoint {self._path}: {shown(name)} is compressed or encrypted, which "
                "torch.save never does"
            )
        return self._archive.read(entry)

    def _tensor(self, name: str, value: Any) -> np.ndarray:
        name = shown(name)
        if _is_call(value, "torch._utils._rebuild_parameter"):
            value = value.args[0] if value.args else None
        if not _is_call(value, "torch._utils._rebuild_tensor_v2"):
            raise InputError(
                f"checkpoint {self._path}: {name} is not a plain tensor but {_describe(value)}"
            )
        match value.args:
            case (Persistent(("storage", Global(kind), str(key), _, int(numel))), *place):
                pass
            case _:
                raise InputError(f"checkpoint {self._path}: {name} names no storage")
        if kind not in _STORAGE_DTYPES:
            raise InputError(f"checkpoint {self._path}: {name} is kept in a {shown(kind)}")
        match place:
            case (int(offset), tuple(shape), tuple(stride), *_) if _is_inside(
                offset, shape, stride, numel
            ):
                pass
            case _:
                raise InputError(
                    f"checkpoint {self._path} is damaged: {name} does not lie inside its storage "
                    f"of {numel} elements"
                )
        storage = self._storage(key, np.dtype(_STORAGE_DTYPES[kind]), numel)
        # The bounds were checked above: this may not reach past the storage.
        return np.lib.stride_tricks.as_strided(
            storage[offset:], shape, [step * storage.itemsize for step in stride], writeable=False
        )

    def _storage(self, key: str, dtype: np.dtype, numel: int) -> np.ndarray:
        if key not in self._storages:
            self._storages[key] = np.frombuffer(self._read(f"data/{key}"), np.uint8)
        data = self._storages[key]
        needed = numel * dtype.itemsize
        if len(data) != needed:
            raise InputError(
                f"checkpoint {self._path} is damaged: data/{shown(key)} has {len(data)} bytes, "
                f"{numel} elements of {dtype} need {needed}"
            )
        return data.view(dtype)


def _is_pickle(name: str) -> bool:
    root, slash, last = name.rpartition("/")
    return last == "data.pkl" and bool(slash) and "/" not in root


def _is_inside(offset: int, shape: tuple, stride: tuple, numel: int) -> bool:
    """Whether a view of a storage stays inside it and shows no element twice."""
    numbers = (offset, *shape, *stride)
    if not all(type(number) is int and 0 <= number <= numel for number in numbers):
        return False
    if len(shape) != len(stride) or len(shape) > 8:
        return False
    size, last = 1, offset
    for length, step in zip(shape, stride, strict=True):
        size *= length
        last += (length - 1) * step
    # Repeated elements would let a small file ask for any amount of memory.
    return size <= numel and (size == 0 or last < numel)


# --- The pickle as data ---


@dataclasses.dataclass(frozen=True, eq=False)
class Global:
    """A name that the pickle refers to, such as "collections.OrderedDict"; it is not looked up."""

    name: str


@dataclasses.dataclass(frozen=True, eq=False)
class Persistent:
    """A reference out of the pickle; `torch.save` refers to storages in this way."""

    reference: Any


@dataclasses.dataclass(eq=False)
class Call:
    """What the pickle would have called, with what; it is not called.

    Attributes:
      function: usually a `Global`.
      args: its arguments, usually a tuple.
      state: what would have been set on the result afterwards.
      items: what would have been put into the result afterwards, under names that are strings.
    """

    function: Any
    args: Any
    state: Any = None
    items: dict[str, Any] = dataclasses.field(default_factory=dict)


_CONSTANTS = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": list,
}


def read_pickle(data: bytes) -> Any:
    """Follows a pickle, of protocol 0 to 5, without importing, building or calling anything.

    Returns:
      Constants, tuples, lists, dicts, `Global`, `Persistent` and `Call`. Dicts keep only the keys
      that are strings; sets are lists.

    Raises:
      ValueError: if it is no pickle; the message is one line.
    """
    try:
        return _follow(data)
    except (ValueError, TypeError, LookupError) as error:
        raise ValueError(f"its pickle is broken: {shown(error)}") from None


def _follow(data: bytes) -> Any:
    stack, outer, memo = [], [], {}

    def since_mark() -> list:
        nonlocal stack
        items, stack = stack, outer.pop()
        return items

    for opcode, arg, _ in pickletools.genops(io.BytesIO(data)):
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case name if name in _CONSTANTS:
                stack.append(_CONSTANTS[name]())
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[arg] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[arg])
            case "MARK":
                outer.append(stack)
                stack = []
            case "POP_MARK":
                since_mark()
            case "POP":
                if stack:
                    stack.pop()
                else:
                    since_mark()
            case "DUP":
                stack.append(stack[-1])
            case "TUPLE1" | "TUPLE2" | "TUPLE3" as name:
                count = int(name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "TUPLE" | "LIST" | "FROZENSET" as name:
                items = since_mark()
                stack.append(tuple(items) if name == "TUPLE" else items)
            case "DICT":
                items = since_mark()
                stack.append({})
                _set_items(stack[-1], items)
            case "APPEND":
                item = stack.pop()
                _append(stack[-1], [item])
            case "APPENDS" | "ADDITEMS":
                items = since_mark()
                _append(stack[-1], items)
            case "SETITEM":
                pair = [stack.pop(), stack.pop()][::-1]
                _set_items(stack[-1], pair)
            case "SETITEMS":
                items = since_mark()
                _set_items(stack[-1], items)
            case "GLOBAL":
                stack.append(Global(arg.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                names = stack.pop(-2), stack.pop()
                stack.append(Global(".".join(names)))
            case "EXT1" | "EXT2" | "EXT4":
                stack.append(Global(f"extension {arg}"))
            case "PERSID":
                stack.append(Persistent(arg))
            case "BINPERSID":
                stack.append(Persistent(stack.pop()))
            case "REDUCE" | "NEWOBJ":
                args = stack.pop()
                stack.append(Call(stack.pop(), args))
            case "NEWOBJ_EX":
                keywords, args = stack.pop(), stack.pop()
                stack.append(Call(stack.pop(), (args, keywords)))
            case "INST":
                args = tuple(since_mark())
                stack.append(Call(Global(arg.replace(" ", ".", 1)), args))
            case "OBJ":
                function, *args = since_mark()
                stack.append(Call(function, tuple(args)))
            case "BUILD":
                state = stack.pop()
                if isinstance(stack[-1], Call):
                    stack[-1].state = state
            case "STOP":
                return stack.pop()
            case _ if opcode.arg and not opcode.stack_before and len(opcode.stack_after) == 1:
                stack.append(arg)  # a number, string or bytes
            case name:
                raise ValueError(f"it has the opcode {name}, which torch.save does not write")
    raise ValueError("it does not end")


def _append(target: Any, items: list) -> None:
    # Into an object of an unknown class (a deque, say) nothing is put.
    if isinstance(target, list):
        target.extend(items)
    elif not isinstance(target, Call):
        raise ValueError("it appends to something that is no list")


def _set_items(target: Any, items: Iterable) -> None:
    into = target.items if isinstance(target, Call) else target
    if not isinstance(into, dict) or len(items) % 2:
        raise ValueError("it puts items into something that is no dict")
    pairs = zip(items[::2], items[1::2], strict=True)
    into.update((key, value) for key, value in pairs if isinstance(key, str))


def _is_call(value: Any, name: str) -> bool:
    return (
        isinstance(value, Call)
        and isinstance(value.function, Global)
        and value.function.name == name
        and isinstance(value.args, tuple)
    )


def _as_dict(value: Any) -> dict[str, Any] | None:
    if _is_call(value, "collections.OrderedDict"):
        return value.items
    return value if isinstance(value, dict) else None


def _describe(value: Any) -> str:
    """The kind of a value in a few words; never its content, which may be endless."""
    if isinstance(value, Call):
        function = value.function
        return f"an object of {shown(function.name) if isinstance(function, Global) else '?'}"
    return f"a {type(value).__name__}"


def shown(text: Any) -> str:
    """What a message shows of a text that may come from the file: short and on one line."""
    text = str(text)[:100]
    return text if text.isprintable() else ascii(text)
