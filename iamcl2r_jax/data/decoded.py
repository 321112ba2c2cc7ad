"""Decoded images of a prepared data set, kept beside it, so that the next start need not decode.

A file belongs to one state of the data set's own files, one split and one image size; where
anything differs, or it cannot be read whole, the images are decoded as if it were not there.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import zipfile

import numpy as np
import PIL

DIRECTORY = "decoded"  # within that of the data set; may be removed at any time
LARGEST = 2**30  # bytes of images; of more, decoding is the smaller part of what a run takes
_FORMAT = 1  # raised when the same files are decoded to other arrays

Arrays = tuple[np.ndarray, np.ndarray]  # images uint8 [N, H, W, 3] and labels int32 [N]


def path(dataset: str, split: str, image_size: int, num_classes: int) -> pathlib.Path:
    """Where the images of a split are kept, by all that decides what they decode to."""
    root = pathlib.Path(dataset)
    files = sorted(file for file in root.glob("*") if file.is_file())
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    decides = [_FORMAT, PIL.__version__, split, image_size, num_classes, stats]
    digest = hashlib.sha256(json.dumps(decides).encode(errors="backslashreplace"))
    return root / DIRECTORY / f"{digest.hexdigest()[:32]}.npz"


def read(file: pathlib.Path) -> Arrays | None:
    """What `write` has kept, checked against its checksums; None if there is nothing whole."""
    try:
        with file.open("rb") as opened, np.load(opened) as kept:
            return kept["images"], kept["labels"]
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        return None


def write(file: pathlib.Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Keeps images and labels, if there is room and permission; the file appears whole."""
    if images.nbytes > LARGEST:
        return
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        file.parent.mkdir(exist_ok=True)
        try:
            with draft.open("wb") as opened:
                np.savez(opened, images=images, labels=labels)
            draft.replace(file)
        except OSError:
            draft.unlink(missing_ok=True)
            raise
