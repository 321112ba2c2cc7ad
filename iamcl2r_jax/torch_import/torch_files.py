"""Reads the tensors of a PyTorch checkpoint without PyTorch, and runs nothing that is in the file.

A `torch.save` file is a zip of raw storages and a pickle that says which tensor is which part of
which storage; `pickles` reads it as data. What the network's tensors do not need (optimiser,
arguments, data sets) is left alone.
"""

import math
import zipfile
from typing import Any

import jax.numpy as jnp
import numpy as np

from iamcl2r_jax.system.errors import InputError
from iamcl2r_jax.torch_import.names import shown
from iamcl2r_jax.torch_import.pickles import Persistent, Stub, read_pickle

# The entries of a checkpoint that may hold the network, the first that is there counts: the
# official code's, those that others use, and averages of a network that has none beside it.
_NETWORK_KEYS = ("net", "state_dict", "model_state_dict", "model", "network")
_NETWORK_KEYS += ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "averaged_model")
_MOST_REPEATED = 2**26  # elements of all tensors whose storage shows some of its own repeatedly

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
      path: a zip-format `torch.save` file, of a state dict or of a dict that holds one under a name
        of `_NETWORK_KEYS`; or a `.safetensors` file.

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
        self._repeated = 0

    def state_dict(self) -> dict[str, np.ndarray]:
        if self._root + "byteorder" in self._entries and self._read("byteorder") != b"little":
            raise InputError(f"checkpoint {self._path} was written on a big-endian machine")
        try:
            content = read_pickle(self._read("data.pkl"))
        except ValueError as error:
            raise InputError(f"checkpoint {self._path} is damaged: {error}") from None
        network = self._network(_as_dict(content), content)
        return {name: self._tensor(name, value) for name, value in network.items()}

    def _network(self, entries: dict[str, Any] | None, content: Any) -> dict[str, Any]:
        """The state dict in a file that holds it under some name, or is it."""
        if not entries:
            raise InputError(
                f"checkpoint {self._path} holds no state dict but {_describe(content)}; save it as "
                "torch.save({'net': network.state_dict()}, ...)"
            )
        inside = {key: _as_dict(value) for key, value in entries.items()}
        for key in _NETWORK_KEYS:
            if inside.get(key):
                return inside[key]
        if _holds_tensors(entries):
            return entries
        held = [key for key, value in inside.items() if value and _holds_tensors(value)]
        where = f"holds tensors under {', '.join(map(shown, held))}" if held else "holds no tensors"
        raise InputError(
            f"checkpoint {self._path} {where}; looked for a state dict under "
            f"{', '.join(_NETWORK_KEYS)}; save it as torch.save({{'net': network.state_dict()}}, "
            "...)"
        )

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
        value = _unwrapped(value)
        if not _is_tensor(value):
            raise InputError(
                f"checkpoint {self._path}: {name} is not a plain tensor but {_describe(value)}"
            )
        match value.args:
            case (Persistent(("storage", type() as stub, str(key), _, int(numel))), *place) if (
                issubclass(stub, Stub)
            ):
                kind = stub.name
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
        if math.prod(shape) > numel:
            self._repeated += math.prod(shape)
        if self._repeated > _MOST_REPEATED:  # a small file could ask for any amount of memory
            raise InputError(
                f"checkpoint {self._path}: {name} is {list(shape)}, of a storage of {numel} "
                f"elements; all such tensors may have {_MOST_REPEATED:,} elements"
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
    """Whether a view of a storage stays inside it; it may show elements again, as of .expand()."""
    if not all(type(number) is int and number >= 0 for number in (offset, *shape, *stride)):
        return False
    if len(shape) != len(stride) or len(shape) > 8 or max((offset, *stride)) > numel:
        return False
    if 0 in shape:
        return max(shape) <= numel
    return offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True)) < numel


def _unwrapped(value: Any) -> Any:
    """The tensor of a parameter; anything else as it is."""
    if _is_call(value, "torch._utils._rebuild_parameter") and value.args:
        return value.args[0]
    return value


def _is_tensor(value: Any) -> bool:
    return _is_call(_unwrapped(value), "torch._utils._rebuild_tensor_v2")


def _holds_tensors(entries: dict[str, Any]) -> bool:
    return any(map(_is_tensor, entries.values()))


def _is_call(value: Any, name: str) -> bool:
    return isinstance(value, Stub) and value.name == name


def _as_dict(value: Any) -> dict[str, Any] | None:
    if _is_call(value, "collections.OrderedDict"):
        return value.items
    return value if isinstance(value, dict) else None


def _describe(value: Any) -> str:
    """The kind of a value in a few words; never its content, which may be endless."""
    if isinstance(value, Stub):
        return f"an object of {shown(value.name)}"
    if isinstance(value, type):
        return f"the class {shown(value.name)}"
    return f"a {type(value).__name__.lstrip('_').lower()}"
