"""Draws the images of many characters, on all processors."""

import hashlib
import io
import os
from collections.abc import Iterator

import joblib
import numpy as np
from joblib.externals.loky import get_reusable_executor

from iamcl2r_jax.data import alphabets, rendering
from iamcl2r_jax.data.rendering import Variation

_FEW = 4_000  # images that one process draws before others have started


def draw_classes(
    characters: tuple[str, ...],
    per_class: int,
    variation: Variation,
    *identity: object,
    processes: int | None = None,
) -> Iterator[list[bytes]]:
    """The images of each character in turn, as PNG files, RGB, 32x32.

    Args:
        characters: classes of `alphabets`.
        per_class: images of each.
        variation: how much they differ.
        *identity: an image is a pure function of these, its character and its index in the class.
        processes: how many draw at the same time; by default one for each available processor, and
            one for few images. No image depends on it.
    """
    if processes is None:
        few = len(characters) * per_class <= _FEW
        processes = 1 if few else len(os.sched_getaffinity(0))
    jobs = [(character, per_class, variation, *identity) for character in characters]
    if processes == 1:
        for job in jobs:
            yield _draw_class(*job)
        return
    # Unlike multiprocessing, joblib asks nothing of the program's main module.
    parallel = joblib.Parallel(n_jobs=processes, return_as="generator", pre_dispatch=4 * processes)
    yield from parallel(joblib.delayed(_draw_class)(*job) for job in jobs)
    get_reusable_executor().shutdown()


def _draw_class(
    character: str, per_class: int, variation: Variation, *identity: object
) -> list[bytes]:
    faces = alphabets.faces(character)
    images = []
    for index in range(per_class):
        rng = _generator(*identity, character, index)
        image = rendering.random_image(faces, character, rng, variation, alphabets.CLUTTER)
        with io.BytesIO() as file:
            image.save(file, format="png", compress_level=1)  # noise does not compress
            images.append(file.getvalue())
    return images


def _generator(*name: object) -> np.random.Generator:
    """A generator of its own for each name: no image depends on those before it."""
    digest = hashlib.blake2b("/".join(map(str, name)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
