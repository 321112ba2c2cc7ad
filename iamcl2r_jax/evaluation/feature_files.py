"""Files that hold a table of features, see `feature_tables`, and need not fit into memory.

  .npz          four arrays; features beyond memory need `numpy.savez`, which does not compress
  .npy          NAME.npy holds the features, NAME.ids.npy, NAME.labels.npy and NAME.split.npy the
                other columns
  .safetensors  four tensors; text is uint8 [N, W], UTF-8 padded with zeros
  .parquet      four columns; features are lists of D numbers. Needs the extra [parquet]

Features are read a block of rows at a time; the other columns are held in memory.
"""

import os
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from iamcl2r_jax.evaluation import feature_tables
from iamcl2r_jax.evaluation.feature_tables import (
    COLUMNS,
    GALLERY,
    QUERY,
    ROWS_AT_ONCE,
    FeatureTable,
    is_text,
    make_table,
    reader_of,
)
from iamcl2r_jax.system import files
from iamcl2r_jax.system.errors import InputError


def open_table(path: str) -> FeatureTable:
    """The table in a file; its features stay there.

    Raises:
      InputError: if it cannot be read or is not as it must be; the message is one line.
    """
    opener, _ = _format(path)
    if not os.path.isfile(path):
        raise InputError(f"{path}: no such file")
    with _readable(path):
        return feature_tables.checked(path, *opener(path))


def write_table(path: str, features: Any, ids: Any, labels: Any, split: Any) -> None:
    """Writes a table in the format of the path's suffix; it appears whole or not at all.

    Raises:
      InputError: for columns or a suffix that cannot be.
      WriteError: if it cannot be written.
    """
    _, writer = _format(path)
    table = make_table(path, features, ids, labels, split)
    columns = {
        "features": np.asarray(features),
        "ids": table.ids,
        "labels": table.labels,
        "split": np.where(table.is_query, QUERY, GALLERY),
    }
    with files.writing(path):
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        writer(path, columns)


