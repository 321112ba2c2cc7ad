"""Checkpoints: arrays, as Orbax writes them, with a metadata.json beside them in one directory.

A directory appears whole or not at all, holds the checksums of its files, and is read strictly:
every file of its manifest must be as it was written, and the arrays those that are expected, leaf
by leaf. Other files in it, of file systems and file managers, do not count.
"""

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

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
            composite_options=ocp.CompositeOptions(multiprocessing_options=alone),
        ),
        multiprocessing_options=alone,
    )


def save(
    path: str,
    variables: Variables,
    metadata: dict[str, Any],
    beside: Sequence[epath.Path] = (),
) -> None:
    """Writes a checkpoint, atomically.

    Args:
      path: directory to make; it must not exist.
      variables: {"params", "batch_stats"}.
      metadata: what to know about them, JSON values; written as metadata.json.
      beside: files that are copied into it; nothing here reads them.

    Raises:
      InputError: if `path` exists.
      WriteError: if the disk is full, the place cannot be written, or what was written cannot be
        read back. What cannot be removed again at once is removed by the next attempt.
    """
    check_free(path)
    directory = epath.Path(path).absolute()
    variables = jax.device_get(variables)
    with files.writing(path):
        directory.parent.mkdir(parents=True, exist_ok=True)
        with files.plain_path(directory.parent) as parent:
            draft = _free_draft(parent / f".{files.plain_name(directory.name)}.draft")
            size = sum(leaf.nbytes for leaf in jax.tree.leaves(variables))
            files.require_space(path, _ROOM + size)
            try:
                with _checkpointer() as checkpointer:
                    args = ocp.args.Composite(variables=ocp.args.StandardSave(variables))
                    checkpointer.save(draft, args)
                files.write_json(draft / _METADATA, metadata)
                for file in beside:
                    file.copy(draft / file.name)  # no directory, which Orbax would take for arrays
                files.write_json(draft / _MANIFEST, {"files": _digests(draft)})
                _read_back(path, draft, variables, metadata)
                draft.rename(parent / directory.name)
            except (OSError, ValueError, files.WriteError):
                # Orbax's threads may still write there; then the next attempt removes it.
                _free_draft(draft)
                raise


def _free_draft(draft: epath.Path) -> epath.Path:
    """Removes what unfinished checkpoints left, and returns a path at which there is nothing."""
    left = [child for child in draft.parent.iterdir() if child.name.startswith(draft.name)]
    complaints = [files.discard(child) for child in left]
    if any(complaints):
        return draft.parent / f"{draft.name}-{time.time_ns()}"
    return draft


def _read_back(path: str, draft: epath.Path, variables: Variables, metadata: dict) -> None:
    """Raises `WriteError` unless metadata, names, shapes and dtypes are found as written."""
    try:
        with _checkpointer() as checkpointer:
            same = _leaves(_stored(checkpointer, draft)) == _leaves(variables)
        same &= files.read_json(draft / _METADATA) == files.as_json(metadata)
    except Exception as error:
        raise files.WriteError(
            f"{path} was written but cannot be read back ({_one_line(error)}); what was saved "
            "before is whole"
        ) from error
    if not same:
        raise files.WriteError(
            f"{path} was written but reads differently; what was saved before is whole"
        )


_ROOM = 2**16  # bytes of a checkpoint beside its arrays
_MANIFEST, _METADATA = "manifest.json", "metadata.json"


def _digests(directory: epath.Path) -> dict[str, str]:
    """SHA-256 of every file of a checkpoint but its manifest, by place."""
    return {
        str((folder / name).relative_to(directory)): files.digest(folder / name)
        for folder, _, names in directory.walk()
        for name in names
        if folder / name != directory / _MANIFEST
    }


def exists(path: str) -> bool:
    """Whether a finished checkpoint lies at `path` (one being written has another name).

    Raises `InputError` if that cannot be found out, for want of permission, say.
    """
    try:
        (epath.Path(path) / _MANIFEST).stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise _unreadable(path, error) from error
    return True


