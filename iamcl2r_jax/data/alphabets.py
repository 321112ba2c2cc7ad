"""The classes of the glyph sets: which characters, in which order, in which typefaces.

No two classes may be the same drawing, and none has two roles: an external model never trains on a
stream or evaluation class under another name. Greek Alpha, Cyrillic A and Latin A are one drawing
in every face, so only the Latin one is a class.

POOL was chosen as follows. Candidates are the characters that at least four of matplotlib's sixteen
Unicode faces draw whole and as something else than the box of a missing character, without Latin
and mathematical letters, digits, combining and modifying marks, letters with accents, circled,
squared and small forms, negated operators, box drawings, Braille, dominoes, cards and emoticons.
In the order of the groups below and of their code points, a candidate was kept if its overlap
(`rendering.overlap`) with every Latin letter, digit and candidate kept before is at most
MAX_OVERLAP in each of COMPARED_FACES, as drawn and with all drawings brought to one size. Of the
larger groups an evenly spaced part was then taken. Latin letters and digits are as they are: O and
Q, 1 and l overlap by more.
"""

import string

from iamcl2r_jax.data import rendering

LATIN = tuple(string.ascii_uppercase + string.ascii_lowercase)
DIGITS = tuple(string.digits)

MAX_OVERLAP = 0.65  # intersection over union of ink
COMPARED_FACES = ("DejaVuSans", "DejaVuSansMono", "DejaVuSerif", "STIXGeneral")

_GREEK = "ͱͳͷΞΣΦΨαεζλνξτυφχωϐϒϓϗϚϛϝϞϟϠϡϢϦϧϨϬϭϮϷϻϽ"
_CYRILLIC = "ЂЉЊЎДЖЛЧШЪЫЮзфъыьяђљѤѦѨѪѭѮѯѰѱѴѸѹѺѼҊҌҒҔҜҠҦҨҺҼӉӌӍӠԀԂԃԄԅԆԈԊԎԏԔԖԗԘԙԠꙄꙍꙐꙔꙖꙗꙢꙣꙤꙦꙫꙬꙮ"
_ARMENIAN = "ԳԴԶԸԹԽԾԿՀՃՄՆՇՊՎՒՔՖ՞դթժլձճմնշչևﬓﬕ"
_GEORGIAN = "ႠႡႤႥႦႧႨႩႫႬႮႯႰႲႳႴႵႼႽႿჀჁჂჄჅაბგდეზკლოჟტუფყშცწჭჯჰჱჲჳჵჸჹჺⴀⴁⴂⴃⴄⴅⴆⴈⴋⴌⴏⴒⴓⴕⴟⴡⴢⴤⴥ"
_HEBREW = "׆אבגדזךלמנעףפץצקרש"
_LAO = "ກຂຄງຈຍຕຖທນຜຟຣລສຫະາຳຽເແໂໃໄໆໜ"
_CANADIAN = (
    "ᐂᐊᐌᐎᐏᐓᐗᐞᐡᐣᐤᐦᐫᐮᐴᑁᑈᑍᑐᑘᑙᑝᑞᑢᑥᑬᑱᑴᑵᑷᑺᑿᒀᒈᒋᒠᒡᒣᒤᒩᒬᒮᒯᒳᒶᒼᓀᓄᓇᓊᓋᓑᓒᓔᓘᓜᓝᓟᓢᓧᓨᓭᓮᓱᓳᓶᓷᓹᓽᔁ"
    "ᔂᔇᔐᔓᔕᔘᔙᔝᔞᔢᔥᔧᔪᔭᔯᔱᔲᔶᔹᔽᕂᕋᕍᕏᕒᕙᕝᕦᕴᕷᕹᖁᖃᖑᖕᖠᖦᖨᖬᙯ"
)
_SIGNS = (
    '"$&()/?@{}£¤§©«»¿҂‒‖“‡•‣※‼‿⁀⁂⁇⁈⁊⁋⁏⁑⁓⁕⁙⁛⁜⁞₠₡₦₧₨₪€₭₯₲₵₹℀℃℄℆℉℔℗℠℡™℮ℵℶℸ℺℻⌂'
    "⌅⌇⌒⌓⌔⌘⌜⌞⌦⌧⌨⌫⌵⍽⎀⎃⎇⎈⏎⏏⏥␢❮❯❳⟅⟆⦃⦇⦈⦗⸟⸢⸣⸥⸮"
)
_OPERATORS = (
    "+<>±×⅋∂∃∏∓∝∠∢∫∭∲∴∷∹∺∾∿≀≈≍≎≞≣≤≦≧≪≬≶≷≻≼≽≿⊃⊆⊌⊏⊐⊔⊢⊣⊧⊨⊩⊰⊱⊶⊻⊼⊽⊿⋂⋆⋈⋋⋏⋐⋑⋓⋔⋕⋙⋜⋝"
    "⋟⋲⋹⋻⋿⌠⎝⎞⎠⎥⎧⎨▷◁◸◺♯⟜⥼⥽⥾⧎⧏⧐⧺⧻⨒⩽⩾⪅⪏⪐⪑⪓⪔⪕⪙⪚⪛⪞⪟⪠⪳⪴⪷⫹⫺"
)
_ARROWS = (
    "←↑↓↖↗↘↝↫↬↭↰↱↲↴↵↶↷↹↺↾↿⇅⇆⇋⇎⇑⇖⇗⇤⇥⇨⇪⇬⇱⇲⇶⇿⌁⌃⌤⎋➛➢➨➫➬➮➯➱➳➵➶➺➼➾⟰⟲⤀⤊⤐⤓⤛⤜⤝⤣⤤⤥⤦⤴⤵⤷⤹⤺⤻⤼⤿⥀⥆⥇⥱⥵⥷⥺⥻⨗⬂⬆⬈⬉⬎⬐⬑"
)
_SHAPES = (
    "□▦▭△▻▼◀◅◇◍◎◐◑◓◘◡◢◤◥◯☁☂☃☆☈☉☊☌☍☎☏☔☕☖☘☜☝☟☡☢☣☤☦☧☩☫☬☭☮☸☽☾☿♁♂♃♅♆♈♉♋♌♍♏♐♑♒♔♕♖"
    "♗♙♚♛♝♞♠♡♧♨♩♭♮♰♱♳♽♾⚁⚇⚐⚑⚓⚔⚕⚖⚘⚙⚚⚜⚞⚟⚡⚣⚤⚥⚧⚨⚩⚭⚯⚱⚳⚴⚶⚷⚸⛁⛂✁✂✄✆✇✉✌✍✎✐✑✓✖✙✚✠✧✩✫✬✰"
    "✲✵✾✿❀❁❅❇❈❍❝❞❡❥❦❧⬚⭔𝌀"
)


