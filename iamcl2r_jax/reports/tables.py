"""Tables of text as Markdown, which is also how they are printed, and as CSV."""

import csv
import io
from collections.abc import Sequence
from typing import Any


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table, titles first, as Markdown; padded, so that it can be read as it is."""
    lines = [[text.replace("|", "\\|") for text in line] for line in lines]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    rule = [f":{'-' * (widths[0] - 1)}", *(f"{'-' * (width - 1)}:" for width in widths[1:])]

    def padded(line):
        first, *others = zip(line, widths, strict=True)
        cells = [first[0].ljust(first[1]), *(text.rjust(width) for text, width in others)]
        return f"| {' | '.join(cells)} |\n"

    return "".join(map(padded, [lines[0], rule, *lines[1:]]))


def comma_separated(lines: Sequence[Sequence[Any]]) -> str:
    """A table as CSV; None is an empty field."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()