def check_free(path: str) -> None:
    """Raises `InputError` if there is anything in the place where a checkpoint is to be."""
    if exists(path):
        raise InputError(f"checkpoint {path} exists already; choose another name, or move it away")
    if epath.Path(path).exists():
        raise DamagedError(
            f"checkpoint {path} is damaged: its {_MANIFEST} is missing; move it away to have it "
            "made again, or choose another name"
        )


def verify(path: str) -> None:
    """Compares every file of a checkpoint with its checksum.

    Raises:
      InputError: if there is no finished checkpoint at `path`, or it cannot be read.
      DamagedError: if a file is missing or changed.
    """
    directory = _existing(path)
    written = (_read_json(path, _MANIFEST) or {}).get("files")
    if not isinstance(written, dict):
        raise DamagedError(f"checkpoint {path} is damaged: its {_MANIFEST} lists no files")
    for name in sorted(written):
        try:
            intact = files.digest(directory / name) == written[name]
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise DamagedError(f"checkpoint {path} is damaged: {name} is missing") from None
        except OSError as error:
            raise _unreadable(path, error) from error
        if not intact:
            raise DamagedError(f"checkpoint {path} is damaged: {name} is not as it was written")


def load_metadata(path: str) -> dict[str, Any]:
    """The metadata of a checkpoint; `InputError` if there is no finished and intact one."""
    verify(path)
    metadata = _read_json(path, _METADATA)
    if metadata is None:
        raise DamagedError(f"checkpoint {path} is damaged: it has no {_METADATA}")
    return metadata


def _read_json(path: str, name: str) -> dict[str, Any] | None:
    directory = _existing(path)
    try:
        return files.read_json(directory / name)
    except DamagedError as error:
        raise DamagedError(f"checkpoint {path} is damaged: {error}") from None
    except OSError as error:
        raise _unreadable(path, error) from error


def load(path: str, expected: Callable[[dict[str, Any]], Any]) -> tuple[dict[str, Any], Variables]:
    """The metadata of a checkpoint, and its variables, strictly as expected.

    Args:
      path: directory of the checkpoint.
      expected: maps the metadata to a tree of arrays or shapes that the variables must match in
        name, shape and dtype; it raises where the metadata cannot be used.

    Returns:
      The metadata, and the variables as NumPy arrays, to be placed on any devices.

    Raises:
      InputError: if there is no finished checkpoint at `path`, it is damaged, or any leaf
        differs; all that differ are listed.
    """
    metadata = load_metadata(path)
    wanted = expected(metadata)
    try:
        with files.plain_path(_existing(path)) as place, _checkpointer() as checkpointer:
            differences = _differences(_leaves(_stored(checkpointer, place)), _leaves(wanted))
            if differences:
                raise InputError(
                    f"checkpoint {path} does not fit the model: {'; '.join(differences)}"
                )
            # NumPy targets: the devices that wrote the checkpoint need not exist here.
            target = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), wanted)
            args = ocp.args.Composite(variables=ocp.args.StandardRestore(target))
            return metadata, checkpointer.restore(place, args)["variables"]
    except InputError:
        raise
    except Exception as error:  # whatever Orbax says of it
        raise _unreadable(path, error) from error


def _stored(checkpointer: ocp.Checkpointer, place: epath.Path) -> Any:
    """What the variables of a checkpoint are, by their metadata."""
    return checkpointer.metadata(place).item_metadata["variables"]


def _unreadable(path: str, error: Exception) -> InputError:
    """Says nothing of damage: what cannot be read may be whole."""
    return InputError(f"checkpoint {path} cannot be read ({_one_line(error)})")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _existing(path: str) -> epath.Path:
    if not exists(path):
        error = DamagedError if os.path.lexists(path) else InputError
        raise error(f"checkpoint {path}: there is no finished checkpoint at this place")
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
