"""The classes of the glyph sets: which characters, in which order, in which typefaces.

No two classes of the three sets may be the same drawing. Greek Alpha, Cyrillic A and Latin A are
one drawing in every face, so what is drawn like a Latin letter or a digit is no class at all: an
external model never trains on a stream or evaluation class under another name. Of drawings that
Greek, Cyrillic and the symbols share, one is kept (Pi, not Pe or the product sign).

The lists were chosen with `rendering.overlap`: over the faces that hold both, the median overlap
of any two classes is below MAX_OVERLAP; the nearest pairs are O and Q, H and Pi. Also left out, by
eye, is what differs from another class by a detail (Ze and 3, nu and v) or, between symbols, by
size alone (the diamond suit and the diamond). Small and capital letters of one form (c and C, ж and
Ж) differ by size, which the images preserve; 0 and O differ by width and, in DejaVu Sans Mono, by
the mark in the 0.
"""

import string

from iamcl2r_jax.data import rendering

LATIN = tuple(string.ascii_uppercase + string.ascii_lowercase)
DIGITS = tuple(string.digits)

MAX_OVERLAP = 0.85  # intersection over union of ink; two classes above it would be twins

_GREEK = "ΓαΔβΞγΠδΣεΦζΨηΩλϞμϠξϑπϖσϝςϟτϡφϱχϰψω"
_CYRILLIC = "БдДжЖвИлЛмЦЧфШцЪчЫшЭъЮыЯэЂюЉяЊђҠљҤњѢѪҡҥѫи"
_SIGNS = "&?@#%$§¶€£¥₦₩₪₫₹†‡¿½¾«»⁂©№™¤₴₲"
_OPERATORS = "+∀≠∫⊕≤ℵ∂≈∞⊢∇÷∠≡⊆∃≪⊗∴ℶ±∝⊞≥∮⊣∉⋈≜∋⊇≫⊥ℷ∵⊠≺⊎∬⊨≻⊓℘"
_ARROWS = "←↗⇑↩↺⇄↓↖⇒↰↯↘⇐↪↻↑⇓↙→↱↕⇅↣⇝⇉"
_SHAPES = "■☆♠♪◐♀▲◇☺♈⌘●♫♉◧☿♥♭◢♃☎□♊★♮◓♂⚅♋☠▼♄♡◑♌☯♬◤♅◆♍☀♆♣◨♏☢◒♐◎♇♘◥♑⌂♩◣☻♁☮▤✈♖⚓♨"


def _interleaved(*groups: str) -> tuple[str, ...]:
    """Merges the groups so that every prefix holds of each its proportional share."""
    places = [
        ((i + 0.5) / len(group), order, character)
        for order, group in enumerate(groups)
        for i, character in enumerate(group)
    ]
    return tuple(character for _, _, character in sorted(places))


# Pre-training takes the first n classes, hence the order.
EXTERNAL = _interleaved(_GREEK, _CYRILLIC, _SIGNS, _OPERATORS, _ARROWS, _SHAPES)

_ALL = frozenset(LATIN + DIGITS + EXTERNAL)
# Here I and l are both a plain stroke.
_WITHOUT_SERIFS = frozenset(
    ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique", "cmss10")
)
# Here small Cyrillic is cursive, in forms close to Latin letters: и is drawn as u.
_CURSIVE = frozenset(
    ("DejaVuSerif-Italic", "DejaVuSerif-BoldItalic", "STIXGeneralItalic", "STIXGeneralBolIta")
)


def faces(character: str) -> tuple[str, ...]:
    """The typefaces in which a class is drawn: those that hold it as a drawing of its own.

    Args:
        character: a class of LATIN, DIGITS or EXTERNAL.

    Returns:
        Names of typefaces, in the order of `rendering.FACES`.

    Raises:
        ValueError: the character is no class.
    """
    if character not in _ALL:
        raise ValueError(f"character: {character!r} is no class of LATIN, DIGITS or EXTERNAL")
    unclear: frozenset[str] = frozenset()
    if character in "Il":
        unclear = _WITHOUT_SERIFS
    elif character in _CYRILLIC and character.islower():
        unclear = _CURSIVE
    return tuple(
        face
        for face in rendering.FACES
        if face not in unclear and rendering.has_character(face, character)
    )
