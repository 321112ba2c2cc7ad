"""Folders of image files, `DIR/<split>/<class>/<image file>`, as arrays."""

import collections
import contextlib
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from iamcl2r_jax.data import images
from iamcl2r_jax.system.errors import InputError, one_line

PREFIX = "folder:"
# What systems and file managers leave; names that begin with a dot are left alone as well.
_CLUTTER = {"@eadir", "__macosx", "$recycle.bin", "system volume information", "lost+found"}
_CLUTTER |= {"thumbs.db", "ehthumbs.db", "desktop.ini"}


def load(
    name: str, split: str, image_size: int, num_classes: int | None, min_per_class: int
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Images, labels and class names of a split; see `sources.load`."""
    root = _root(name)
    known = splits(name)
    if split not in known:
        raise images.no_such_split(name, split, known)
    class_names = images.first_classes(name, classes(name), num_classes)
    files, labels = [], []
    with _readable(name):
        for directory in _visible(root / split):
            if not directory.is_dir() or directory.name not in class_names:
                continue
            found = image_files(directory)
            if len(found) < min_per_class:
                raise InputError(
                    f"data set {name!r}, split {split!r}: class {directory.name!r} has "
                    f"{len(found)} image(s){_others([directory])}, at least {min_per_class} "
                    "needed; add images or remove the directory"
                )
            files += found
            labels += [class_names.index(directory.name)] * len(found)
    if not files:
        raise InputError(
            f"data set {name!r}: split {split!r} is empty; add {root / split}/<class>/"
        )
    pixels = images.room_for(name, split, len(files), image_size)
    for i, file in enumerate(files):
        with _readable(name):
            file.open("rb").close()
        try:
            pixels[i] = images.decode(file, image_size, turn=True)
        except Exception as error:  # Pillow's decoders raise most kinds on broken files
            raise InputError(
                f"data set {name!r}: image file {file} is unreadable ({one_line(error)}); "
                "replace or remove it"
            ) from error
    return pixels, np.array(labels, np.int32), class_names


def image_files(directory: pathlib.Path) -> list[pathlib.Path]:
    """The image files directly in a directory, by name."""
    endings = images.suffixes()
    return [f for f in _visible(directory) if f.suffix.lower() in endings and not f.is_dir()]


def passed_over(name: str, split: str) -> str:
    """One line on what a split holds that is not read; "" if there is nothing of the kind.

    Files that are no images by their names, and folders in the folders of classes. Hidden files and
    those of systems and file managers are not counted.
    """
    with _readable(name):
        inside = [d for d in _visible(_root(name) / split) if d.is_dir()]
        others = _others(inside)
        return others and f"data set {name!r}, split {split!r}: {others.removeprefix(', ')}"


def _others(directories: Sequence[pathlib.Path]) -> str:
    """In words, what directories of classes hold beside images."""
    kinds, folders = collections.Counter(), 0
    for directory in directories:
        read = set(image_files(directory))
        for child in _visible(directory):
            if child.is_dir():
                folders += 1
            elif child not in read:
                kinds[child.suffix.lower() or "without an ending"] += 1
    said = []
    if kinds:
        most = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
        listed = [f"{kind} {n}" for kind, n in most[:5]]
        listed += ["..."] if len(kinds) > 5 else []
        said.append(f"{kinds.total()} other file{'s' * (kinds.total() > 1)} ({', '.join(listed)})")
    if folders:
        said.append(f"{folders} subfolder{'s' * (folders > 1)}")
    return f", {' and '.join(said)} passed over" if said else ""


def _root(name: str) -> pathlib.Path:
    path = name.removeprefix(PREFIX)
    root = pathlib.Path(path).expanduser()
    with _readable(name):
        if path and root.is_dir():
            return root
    raise InputError(
        f"data set {name!r}: {path!r} is not a directory; it must hold one "
        "directory per split, DIR/<split>/<class>/<image file>"
    )


def splits(name: str) -> tuple[str, ...]:
    """The splits of a folder, sorted."""
    root = _root(name)
    with _readable(name):
        found = tuple(p.name for p in _visible(root) if p.is_dir())
    if not found:
        raise InputError(
            f"data set {name!r} has no splits; it must hold one directory per split, "
            "DIR/<split>/<class>/<image file>"
        )
    return found


def classes(name: str, split: str | None = None) -> tuple[str, ...]:
    """Classes of all splits together, sorted, so that a label means the same in each; or of one."""
    known = splits(name)
    if split is not None and split not in known:
        raise images.no_such_split(name, split, known)
    root = _root(name)
    with _readable(name):
        found = {
            p.name for s in ([split] if split else known) for p in _visible(root / s) if p.is_dir()
        }
    if not found:
        raise InputError(
            f"data set {name!r} has no classes{f' in split {split!r}' if split else ''}; each "
            "split must hold one directory per class, DIR/<split>/<class>/<image file>"
        )
    return tuple(sorted(found))


def _visible(directory: pathlib.Path) -> list[pathlib.Path]:
    return sorted(
        child
        for child in directory.iterdir()
        if not child.name.startswith(".") and child.name.lower() not in _CLUTTER
    )


@contextlib.contextmanager
def _readable(name: str) -> Iterator[None]:
    """Makes one line of what the operating system refuses to read."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"data set {name!r}: {error.filename} cannot be read ({error.strerror})"
        ) from error
