"""Colours of plots and pages."""

import numpy as np

from iamcl2r_jax import compatibility

# Okabe and Ito's colours, told apart with any colour vision; black is left to axes and marks.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C8C00", "#7F7F7F")
# Matplotlib's viridis at equal distances; between them, colours are interpolated.
VIRIDIS = (
    *("#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c"),
    *("#28ae80", "#5ec962", "#addc30", "#fde725"),
)
_CELL, _FRAME = 24, 3  # pixels of a pair in a picture of a matrix, and of its frame
_BRIGHT = 0.6  # above this share of the colour map, black is read better than white


def heat_colours(
    values: np.ndarray, limits: tuple[float, float] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Colours of the cells of a heat map and of the numbers on them, as #rrggbb, shaped as values.

    The lower limit is darkest and the upper brightest, by default the extremes of the finite
    values; what is not finite is white.
    """
    cells, bright = _heat_cells(np.asarray(values, float), limits)
    colours = np.apply_along_axis(lambda rgb: f"#{bytes(rgb).hex()}", -1, cells)
    return colours, np.where(bright, "#000000", "#ffffff")


def matrix_picture(matrix) -> np.ndarray:
    """A compatibility matrix as pixels: a square for each pair, framed where it is incompatible.

    Args:
      matrix: [T, T]; NaN or None above the diagonal.

    Returns:
      uint8 [24 T, 24 T, 3].
    """
    values = np.asarray(matrix, float)
    cells, _ = _heat_cells(values, None)
    picture = cells.repeat(_CELL, axis=0).repeat(_CELL, axis=1)
    edge = np.ones((_CELL, _CELL), bool)
    edge[_FRAME:-_FRAME, _FRAME:-_FRAME] = False
    incompatible = np.tril(~compatibility.is_compatible(values), -1)
    picture[np.kron(incompatible, edge)] = _rgb(COLOURS[1])
    return picture


def _heat_cells(values, limits) -> tuple[np.ndarray, np.ndarray]:
    """Colours of cells, uint8 [..., 3], and where black is read better on them than white."""
    finite = np.isfinite(values)
    low, high = limits or (values[finite].min(), values[finite].max())
    shares = np.where(finite, values - low, 0) / (high - low or 1)
    anchors, at = np.asarray([_rgb(colour) for colour in VIRIDIS]), np.linspace(0, 1, len(VIRIDIS))
    cells = np.stack([np.interp(shares, at, channel) for channel in anchors.T], axis=-1)
    cells[~finite] = 255
    return cells.round().astype(np.uint8), ~finite | (shares > _BRIGHT)


def _rgb(colour: str) -> list[int]:
    """Red, green and blue of #rrggbb."""
    return list(bytes.fromhex(colour[1:]))
