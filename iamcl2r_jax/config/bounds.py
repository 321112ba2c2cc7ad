"""The check that a configuration holds the fields of `fields`, and each what it may hold."""

import difflib
from typing import Any

from ml_collections import ConfigDict

from iamcl2r_jax.system.errors import InputError
from iamcl2r_jax.system.values import ANYTHING, Each, Value


def check(value: Any, expected: Any, field: str = "") -> None:
    """Checks that a tree holds the fields expected, and each what it may hold.

    Args:
      value: what the field holds; sections are ConfigDicts.
      expected: a section of `fields`, or what a field may hold.
      field: dotted name of the field; "" for a whole configuration.

    Raises:
      InputError: naming the first field that is missing, unknown or wrong, its value and what
        would be right.
    """
    if isinstance(expected, tuple):
        _, expected = expected
    if expected is ANYTHING:
        return
    if isinstance(expected, Value):
        if not expected.accepts(value):
            raise InputError(f"{field}={shown(value)}: must be {expected.describe()}")
        return
    if callable(expected):
        expected = expected()
    if not isinstance(value, ConfigDict):
        names = f" {', '.join(expected)}" if isinstance(expected, dict) else ""
        raise InputError(f"{field}={shown(value)}: must be a ConfigDict with the fields{names}")
    prefix = f"{field}." if field else ""
    if isinstance(expected, Each):
        expected = dict.fromkeys(value, expected.value)
    for name in sorted(expected.keys() - set(value)):
        raise InputError(f"{prefix}{name}: missing field; start from config.default()")
    for name in sorted(set(value) - expected.keys(), key=str):
        near = difflib.get_close_matches(str(name), expected)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(expected)}"
        raise InputError(f"{prefix}{shown(name)[1:-1]}: unknown field; {hint}")
    for name, of_name in expected.items():
        check(value[name], of_name, f"{prefix}{name}")


def shown(value: Any) -> str:
    """What a message shows of any value: short, printable and on one line."""
    try:
        text = " ".join(repr(value).split())[:100]
    except Exception:  # of a foreign object, or of a number with more digits than Python prints
        text = f"a {type(value).__name__}"
    return text if text.isprintable() else ascii(text)[1:-1]
