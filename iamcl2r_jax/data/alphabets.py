"""The classes of the glyph sets: which characters, in which order, in which typefaces.

No two classes may be the same drawing, and none has two roles: an external model never trains on a
stream or evaluation class under another name. Greek Alpha, Cyrillic A and Latin A are one drawing
in every face, so only the Latin one is a class.

POOL was chosen as follows. Candidates are the characters that at least four of matplotlib's sixteen
Unicode faces draw whole and as something else than the box of a missing character, without Latin
and mathematical letters, digits, combining and modifying marks, letters with accents, circled,
squared and small forms, negated operators, box drawings, Braille, dominoes, cards and emoticons.
In the order of the groups below and of their code points, a candidate was kept if its overlap,
intersection over union of ink, with every Latin letter, digit and candidate kept before is at most
0.65 in each of DejaVu's three upright faces and STIX, as drawn and with all drawings brought to one
size (`tests/test_glyphs.py`). Of the larger groups an evenly spaced part was then taken. Latin
letters and digits are as they are: O and Q, 1 and l overlap by more.
"""

import string

from iamcl2r_jax.data import rendering

LATIN = tuple(string.ascii_uppercase + string.ascii_lowercase)
DIGITS = tuple(string.digits)

SCRIPTS = {
    "Greek": "ͱͳͷΞΣΦΨαεζλνξτυφχωϐϒϓϗϚϛϝϞϟϠϡϢϦϧϨϬϭϮϷϻϽ",
    "Cyrillic": "ЂЉЊЎДЖЛЧШЪЫЮзфъыьяђљѤѦѨѪѭѮѯѰѱѴѸѹѺѼҊҌҒҔҜҠҦҨҺҼӉӌӍӠԀԂԃԄԅԆԈԊԎԏԔԖԗԘԙԠꙄꙍꙐꙔꙖꙗꙢꙣꙤꙦꙫꙬꙮ",
    "Armenian": "ԳԴԶԸԹԽԾԿՀՃՄՆՇՊՎՒՔՖ՞դթժլձճմնշչևﬓﬕ",
    "Georgian": "ႠႡႤႥႦႧႨႩႫႬႮႯႰႲႳႴႵႼႽႿჀჁჂჄჅაბგდეზკლოჟტუფყშცწჭჯჰჱჲჳჵჸჹჺⴀⴁⴂⴃⴄⴅⴆⴈⴋⴌⴏⴒⴓⴕⴟⴡⴢⴤⴥ",
    "Hebrew": "׆אבגדזךלמנעףפץצקרש",
    "Lao": "ກຂຄງຈຍຕຖທນຜຟຣລສຫະາຳຽເແໂໃໄໆໜ",
    "Canadian": (
        "ᐂᐊᐌᐎᐏᐓᐗᐞᐡᐣᐤᐦᐫᐮᐴᑁᑈᑍᑐᑘᑙᑝᑞᑢᑥᑬᑱᑴᑵᑷᑺᑿᒀᒈᒋᒠᒡᒣᒤᒩᒬᒮᒯᒳᒶᒼᓀᓄᓇᓊᓋᓑᓒᓔᓘᓜᓝᓟᓢᓧᓨᓭᓮᓱᓳᓶᓷᓹᓽᔁ"
        "ᔂᔇᔐᔓᔕᔘᔙᔝᔞᔢᔥᔧᔪᔭᔯᔱᔲᔶᔹᔽᕂᕋᕍᕏᕒᕙᕝᕦᕴᕷᕹᖁᖃᖑᖕᖠᖦᖨᖬᙯ"
    ),
    "signs": (
        '"$&()/?@{}£¤§©«»¿҂‒‖“‡•‣※‼‿⁀⁂⁇⁈⁊⁋⁏⁑⁓⁕⁙⁛⁜⁞₠₡₦₧₨₪€₭₯₲₵₹℀℃℄℆℉℔℗℠℡™℮ℵℶℸ℺℻⌂'
        "⌅⌇⌒⌓⌔⌘⌜⌞⌦⌧⌨⌫⌵⍽⎀⎃⎇⎈⏎⏏⏥␢❮❯❳⟅⟆⦃⦇⦈⦗⸟⸢⸣⸥⸮"
    ),
    "operators": (
        "+<>±×⅋∂∃∏∓∝∠∢∫∭∲∴∷∹∺∾∿≀≈≍≎≞≣≤≦≧≪≬≶≷≻≼≽≿⊃⊆⊌⊏⊐⊔⊢⊣⊧⊨⊩⊰⊱⊶⊻⊼⊽⊿⋂⋆⋈⋋⋏⋐⋑⋓⋔⋕⋙⋜⋝"
        "⋟⋲⋹⋻⋿⌠⎝⎞⎠⎥⎧⎨▷◁◸◺♯⟜⥼⥽⥾⧎⧏⧐⧺⧻⨒⩽⩾⪅⪏⪐⪑⪓⪔⪕⪙⪚⪛⪞⪟⪠⪳⪴⪷⫹⫺"
    ),
    "arrows": (
        "←↑↓↖↗↘↝↫↬↭↰↱↲↴↵↶↷↹↺↾↿⇅⇆⇋⇎⇑⇖⇗⇤⇥⇨⇪⇬⇱⇲⇶⇿⌁⌃⌤⎋➛➢➨➫➬➮➯➱➳➵➶➺➼➾⟰⟲⤀⤊⤐⤓⤛⤜⤝⤣⤤⤥⤦⤴⤵⤷⤹⤺⤻⤼⤿⥀⥆⥇⥱⥵⥷⥺⥻⨗⬂⬆⬈⬉⬎⬐⬑"
    ),
    "shapes": (
        "□▦▭△▻▼◀◅◇◍◎◐◑◓◘◡◢◤◥◯☁☂☃☆☈☉☊☌☍☎☏☔☕☖☘☜☝☟☡☢☣☤☦☧☩☫☬☭☮☸☽☾☿♁♂♃♅♆♈♉♋♌♍♏♐♑♒♔♕♖"
        "♗♙♚♛♝♞♠♡♧♨♩♭♮♰♱♳♽♾⚁⚇⚐⚑⚓⚔⚕⚖⚘⚙⚚⚜⚞⚟⚡⚣⚤⚥⚧⚨⚩⚭⚯⚱⚳⚴⚶⚷⚸⛁⛂✁✂✄✆✇✉✌✍✎✐✑✓✖✙✚✠✧✩✫✬✰"
        "✲✵✾✿❀❁❅❇❈❍❝❞❡❥❦❧⬚⭔𝌀"
    ),
}


def _interleaved(*groups: str) -> tuple[str, ...]:
    """Merges the groups so that every prefix holds of each its proportional share."""
    places = [
        ((i + 0.5) / len(group), order, character)
        for order, group in enumerate(groups)
        for i, character in enumerate(group)
    ]
    return tuple(character for _, _, character in sorted(places))


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

    Raises `ValueError` for a character that is no class of LATIN, DIGITS or POOL.
    """
    if character not in _ALL:
        raise ValueError(f"character: {character!r} is not a class of LATIN, DIGITS or POOL")
    unclear: frozenset[str] = frozenset()
    if character in "Il":
        unclear = _WITHOUT_SERIFS
    elif character in SCRIPTS["Cyrillic"] and character.islower():
        unclear = _CURSIVE
    return tuple(
        face
        for face in rendering.FACES
        if face not in unclear and rendering.has_character(face, character)
    )
