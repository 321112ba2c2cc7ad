"""Colours of plots and pages."""

import numpy as np

# Okabe and Ito's colours, told apart with any colour vision; black is left to axes and marks.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C8C00", "#7F7F7F")
# Matplotlib's viridis at equal distances; between them, colours are interpolated.
VIRIDIS = (
    *("#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c"),
    *("#28ae80", "#5ec962", "#addc30", "#fde725"),
)
_BRIGHT = 0.6  # above this share of the colour map, black is read better than white


def heat_colours(
    values: np.ndarray, limits: tuple[float, float] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Colours of the cells of a heat map and of the numbers on them, as #rrggbb, shaped as values.

    The lower limit is darkest and the upper brightest, by default the extremes of the finite
    values; what is not finite is white.
    """
    values = np.asarray(values, float)
    finite = np.isfinite(values)
    low, high = limits or (values[finite].min(), values[finite].max())
    shares = np.where(finite, values - low, 0) / (high - low or 1)
    anchors = np.asarray([list(bytes.fromhex(colour[1:])) for colour in VIRIDIS])
    at = np.linspace(0, 1, len(VIRIDIS))
    cells = np.stack([np.interp(shares, at, channel) for channel in anchors.T], axis=-1)
    cells[~finite] = 255
    colours = np.apply_along_axis(
        lambda rgb: f"#{bytes(rgb).hex()}", -1, cells.round().astype("u1")
    )
    return colours, np.where(finite & (shares <= _BRIGHT), "#ffffff", "#000000")