def _interleaved(*groups: str) -> tuple[str, ...]:
    """Merges the groups so that every prefix holds of each its proportional share."""
    places = [
        ((i + 0.5) / len(group), order, character)
        for order, group in enumerate(groups)
        for i, character in enumerate(group)
    ]
    return tuple(character for _, _, character in sorted(places))


SCRIPTS = {
    "Greek": _GREEK,
    "Cyrillic": _CYRILLIC,
    "Armenian": _ARMENIAN,
    "Georgian": _GEORGIAN,
    "Hebrew": _HEBREW,
    "Lao": _LAO,
    "Canadian": _CANADIAN,
    "signs": _SIGNS,
    "operators": _OPERATORS,
    "arrows": _ARROWS,
    "shapes": _SHAPES,
}
POOL = _interleaved(*SCRIPTS.values())
# Letters stand for roles: external, unseen, stream, clutter. The last are drawn behind the others.
_ROLES = _interleaved("e" * 600, "u" * 100, "s" * 48, "c" * 100)


def _with_role(role: str) -> tuple[str, ...]:
    return tuple(c for c, its_role in zip(POOL, _ROLES, strict=True) if its_role == role)


EXTERNAL = _with_role("e")  # pre-training takes the first 100, 300 or 600
UNSEEN = _with_role("u")
STREAM = _interleaved("".join(LATIN), "".join(_with_role("s")))
CLUTTER = tuple(c for c in _with_role("c") if rendering.has_character(rendering.CLUTTER_FACE, c))

_ALL = frozenset(LATIN + DIGITS + POOL)
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
        character: a class of LATIN, DIGITS or POOL.

    Returns:
        Names of typefaces, in the order of `rendering.FACES`.

    Raises:
        ValueError: the character is not a class.
    """
    if character not in _ALL:
        raise ValueError(f"character: {character!r} is not a class of LATIN, DIGITS or POOL")
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
