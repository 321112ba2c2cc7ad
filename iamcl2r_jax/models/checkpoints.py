"""Checkpoints: the variables of a model and a JSON record beside them, as one Orbax directory.

A directory appears whole or not at all, holds the checksums of its files, and is read strictly:
every file must be as it was written, and the stored arrays what the record says the model is, leaf
by leaf.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from iamcl2r_jax import models
from iamcl2r_jax.system import files
from iamcl2r_jax.system.errors import DamagedError, InputError

Variables = dict[str, Any]


def _checkpointer() -> ocp.Checkpointer:
    # Variables are whole in every process of a job: the first saves and each loads by itself, where
    # Orbax would have all wait for each other at every call.
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process_{me}"
    )
    return ocp.Checkpointer(
        ocp.CompositeCheckpointHandler(
            variables=ocp.StandardCheckpointHandler(multiprocessing_options=alone),
            record=ocp.JsonCheckpointHandler(multiprocessing_options=alone),
            composite_options=ocp.CompositeOptions(multiprocessing_options=alone),
        ),
        multiprocessing_options=alone,
    )


def save(
    path: str,
    variables: Variables,
    record: dict[str, Any],
    beside: Sequence[epath.Path] = (),
) -> None:
    """Writes a checkpoint, atomically.

    Args:
      path: directory to make; it must not exist.
      variables: {"params", "batch_stats"}.
      record: what to know about them; JSON values.
      beside: files that are copied into it; nothing here reads them.

    Raises:
      InputError: if `path` exists.
      WriteError: if the disk is full or the place cannot be written. What cannot be removed again
        at once is removed by the next attempt.
    """
    check_free(path)
    directory = epath.Path(path).absolute()
    variables = jax.device_get(variables)
    draft = directory.parent / f".{directory.name}.draft"
    with files.writing(path):
        for left in _drafts(draft):  # of a process that did not live to finish it
            left.rmtree()
        files.require_space(path, _ROOM + sum(leaf.nbytes for leaf in jax.tree.leaves(variables)))
        try:
            with _checkpointer() as checkpointer:
                checkpointer.save(
                    draft,
                    ocp.args.Composite(
                        variables=ocp.args.StandardSave(variables),
                        record=ocp.args.JsonSave(record),
                    ),
                )
            for file in beside:
                file.copy(draft / file.name)  # no directory, which Orbax would take for arrays
            files.write_json(draft / _MANIFEST, {"files": _digests(draft)})
            draft.rename(directory)
        except (OSError, ValueError, files.WriteError):
            for left in _drafts(draft):
                # Orbax's threads may still write there; then the next attempt removes it.
                with suppress(OSError):
                    left.rmtree()
            raise


def _drafts(draft: epath.Path) -> list[epath.Path]:
    """What there is of an unfinished checkpoint: itself, and what Orbax makes it from."""
    if not draft.parent.exists():
        return []
    return [child for child in draft.parent.iterdir() if child.name.startswith(draft.name)]


_ROOM = 2**16  # bytes of a checkpoint beside its arrays
_MANIFEST = "manifest.json"


def _digests(directory: epath.Path) -> dict[str, str]:
    """SHA-256 of every file of a checkpoint but its manifest, by place."""
    return {
        str((folder / name).relative_to(directory)): files.digest(folder / name)
        for folder, _, names in directory.walk()
        for name in names
        if folder / name != directory / _MANIFEST
    }


def exists(path: str) -> bool:
    """Whether a finished checkpoint lies at `path` (one being written has another name)."""
    return (epath.Path(path) / _MANIFEST).exists()


def check_free(path: str) -> None:
    """Raises `InputError` if there is anything in the place where a checkpoint is to be."""
    if exists(path):
        raise InputError(f"checkpoint {path} exists already; remove it or choose another name")
    if epath.Path(path).exists():
        raise DamagedError(
            f"checkpoint {path} is damaged: its {_MANIFEST} is missing; remove it to have it made "
            "again, or choose another name"
        )


def verify(path: str) -> None:
    """Compares every file of a checkpoint with its checksum.

    Raises:
      InputError: if there is no finished checkpoint at `path`.
      DamagedError: if a file is missing, changed or not of it.
    """
    directory = _existing(path)
    try:
        written = files.read_json(directory / _MANIFEST).get("files")
    except DamagedError as error:
        raise DamagedError(f"checkpoint {path} is damaged: {error}") from None
    if not isinstance(written, dict):
        raise DamagedError(f"checkpoint {path} is damaged: its {_MANIFEST} lists no files")
    there = _digests(directory)
    for name in sorted(written.keys() | there.keys()):
        if written.get(name) != there.get(name):
            what = (
                "is missing"
                if name not in there
                else "is not part of it"
                if name not in written
                else "is not as it was written"
            )
            raise DamagedError(f"checkpoint {path} is damaged: {name} {what}")


def remove(path: str) -> None:
    """Removes a checkpoint, finished or damaged; what is half removed no longer counts as one."""
    directory = epath.Path(path)
    if not directory.is_dir():  # something took its place
        directory.unlink(missing_ok=True)
        return
    (directory / _MANIFEST).unlink(missing_ok=True)
    directory.rmtree()


def load_record(path: str) -> dict[str, Any]:
    """The record of a checkpoint.

    Raises:
      InputError: if there is no finished checkpoint at `path`, or it is damaged.
    """
    verify(path)
    return _read_record(path)


def _read_record(path: str) -> dict[str, Any]:
    with _reading(path), _checkpointer() as checkpointer:
        restored = checkpointer.restore(
            _existing(path), ocp.args.Composite(record=ocp.args.JsonRestore())
        )
    if not isinstance(record := restored["record"], dict):
        raise DamagedError(f"checkpoint {path}: its record is not a JSON object")
    return record


def load(path: str, expected: Any) -> Variables:
    """The variables of a checkpoint, strictly as expected.

    Args:
      path: directory of the checkpoint.
      expected: tree of arrays or shapes that the variables must match in name, shape and dtype.

    Returns:
      The variables as NumPy arrays, to be placed on any devices.

    Raises:
      InputError: if there is no finished checkpoint at `path`, it is damaged, or any leaf
        differs; all that differ are listed.
    """
    verify(path)
    return _read_variables(path, expected)


def load_described(
    path: str, expected: Callable[[dict[str, Any]], Any]
) -> tuple[dict[str, Any], Variables]:
    """The record of a checkpoint and its variables; the files' checksums are taken once for both.

    Args:
      path: directory of the checkpoint.
      expected: tells from the record what the variables must be, see `load`; it raises where a
        record cannot be used.

    Returns:
      The record, and the variables as of `load`.

    Raises:
      InputError: see `load`.
    """
    verify(path)
    record = _read_record(path)
    return record, _read_variables(path, expected(record))


def _read_variables(path: str, expected: Any) -> Variables:
    directory = _existing(path)
    with _reading(path), _checkpointer() as checkpointer:
        stored = checkpointer.metadata(directory).item_metadata["variables"]
        differences = _differences(_leaves(stored), _leaves(expected))
        if differences:
            raise InputError(f"checkpoint {path} does not fit the model: {'; '.join(differences)}")
        # NumPy targets: the devices that wrote the checkpoint need not exist here.
        target = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), expected)
        restored = checkpointer.restore(
            directory, ocp.args.Composite(variables=ocp.args.StandardRestore(target))
        )
    return restored["variables"]


@contextmanager
def _reading(path: str) -> Iterator[None]:
    """Makes one line of whatever Orbax says of a directory that is no checkpoint of ours."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        why = " ".join(str(error).split())[:200]
        raise InputError(f"checkpoint {path} cannot be read ({why})") from error


