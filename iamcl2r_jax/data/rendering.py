"""Draws one character of one typeface: the plain drawing, and a random image of it.

The typefaces are those that matplotlib ships. Faces without Unicode letters (the STIX size
variants, cmsy10, cmex10, the placeholder face) are left out, and so is cmmi10, whose digits are
old-style and hang from the baseline.
"""

import functools
import pathlib
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont
from scipy.spatial.distance import cdist

UNICODE_FACES = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSans-BoldOblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSansMono-Oblique",
    "DejaVuSansMono-BoldOblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "DejaVuSerif-BoldItalic",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralItalic",
    "STIXGeneralBolIta",
)
# Computer Modern follows ASCII for letters and digits only; its other codes are TeX's own.
ASCII_FACES = ("cmb10", "cmr10", "cmss10", "cmti10", "cmtt10")
FACES = UNICODE_FACES + ASCII_FACES

IMAGE_SIZE = 32  # pixels
CAP_HEIGHT = 16  # height of an H in pixels, the same in every face; the widest classes just fit
BASELINE = 23  # row of the baseline in an undistorted image
_OVERSAMPLING = 2
_MARGIN = 4  # pixels kept around the drawing for what a rotation or shift brings into view

# The largest of each distortion, either way.
ROTATION = np.deg2rad(12.0)  # radians; N stays N and 6 stays 6
SHEAR = 0.15
SCALE = 0.08  # so small that x-height stays below cap height in every face (z and Z)
SHIFT = 2.0  # pixels
_DISTORTION = np.array([ROTATION, SHEAR, SCALE, SHIFT, SHIFT])
BLUR = 0.8  # largest standard deviation of the blur, pixels
# Brightness and colour, of the range [0, 1].
COLOUR_RANGE = 0.35  # channels of the dark colour lie below this, of the light one above 1 - this
GRADIENT = 0.08  # largest change from the middle to an edge, along each axis
NOISE = 0.06  # largest standard deviation of the pixel noise
_RAMP = np.linspace(-1, 1, IMAGE_SIZE, dtype=np.float32)


@functools.cache
def _font_file(face: str) -> str:
    return str(pathlib.Path(matplotlib.get_data_path(), "fonts", "ttf", f"{face}.ttf"))


@functools.cache
def _character_map(face: str) -> frozenset[str]:
    return frozenset(map(chr, FT2Font(_font_file(face)).get_charmap()))


@functools.cache
def _font(face: str) -> ImageFont.FreeTypeFont:
    """The face at the size that gives an H the common cap height."""
    # The basic layout engine is in every build of Pillow; the other one is optional.
    load = functools.partial(
        ImageFont.truetype, _font_file(face), layout_engine=ImageFont.Layout.BASIC
    )
    reference = 1000
    _, top, _, bottom = load(reference).getbbox("H", anchor="ls")
    return load(reference * CAP_HEIGHT * _OVERSAMPLING / (bottom - top))


def has_character(face: str, character: str) -> bool:
    """Whether `face` maps `character` to a drawing of it."""
    if face in ASCII_FACES and not (character.isascii() and character.isalnum()):
        return False
    return character in _character_map(face)


@functools.cache
def draw(face: str, character: str) -> Image.Image:
    """The undistorted drawing: on the baseline, its ink centred between left and right.

    Args:
        face: one of FACES.
        character: a character that the face has.

    Returns:
        A grey image, ink 255 on 0, twice the final resolution and with a margin around the frame.

    Raises:
        ValueError: the face lacks the character.
    """
    if not has_character(face, character):
        raise ValueError(f"character: {character!r} is not in typeface {face}; choose one that is")
    side = (IMAGE_SIZE + 2 * _MARGIN) * _OVERSAMPLING
    drawing = Image.new("L", (side, side))
    baseline = (BASELINE + _MARGIN) * _OVERSAMPLING
    font = _font(face)
    ImageDraw.Draw(drawing).text((side / 2, baseline), character, 255, font, anchor="ms")
    left, _, right, _ = drawing.getbbox() or (0, 0, side, side)
    return ImageChops.offset(drawing, (side - left - right) // 2, 0)


def random_image(faces: Sequence[str], character: str, rng: np.random.Generator) -> Image.Image:
    """A random image of `character` in one of `faces`.

    Args:
        faces: names of typefaces that have the character.
        character: what to draw.
        rng: the only source of randomness.

    Returns:
        An RGB image, 32x32.
    """
    mask = _distort(draw(faces[rng.integers(len(faces))], character), rng)
    alpha = np.asarray(mask, np.float32)[..., None] / 255
    dark, light = rng.uniform(0, COLOUR_RANGE, 3), rng.uniform(1 - COLOUR_RANGE, 1, 3)
    ink, ground = (dark, light) if rng.random() < 0.5 else (light, dark)
    slope_x, slope_y = rng.uniform(-GRADIENT, GRADIENT, 2).astype(np.float32)
    image = ground.astype(np.float32) + alpha * (ink - ground).astype(np.float32)
    image += (slope_x * _RAMP[None, :] + slope_y * _RAMP[:, None])[..., None]
    image += np.float32(rng.uniform(0, NOISE)) * rng.standard_normal(image.shape, np.float32)
    return Image.fromarray((255 * image.clip(0, 1) + 0.5).astype(np.uint8))


def _distort(drawing: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Rotates, shears, scales, shifts and blurs a drawing into a 32x32 mask."""
    angle, shear, scale, right, down = rng.uniform(-1, 1, 5) * _DISTORTION
    scale = 1 + scale
    cosine, sine = np.cos(angle), np.sin(angle)
    # Pillow asks where each pixel of the output comes from: the inverse of shear, then rotation.
    inverse = np.array([[cosine - shear * sine, -sine - shear * cosine], [sine, cosine]]) / scale
    side = IMAGE_SIZE * _OVERSAMPLING
    offset = drawing.width / 2 - inverse @ (side / 2 + _OVERSAMPLING * np.array([right, down]))
    coefficients = np.column_stack([inverse, offset]).ravel()
    image = drawing.transform(
        (side, side), Image.Transform.AFFINE, coefficients.tolist(), Image.Resampling.BILINEAR
    )
    return image.reduce(_OVERSAMPLING).filter(ImageFilter.GaussianBlur(rng.uniform(0, BLUR)))


def overlap(face: str, characters: Sequence[str]) -> np.ndarray:
    """How alike drawings of one face are: intersection over union of their ink.

    All share one em size and one baseline and are centred as in the images, at the resolution of
    the images, so that a letter and its larger capital differ.

    Args:
        face: one of FACES.
        characters: C characters that the face has.

    Returns:
        [C, C] in [0, 1]; 1 for the same drawing.
    """
    ink = np.stack(
        [np.asarray(draw(face, c).reduce(_OVERSAMPLING), np.float64).ravel() for c in characters]
    )
    # With a + b = sum and |a - b| = difference: min = (sum - difference) / 2, max likewise.
    difference = cdist(ink, ink, "cityblock")
    total = ink.sum(axis=1)
    both = np.add.outer(total, total)
    return (both - difference) / (both + difference)
