"""Data sets of TFDS, prepared if need be, as arrays; reading never imports TensorFlow."""

import contextlib
import difflib
import importlib
import io
import json
import pathlib
import re
import sys
from collections.abc import Iterator

import numpy as np
import requests
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from google.protobuf import json_format
from tensorflow_datasets.core.download import downloader
from tensorflow_datasets.core.utils import py_utils

from iamcl2r_jax.data import catalogue, decoded, images
from iamcl2r_jax.system import distributed, paths
from iamcl2r_jax.system.errors import DamagedError, InputError, one_line

# TFDS registers a builder when its module is imported.
OWN_BUILDERS = {
    "glyphs": "iamcl2r_jax.data.glyphs",
    "handwriting": "iamcl2r_jax.data.handwriting",
}
_READ_BATCH = 1024
_VERSION = r"(\d+|\*)\.(\d+|\*)\.(\d+|\*)"
_NAME = re.compile(rf"[a-z_]\w*(/[\w.\-]+)?(:{_VERSION})?", re.ASCII | re.IGNORECASE)


def describe(name: str, data_dir: str | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Class and split names, see `sources.describe`."""
    builder = _builder(name, data_dir)
    _, label_key = _keys(name, builder)
    return tuple(builder.info.features[label_key].names), tuple(sorted(builder.info.splits))


def load(
    name: str, split: str, image_size: int, data_dir: str | None, num_classes: int | None
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Images, labels and class names of a split; see `sources.load`."""
    builder = _builder(name, data_dir)
    _, label_key = _keys(name, builder)
    with distributed.first_alone_first(f"{name} prepared"):
        if not _is_prepared(builder):
            _prepare(name, data_dir)
        builder = _builder(name, data_dir)
        if not _is_prepared(builder):  # TFDS leaves alone a directory that is there already
            raise _damaged(name, builder.data_dir, "its dataset_info.json is missing")
    try:
        count = builder.info.splits[split].num_examples
    except (KeyError, ValueError, AssertionError):  # which of them, depends on what is malformed
        raise images.no_such_split(name, split, builder.info.splits) from None
    if count == 0:
        raise InputError(f"data set {name!r}: split {split!r} is empty")
    labels_of = builder.info.features[label_key]
    class_names = images.first_classes(name, labels_of.names, num_classes)
    kept = decoded.path(builder.data_dir, split, image_size, len(class_names))
    arrays = decoded.read(kept)
    if arrays is None:
        arrays = _decode(name, builder, split, image_size, len(class_names))
        if distributed.is_first():
            decoded.write(kept, *arrays)
    return *arrays, class_names


def _decode(
    name: str, builder: tfds.core.DatasetBuilder, split: str, image_size: int, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of the first classes of a split."""
    image_key, label_key = _keys(name, builder)
    features, count = builder.info.features, builder.info.splits[split].num_examples
    has_id = "id" in features and isinstance(features["id"], tfds.features.Text)
    # Images are decoded below, and only those that are kept.
    encoded = [key for key, f in features.items() if isinstance(f, tfds.features.Image)]
    try:
        source = builder.as_data_source(
            split, decoders={key: tfds.decode.SkipDecoding() for key in encoded}
        )
    except NotImplementedError:
        raise InputError(
            f"data set {name!r} is stored as {builder.info.file_format.value} in "
            f"{builder.data_dir}, which only TensorFlow reads; name another data_dir, where it "
            "will be prepared as array_record"
        ) from None
    except Exception as error:  # of the reader, which tells damage by checksums of its own
        raise _blame(name, builder.data_dir, error) from error

    # Memory is only taken by the rows that are filled.
    pixels = images.room_for(name, split, count, image_size)
    labels = np.empty(count, np.int32)
    ids = []
    kept = 0
    for example in _examples(name, builder, split, source, count):
        if example[label_key] < 0:
            raise InputError(f"split {split!r} of data set {name!r} has images without a label")
        if example[label_key] >= len(features[label_key].names):
            raise _damaged(name, builder.data_dir, f"label {example[label_key]} is out of range")
        if example[label_key] >= num_classes:
            continue
        try:
            pixels[kept] = images.decode(io.BytesIO(example[image_key]), image_size)
        except Exception as error:  # Pillow's decoders raise most kinds on broken files
            raise DamagedError(
                f"data set {name!r} in {builder.data_dir}: image {kept} of split {split!r} cannot "
                f"be decoded ({one_line(error)})"
            ) from error
        labels[kept] = example[label_key]
        if has_id:
            ids.append(example["id"])
        kept += 1
    pixels, labels = pixels[:kept], labels[:kept]
    if has_id:
        order = np.argsort(np.array(ids), kind="stable")
        pixels, labels = pixels[order], labels[order]
    return pixels, labels


def _examples(name, builder, split, source, count) -> Iterator[dict]:
    """The examples of a split, read batch by batch.

    The reader tells damage by checksums of its own, but takes the number of records from the set's
    metadata, which has none.
    """
    try:
        for part in set(re.findall(r"\w+", split)) & set(builder.info.splits):
            whole = builder.info.splits[part]
            readers = [ArrayRecordReader(str(path)) for path in whole.filepaths]
            stored = sum(reader.num_records() for reader in readers)
            for reader in readers:
                reader.close()
            if stored != whole.num_examples:
                why = f"{part} has {stored} records, its metadata {whole.num_examples}"
                raise _damaged(name, builder.data_dir, why)
        for start in range(0, count, _READ_BATCH):
            yield from source.__getitems__(range(start, min(start + _READ_BATCH, count)))
    except InputError:
        raise
    except Exception as error:
        raise _blame(name, builder.data_dir, error) from error


def _damaged(name: str, directory: object, why: str) -> DamagedError:
    return DamagedError(
        f"data set {name!r} in {directory} is damaged ({why}); move that directory away to have it "
        "prepared again"
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what led to it: TFDS raises its own around others."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _blame(name: str, directory: str, error: Exception) -> InputError:
    """What to raise for an error of TFDS's; damage only if all files of the set can be read."""
    for cause in _causes(error):
        if isinstance(cause, ImportError):
            return _missing_package(name, error)
    try:
        files = [f for f in pathlib.Path(directory).rglob("*") if not f.is_dir()]
        for file in files:
            file.open("rb").close()
    except OSError as refused:
        return _unreadable(name, refused)
    if not files:
        return InputError(f"data set {name!r} cannot be opened: {one_line(error)}")
    return _damaged(name, directory, one_line(error))


def _unreadable(name: str, error: OSError) -> InputError:
    return InputError(
        f"data set {name!r}: {error.filename} cannot be read ({error.strerror or one_line(error)})"
    )


def _missing_package(name: str, error: Exception) -> InputError:
    """The error for a data set that needs a package which is not installed."""
    imports = [cause for cause in _causes(error) if isinstance(cause, ImportError)]
    missing = next((cause.name for cause in imports if cause.name), None)
    if "tensorflow" in (missing or ""):
        return InputError(
            f"data set {name!r} needs TensorFlow to be prepared, once: "
            "pip install 'iamcl2r_jax[prepare]' and start again (reading needs none)"
        )
    what = f"install the package {missing}" if missing else one_line(imports[0])
    return InputError(f"data set {name!r} cannot be opened: {what}")


def _builder(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    """The builder that `name` stands for, in the catalogue or among our own."""
    if not _NAME.fullmatch(name):
        raise InputError(
            f"data set name {name!r} is malformed; write NAME, NAME/CONFIG, either with :1.2.3, a "
            "version, or 'folder:DIR'"
        )
    base, _, config = name.partition(":")[0].partition("/")
    if base in OWN_BUILDERS:
        importlib.import_module(OWN_BUILDERS[base])
    directory = data_dir or paths.expand(str(tfds.core.constants.DATA_DIR))
    try:
        # TFDS prints some lines where a module asks for TensorFlow in vain.
        with catalogue.without_leftovers(), contextlib.redirect_stdout(io.StringIO()):
            return tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        known = [*OWN_BUILDERS, *tfds.list_builders(with_community_datasets=False)]
        near = difflib.get_close_matches(base, known)
        hint = f" (near it: {', '.join(near)})" if near else ""
        raise InputError(
            f"data set {name!r} is unknown{hint}; name a TFDS data set, one of "
            f"{', '.join(OWN_BUILDERS)}, or a folder as 'folder:DIR'"
        ) from None
    except OSError as error:
        raise _unreadable(name, error) from error
    except Exception as error:
        causes = list(_causes(error))
        if any(isinstance(cause, _OF_PARSERS) for cause in causes):
            raise _blame(name, f"{directory}/{base}", error) from error
        if any(isinstance(cause, ImportError) for cause in causes):
            raise _missing_package(name, error) from error
        configs = list(tfds.builder_cls(base).builder_configs)
        if config and config not in configs:
            known = f"its configurations are {', '.join(configs)}" if configs else "it has none"
            raise InputError(
                f"data set {base!r} has no configuration {config!r}; {known}"
            ) from None
        for cause in causes:
            if found := re.search(r"cannot be loaded at version \S+, only: (.+?)\.?$", str(cause)):
                raise InputError(
                    f"data set {name!r}: there is no such version of it, only {found[1]}"
                ) from None
        raise InputError(f"data set {name!r} cannot be opened: {one_line(error)}") from error


# Of the files that describe a prepared data set.
_OF_PARSERS = (json.JSONDecodeError, json_format.ParseError, UnicodeError)


def _keys(name: str, builder: tfds.core.DatasetBuilder) -> tuple[str, str]:
    """The names of the image and of the label among the features of a data set."""
    features = builder.info.features
    keys = builder.info.supervised_keys or ("image", "label")
    if (
        len(keys) != 2
        or not all(key in features for key in keys)
        or not isinstance(features[keys[0]], tfds.features.Image)
        or features[keys[0]].np_dtype != np.uint8
        or not isinstance(features[keys[1]], tfds.features.ClassLabel)
    ):
        raise InputError(
            f"data set {name!r} has no pair of an 8-bit image and a class label; "
            f"its features are {', '.join(features)}"
        )
    return keys


def _is_prepared(builder: tfds.core.DatasetBuilder) -> bool:
    # TFDS reads the splits from the directory that it renames into place at the very end; its own
    # `is_prepared` warns of every set that is not there yet.
    return bool(builder.info.splits)


def _prepare(name: str, data_dir: str | None) -> None:
    """Downloads and writes a data set; TFDS renames it into place when all of it is there."""
    builder = _builder(name, data_dir)
    writer = catalogue.without_tensorflow(builder, data_dir)
    downloads = pathlib.Path(data_dir or tfds.core.constants.DATA_DIR).expanduser() / "downloads"
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    try:
        # TFDS would try for minutes before it admits that there is no network.
        with (
            py_utils.temporary_assignment(downloader, "MAX_RETRIES", 3),
            _silence_for_own(name),
        ):
            writer.download_and_prepare(
                download_dir=str(downloads),
                download_config=tfds.download.DownloadConfig(try_download_gcs=False),
                file_format=tfds.core.FileFormat.ARRAY_RECORD,
            )
    except Exception as error:
        if _is_prepared(_builder(name, data_dir)):
            return  # another process was first, so that the rename found its directory there
        raise InputError(_why_not_prepared(name, downloads, error)) from error


def _silence_for_own(name: str) -> contextlib.AbstractContextManager:
    """TFDS announces a download, with its size; our own sets download nothing."""
    if name.partition("/")[0] in OWN_BUILDERS:
        return contextlib.redirect_stdout(io.StringIO())
    return contextlib.nullcontext()


def _why_not_prepared(name: str, downloads: pathlib.Path, error: Exception) -> str:
    """One line for why TFDS could not prepare a data set, and what to do about it."""
    for cause in _causes(error):
        if isinstance(cause, ImportError):
            return str(_missing_package(name, error))
        if isinstance(cause, requests.exceptions.RequestException | tfds.download.DownloadError):
            request = getattr(cause, "request", None)
            reason = f"{type(cause).__name__}: {request.url}" if request else one_line(cause)
            return (
                f"data set {name!r} cannot be downloaded ({reason}); connect to the network, "
                f"or put that file into {downloads / 'manual'}"
            )
    return f"data set {name!r} cannot be prepared: {one_line(error)}"