def model_spec(name: str, num_features: int, options: dict[str, Any]) -> dict[str, Any]:
    """What a record says of the architecture, enough for `create_model`."""
    return {"backbone": name, "num_features": num_features, "options": options}


def create_model(spec: dict[str, Any]):
    """The module that `model_spec` describes.

    Raises:
      InputError: if it describes none.
    """
    match spec:
        case {"backbone": name, "num_features": num_features, "options": dict(options)}:
            if all(isinstance(option, str) for option in options):
                return models.create(name, num_features, **options)
    raise InputError("its model must be given as backbone, num_features and options")


def _existing(path: str) -> epath.Path:
    if not exists(path):
        raise InputError(f"checkpoint {path}: there is no finished checkpoint at this place")
    return epath.Path(path).absolute()


def _leaves(tree: Any) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): (tuple(leaf.shape), leaf.dtype)
        for path, leaf in flat
    }


def _differences(stored: dict, expected: dict) -> list[str]:
    def describe(leaf):
        return f"{np.dtype(leaf[1]).name}{list(leaf[0])}"

    differences = []
    for name in sorted(stored.keys() | expected.keys()):
        if name not in stored:
            differences.append(f"{name} is missing, needs {describe(expected[name])}")
        elif name not in expected:
            differences.append(f"{name} {describe(stored[name])} is not part of the model")
        elif stored[name] != expected[name]:
            differences.append(
                f"{name} is {describe(stored[name])}, needs {describe(expected[name])}"
            )
    return differences
