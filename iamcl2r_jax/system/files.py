"""Files that appear whole or not at all, tell damage by a checksum, and have one writer."""

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import filelock
from etils import epath

from iamcl2r_jax.system import distributed
from iamcl2r_jax.system.errors import DamagedError, InputError, LockedError, WriteError

_CHECKSUM = "sha256"  # of the other fields, as encoded here


def write_json(path: str, value: dict[str, Any]) -> None:
    """Writes a dictionary as JSON with its checksum."""
    write_text(path, _encode(value | {_CHECKSUM: _digest(value)}))


def write_text(path: str, text: str) -> None:
    """Writes a text to a neighbouring file first, which takes the name once it is on disk.

    Of a job of several processes the first alone writes.
    """
    if not distributed.is_first():
        return
    path = epath.Path(path)
    draft = path.parent / f".{path.name}.{os.getpid()}"
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with draft.open("wb") as file:
                file.write(text.encode(errors="backslashreplace"))
                sync(file)
            draft.replace(path)
        except OSError:
            discard(draft)  # on a full disk even this much may matter
            raise
        _discard_drafts(path)


def _discard_drafts(path: epath.Path) -> None:
    """Removes what processes left that were killed while they wrote this file."""
    if "://" in str(path) or os.name != "posix":
        return
    for child in path.parent.iterdir():
        stem, _, number = child.name.rpartition(".")
        if stem == f".{path.name}" and number.isdecimal() and not _is_alive(int(number)):
            discard(child)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):  # the latter: no process can have it
        return False
    except PermissionError:
        pass
    return True


@contextmanager
def writing(path: str) -> Iterator[None]:
    """Turns what goes wrong with writing inside the block into a `WriteError` that names `path`.

    Other errors than those of the operating system pass as they are.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        code = error.errno if isinstance(error, OSError) else _code_from_tensorstore(error)
        if code is None:
            raise
        raise WriteError(
            f"{path} cannot be written ({os.strerror(code)}); what was saved before is whole, and "
            "once there is room or permission the same command continues"
        ) from error


def _code_from_tensorstore(error: ValueError) -> int | None:
    # Orbax writes arrays through TensorStore, whose errors tell the system's in their text.
    found = re.search(r"os_error_code='(\d+)'", str(error))
    return int(found[1]) if found else None


def require_space(path: str, size: int) -> None:
    """Raises `WriteError` if the disk of `path` lacks room for `size` bytes.

    Orbax, on a disk that is full, prints pages from its threads; so it is not asked to.
    """
    if "://" in str(path):
        return
    place = os.path.abspath(path)
    while not os.path.exists(place):
        place = os.path.dirname(place)
    free = shutil.disk_usage(place).free
    if free < size:
        with writing(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def discard(path: str) -> str | None:
    """Removes a file or directory that nothing needs any more; says why if some of it stays.

    It does not raise: housekeeping is no reason to end any work.
    """
    path = epath.Path(path)
    try:
        if path.is_dir() and not os.path.islink(path):
            path.rmtree()
        else:
            path.unlink(missing_ok=True)
    except FileNotFoundError:  # another process was faster
        return None
    except OSError as error:  # NFS keeps open files under other names, scanners hold files
        return f"{path} cannot be removed ({error.strerror or error}); the next start tries again"
    return None


# What glob takes for a pattern, and names that are not Unicode.
_SPECIAL = re.compile(r"[*?\[\ud800-\udfff]" if os.sep == "\\" else r"[*?\[\\\ud800-\udfff]")


def plain_name(name: str) -> str:
    """A name for a file, itself where it is plain, which no library takes for a pattern."""
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:16] if _SPECIAL.search(name) else name


@contextmanager
def plain_path(directory: str) -> Iterator[epath.Path]:
    """A directory under a path, itself where it is plain, which no library takes for a pattern.

    Orbax globs in the directory of a checkpoint without escaping it. Inside the block a symbolic
    link in the temporary directory stands for a directory with such a path. Raises `InputError` if
    no such link can be made.
    """
    path = os.fspath(directory)
    if "://" in path or not _SPECIAL.search(path):
        yield epath.Path(path)
        return
    with ExitStack() as stack:
        try:
            made = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
            if _SPECIAL.search(made):
                raise OSError(f"TMPDIR={tempfile.gettempdir()} has such characters, too")
            link = os.path.join(made, "link")
            os.symlink(os.path.abspath(path), link, target_is_directory=True)
        except OSError as error:
            raise InputError(
                f"{path}: a path with any of the characters * ? [ \\ needs a symbolic link in the "
                f"temporary directory, which cannot be made ({error}); choose another path"
            ) from None
        yield epath.Path(link)


def read_json(path: str) -> dict[str, Any] | None:
    """What `write_json` wrote, or None if there is no such file; `DamagedError` if changed."""
    path = epath.Path(path)
    if not path.exists():
        return None
    try:
        value = json.loads(path.read_text())  # damaged bytes are a ValueError, too
        written = value.pop(_CHECKSUM)
        intact = written == _digest(value)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        intact = False
    if not intact:
        raise DamagedError(f"{path} is damaged or was edited: its checksum does not fit")
    return value


def as_json(value: Any) -> Any:
    """The value as it comes back from a JSON file: tuples become lists."""
    return json.loads(_encode(value))


def digest(path: epath.Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        if hasattr(file, "fileno"):
            return hashlib.file_digest(file, "sha256").hexdigest()
        return hashlib.sha256(file.read()).hexdigest()


def sync(file: Any) -> None:
    """Brings an open file's bytes to disk, so that a name given next never names less."""
    file.flush()
    if hasattr(file, "fileno"):  # cloud storage has none
        os.fsync(file.fileno())