def _format(path: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """What opens and what writes files of the path's suffix."""
    suffix = os.path.splitext(path)[1]
    if suffix not in _FORMATS:
        raise InputError(f"{path}: must be a file of features, {', '.join(_FORMATS)}")
    return _FORMATS[suffix]


@contextmanager
def _readable(path: str) -> Iterator[None]:
    """Turns what the libraries raise on a file that is not as it should be into an `InputError`."""
    try:
        yield
    except InputError:
        raise
    except ImportError as error:
        extra = "parquet" if path.endswith(".parquet") else "torch"
        raise InputError(
            f"{path}: needs {error.name}; pip install 'iamcl2r_jax[{extra}]'"
        ) from error
    except Exception as error:  # each library has errors of its own
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: cannot be read as a table of features: {reason}") from error


def _require(path: str, names: Any) -> None:
    missing = [column for column in COLUMNS if column not in names]
    if missing:
        raise InputError(
            f"{path}: {', '.join(missing)} missing; a table holds {', '.join(COLUMNS)}"
        )


# Each opener gives the shape and dtype of the features, their reader, and the other columns.


def _open_npy(path):
    parts = {name: f"{path.removesuffix('.npy')}.{name}.npy" for name in COLUMNS[1:]}
    _require(path, {"features"} | {name for name, part in parts.items() if os.path.isfile(part)})
    return *_mapped(path, 0), *(np.load(part, allow_pickle=False) for part in parts.values())


def _open_npz(path):
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
        _require(path, arrays.files)
        others = [arrays[name] for name in COLUMNS[1:]]
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        member = archive.getinfo("features.npy")
        if member.compress_type != zipfile.ZIP_STORED:
            with np.load(file, allow_pickle=False) as arrays:
                features = arrays["features"]
            return features.shape, features.dtype, reader_of(features), *others
        # The array lies in the file as it is, behind a header of 30 bytes, a name and an extra.
        file.seek(member.header_offset + 26)
        lengths = np.frombuffer(file.read(4), "<u2")
        start = member.header_offset + 30 + int(lengths.sum())
    return *_mapped(path, start), *others


def _mapped(path, start):
    """Shape, dtype and reader of an array in NumPy's format that begins at a byte of a file."""
    with open(path, "rb") as file:
        file.seek(start)
        version = np.lib.format.read_magic(file)
        read_header = {(1, 0): "read_array_header_1_0", (2, 0): "read_array_header_2_0"}
        shape, fortran, dtype = getattr(np.lib.format, read_header[version])(file)
        offset = file.tell()
    if offset + dtype.itemsize * np.prod(shape, dtype=np.int64) > os.path.getsize(path):
        raise InputError(f"{path}: shorter than its header says; it was not written whole")
    if fortran:
        whole = np.memmap(path, dtype, "r", offset, shape, order="F")
        return shape, dtype, reader_of(whole)
    row = dtype.itemsize * int(np.prod(shape[1:]))

    def reader(low, high):
        # Read, not mapped: mapped pages would count as memory of the process.
        values = np.fromfile(path, dtype, (high - low) * shape[1], offset=offset + int(low) * row)
        return values.reshape(high - low, shape[1])

    return shape, dtype, reader


def _open_safetensors(path):
    from safetensors import safe_open

    def column(file, name):
        values = file.get_tensor(name)
        if values.dtype == np.uint8 and values.ndim == 2:
            width = values.shape[1]
            return np.ascontiguousarray(values).view(f"S{width}")[:, 0] if width else values
        return values

    def reader(low, high):
        with safe_open(path, "numpy") as file:
            return file.get_slice("features")[int(low) : int(high)]

    with safe_open(path, "numpy") as file:
        _require(path, file.keys())
        features = file.get_slice("features")
        shape, dtype = features.get_shape(), features[:1].dtype
        return tuple(shape), dtype, reader, *(column(file, name) for name in COLUMNS[1:])


def _open_parquet(path):
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        _require(path, file.schema_arrow.names)
        groups = range(file.metadata.num_row_groups)
        starts = np.cumsum([0] + [file.metadata.row_group(g).num_rows for g in groups])
        first = next(file.iter_batches(1, columns=["features"]), None)
        others = file.read(columns=list(COLUMNS[1:]))
        sample = np.zeros((0, 0)) if first is None else _from_lists(first.column(0))
        shape = (file.metadata.num_rows, sample.shape[1])

    def reader(low, high):
        groups = [g for g in range(len(starts) - 1) if starts[g] < high and starts[g + 1] > low]
        position, found = starts[groups[0]], []
        with _readable(path), pq.ParquetFile(path) as file:
            for batch in file.iter_batches(ROWS_AT_ONCE // 8, groups, columns=["features"]):
                begin, end = np.clip((low - position, high - position), 0, len(batch))
                if begin < end:
                    found.append(_from_lists(batch.column(0).slice(begin, end - begin), shape[1]))
                position += len(batch)
        return np.concatenate(found)

    columns = [others.column(name).to_numpy() for name in COLUMNS[1:]]
    return shape, sample.dtype, reader, *columns


def _from_lists(column, width=None):
    """A column of lists of one length as an array [n, D]."""
    values = column.flatten().to_numpy(zero_copy_only=False)
    lengths = np.asarray(column.value_lengths())
    if not len(lengths) or (lengths != (width or lengths[0])).any() or column.null_count:
        raise ValueError("features must be lists of one length, without nulls")
    return values.reshape(len(lengths), -1)


def _write_npy(path, columns):
    stem = path.removesuffix(".npy")
    for name in reversed(COLUMNS):  # the features last: without them there is no table
        target = path if name == "features" else f"{stem}.{name}.npy"
        _replaced(target, lambda file, name=name: np.save(file, columns[name]))


def _write_npz(path, columns):
    _replaced(path, lambda file: np.savez(file, **columns))


def _write_safetensors(path, columns):
    with _readable(path):
        from safetensors.numpy import save

    def tensor(values):
        if not is_text(values):
            return np.ascontiguousarray(values)
        encoded = np.char.encode(values, "utf-8")
        return np.frombuffer(encoded.tobytes(), np.uint8).reshape(len(encoded), encoded.itemsize)

    content = save({name: tensor(values) for name, values in columns.items()})
    _replaced(path, lambda file: file.write(content))


def _write_parquet(path, columns):
    with _readable(path):
        import pyarrow as pa
        import pyarrow.parquet as pq
    features = columns["features"]
    lists = pa.FixedSizeListArray.from_arrays(pa.array(features.ravel()), features.shape[1])
    table = pa.table({"features": lists} | {name: pa.array(columns[name]) for name in COLUMNS[1:]})
    _replaced(path, lambda file: pq.write_table(table, file, row_group_size=ROWS_AT_ONCE))


def _replaced(path, write):
    """Writes a neighbouring file, which takes the name once it is whole."""
    draft = f"{path}.{os.getpid()}"
    try:
        with open(draft, "wb") as file:
            write(file)
            files.sync(file)
        os.replace(draft, path)
    except BaseException:
        if os.path.exists(draft):
            os.remove(draft)
        raise


_FORMATS = {
    ".npz": (_open_npz, _write_npz),
    ".npy": (_open_npy, _write_npy),
    ".safetensors": (_open_safetensors, _write_safetensors),
    ".parquet": (_open_parquet, _write_parquet),
}
