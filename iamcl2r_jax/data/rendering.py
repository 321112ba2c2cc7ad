"""Draws one character of one typeface: the plain drawing, and a random image of it.

The typefaces are those that matplotlib ships. Faces without Unicode letters (the STIX size
variants, cmsy10, cmex10, the placeholder face) are left out, and so is cmmi10, whose digits are
old-style and hang from the baseline.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

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
CLUTTER_FACE = "DejaVuSans"

IMAGE_SIZE = 32  # pixels
CAP_HEIGHT = 16  # height of an H in pixels, the same in every face; the widest classes just fit
BASELINE = 23  # row of the baseline in an undistorted image
_OVERSAMPLING = 2
_MARGIN = 4  # pixels kept around the drawing for what a rotation or shift brings into view

_RAMP = np.linspace(-1, 1, IMAGE_SIZE, dtype=np.float32)


@dataclasses.dataclass(frozen=True)
class Variation:
    """How much the images of a character vary; each number is the largest, drawn uniformly.

    The defaults were chosen by what external models on 100, 300 and 600 characters find of the
    digits, each alone in its own gallery: about 60, 75 to 85 and 90 % (56 to 64, 82 to 85 and 88 to
    90 % over four sets of models), so that errors come from variation within a class, as in natural
    images. A person still reads most images.

    Attributes:
        rotation: degrees, either way.
        shear: of a unit of height, either way.
        scale: of the size, either way.
        shift: pixels along each axis, either way.
        blur: std of a Gaussian, in pixels.
        colour_range: channels of the dark colour lie below this, of the light one above 1 - this,
            of the range [0, 1].
        gradient: change of brightness from the middle to an edge along each axis, either way.
        noise: std of the noise of a pixel.
        clutter: number of faint characters behind the glyph, at any angle.
        clutter_strength: least and largest part of the way from the ground to a random colour.
        cover_probability: of a rectangle in a random colour over the glyph.
        cover_side: least and largest side of that rectangle, in pixels.
    """

    rotation: float = 21.0
    shear: float = 0.25
    scale: float = 0.19
    shift: float = 3.5
    blur: float = 1.15
    colour_range: float = 0.425
    gradient: float = 0.13
    noise: float = 0.13
    clutter: int = 2
    clutter_strength: tuple[float, float] = (0.2, 0.6)
    cover_probability: float = 0.25
    cover_side: tuple[int, int] = (4, 11)


VARIED = Variation()
# As in version 1: N stays N, 6 stays 6, and x-height stays below cap height in every face.
CLEAN = Variation(
    rotation=12.0,
    shear=0.15,
    scale=0.08,
    shift=2.0,
    blur=0.8,
    colour_range=0.35,
    gradient=0.08,
    noise=0.06,
    clutter=0,
    cover_probability=0.0,
)


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


@functools.lru_cache(maxsize=4096)  # 26 MB; an image is drawn from few characters at a time
def draw(face: str, character: str) -> Image.Image:
    """The undistorted drawing: on the baseline, its ink centred between left and right.

    A grey image, ink 255 on 0, twice the final resolution and with a margin around the frame.
    Raises `ValueError` if the face lacks the character.
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


def random_image(
    faces: Sequence[str],
    character: str,
    rng: np.random.Generator,
    variation: Variation,
    clutter: Sequence[str] = (),
) -> Image.Image:
    """A random image of `character`, RGB, 32x32.

    Args:
        faces: names of typefaces that have the character.
        character: what to draw.
        rng: the only source of randomness.
        variation: how much images differ.
        clutter: characters of CLUTTER_FACE to draw behind it.
    """
    dark = rng.uniform(0, variation.colour_range, 3)
    light = rng.uniform(1 - variation.colour_range, 1, 3)
    ink, ground = (dark, light) if rng.random() < 0.5 else (light, dark)
    image = np.tile(ground.astype(np.float32), (IMAGE_SIZE, IMAGE_SIZE, 1))
    for _ in range(variation.clutter if clutter else 0):
        other = draw(CLUTTER_FACE, clutter[rng.integers(len(clutter))])
        angle, scale, right, down = rng.uniform(-1, 1, 4)
        mask = _transformed(
            other, np.pi * angle, 0.0, 1 + variation.scale * scale, 10 * right, 10 * down, 1
        )
        _blend(image, mask, rng.uniform(*variation.clutter_strength), rng.random(3))
    face = faces[rng.integers(len(faces))]
    _blend(image, _glyph(face, character, rng, variation), 1.0, ink)
    slope_x, slope_y = rng.uniform(-variation.gradient, variation.gradient, 2).astype(np.float32)
    image += (slope_x * _RAMP[None, :] + slope_y * _RAMP[:, None])[..., None]
    if rng.random() < variation.cover_probability:
        height, width = rng.integers(*variation.cover_side, 2, endpoint=True)
        top, left = rng.integers(IMAGE_SIZE - height + 1), rng.integers(IMAGE_SIZE - width + 1)
        image[top : top + height, left : left + width] = rng.random(3)
    noise = np.float32(rng.uniform(0, variation.noise))
    image += noise * rng.standard_normal(image.shape, np.float32)
    return Image.fromarray((255 * image.clip(0, 1) + 0.5).astype(np.uint8))


def _blend(image: np.ndarray, mask: Image.Image, strength: float, colour: np.ndarray) -> None:
    """Moves `image` [H, W, 3] towards `colour` in place, where `mask` has ink."""
    alpha = np.asarray(mask, np.float32)[..., None] * np.float32(strength / 255)
    image += alpha * (colour.astype(np.float32) - image)


def _glyph(
    face: str, character: str, rng: np.random.Generator, variation: Variation
) -> Image.Image:
    """The character rotated, sheared, scaled, shifted and blurred: a mask of 32x32."""
    angle, shear, scale, right, down = rng.uniform(-1, 1, 5)
    mask = _transformed(
        draw(face, character),
        np.deg2rad(variation.rotation * angle),
        variation.shear * shear,
        1 + variation.scale * scale,
        variation.shift * right,
        variation.shift * down,
        _OVERSAMPLING,
    )
    return mask.filter(ImageFilter.GaussianBlur(rng.uniform(0, variation.blur)))


def _transformed(
    drawing: Image.Image,
    angle: float,
    shear: float,
    scale: float,
    right: float,
    down: float,
    oversampling: int,
) -> Image.Image:
    """A drawing sheared, rotated (radians), scaled and shifted (pixels) into a 32x32 mask."""
    cosine, sine = np.cos(angle), np.sin(angle)
    # Pillow asks where each pixel of the output comes from: the inverse of shear, then rotation.
    inverse = np.array([[cosine - shear * sine, -sine - shear * cosine], [sine, cosine]])
    inverse *= _OVERSAMPLING / (scale * oversampling)
    side = IMAGE_SIZE * oversampling
    offset = drawing.width / 2 - inverse @ (side / 2 + oversampling * np.array([right, down]))
    coefficients = np.column_stack([inverse, offset]).ravel()
    image = drawing.transform(
        (side, side), Image.Transform.AFFINE, coefficients.tolist(), Image.Resampling.BILINEAR
    )
    return image if oversampling == 1 else image.reduce(oversampling)