def require_writable(directory: str) -> None:
    """Raises `WriteError` unless files can be made in a directory; leaves it as it was."""
    if "://" in directory or not distributed.is_first():
        return
    with plain_path(directory):  # what cannot be had later is refused now
        pass
    made, place = [], os.path.abspath(directory)
    while not os.path.lexists(place):
        made.append(place)
        place = os.path.dirname(place)
    with writing(directory):
        os.makedirs(directory, exist_ok=True)
        try:
            tempfile.TemporaryFile(dir=directory).close()
        finally:
            for empty in made:
                with suppress(OSError):  # another process has begun to write there
                    os.rmdir(empty)


@contextmanager
def one_writer(directory: str) -> Iterator[None]:
    """Keeps other processes of this machine from writing to a directory; it is made if missing.

    The lock is the operating system's: it goes when its process does, however that ends.
    Directories in cloud storage are not locked. Of a job of several processes the first holds the
    lock. Raises `LockedError`, naming the process that writes there.
    """
    if "://" in directory or not distributed.is_first():
        yield
        return
    if directory.startswith("~"):
        raise InputError(f"{directory}: must be written out, without ~")
    path = os.path.join(directory, ".lock")
    holder = os.path.join(directory, ".lock-holder")
    lock = filelock.FileLock(path)
    try:
        with writing(path):
            os.makedirs(directory, exist_ok=True)
            lock.acquire(timeout=0)
    except filelock.Timeout:
        raise LockedError(
            f"{directory} is being written by process {_content(holder)}; wait for it, end it, or "
            "choose another directory"
        ) from None
    try:
        with writing(holder), open(holder, "w") as file:
            file.write(f"{os.getpid()} on {os.uname().nodename}")
        yield
    finally:
        lock.release()


def _content(holder: str) -> str:
    try:
        with open(holder) as file:
            return file.read() or "?"
    except FileNotFoundError:  # it has the lock, but has not written its number yet
        return "?"


def _digest(value: Any) -> str:
    return hashlib.sha256(_encode(as_json(value)).encode(errors="backslashreplace")).hexdigest()


def _encode(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
