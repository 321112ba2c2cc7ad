"""What a field of a configuration may hold, as data: a `Value`, `Each` or `ANYTHING`."""

import dataclasses
import inspect
import re
import typing
from collections.abc import Callable, Collection
from typing import Any

LARGEST = 2**53  # a larger number is a typing error, and exact in no float
_LONGEST = 1000  # characters of a string
_KINDS = (bool, int, float, str)


@dataclasses.dataclass(frozen=True)
class Value:
    """One value, or a tuple of such values.

    Attributes:
      kind: of a value: bool, int, float (which takes integers too) or str; object for any of these
        and tuples of them.
      interval: of a number, as in "[0, 1)"; infinity and NaN lie in none.
      choices: that a string must be one of; None for any printable string.
      pattern: of a string, and what it describes.
      length: None for one value; of a tuple its length, -1 for any.
      optional: whether it may be None.
    """

    kind: type
    interval: str = f"[{-LARGEST}, {LARGEST}]"
    choices: Collection[str] | None = None
    pattern: tuple[str, str] = (".*", "a string (printable, at most 1000 characters)")
    length: int | None = None
    optional: bool = False

    def accepts(self, value: Any) -> bool:
        """Whether a field may hold the value."""
        if value is None:
            return self.optional
        if self.length is None:
            return self._accepts_one(value)
        return (
            isinstance(value, tuple)
            and self.length in (-1, len(value))
            and all(map(self._accepts_one, value))
        )

    def _accepts_one(self, value: Any) -> bool:
        if self.kind is object:
            items = value if isinstance(value, tuple) else (value,)
            return any(all(map(Value(kind).accepts, items)) for kind in _KINDS)
        if type(value) is not self.kind and not (self.kind is float and type(value) is int):
            return False
        if self.kind is bool:
            return True
        if self.kind is str and self.choices is not None:
            return value in self.choices
        if self.kind is str:
            short = len(value) <= _LONGEST and value.isprintable()
            return short and re.fullmatch(self.pattern[0], value) is not None
        least, most = map(float, self.interval[1:-1].split(","))
        above = least < value or (least == value and self.interval[0] == "[")
        return above and (value < most or (value == most and self.interval[-1] == "]"))

    def describe(self) -> str:
        """What would be right, as it follows "must be"."""
        if self.kind is object:
            one = "True or False, a number, a string, or a tuple of such"
        elif self.kind is bool:
            one = "True or False"
        elif self.choices is not None:
            one = f"one of {', '.join(self.choices)}"
        elif self.kind is str:
            one = self.pattern[1]
        else:
            noun = "an integer" if self.kind is int else "a number"
            one = f"{noun} in {self.interval}".replace(str(LARGEST), "2**53")
        if self.length is not None:
            number = "a tuple" if self.length < 0 else f"a tuple of length {self.length}"
            one = f"{number}, each item {one}"
        return f"{one}, or None" if self.optional else one


def integer(least: int, most: int = LARGEST) -> Value:
    """An integer in [least, most]."""
    return Value(int, f"[{least}, {most}]")


def number(interval: str) -> Value:
    """A number in an interval such as "[0, 1)"."""
    return Value(float, interval)


def one_of(choices: Collection[str]) -> Value:
    """One of some strings; a registry may get further entries later."""
    return Value(str, choices=choices)


def several(value: Value, length: int = -1) -> Value:
    """A tuple of such values, of any length unless it is given."""
    return dataclasses.replace(value, length=length)


def options(function: Callable) -> dict[str, tuple[Any, Value]]:
    """The default of each option (keyword-only parameter) of a function, and what it may hold.

    That is the `Value` of its annotation, as in `Annotated[float, number("[0, 1]")]`; without one,
    any value of the kind of its default, or of the kind before None, as in `float | None`.
    """
    hints = typing.get_type_hints(function, include_extras=True)
    found = {}
    for name, default in defaults(function).items():
        hint = hints.get(name)
        parts = (hint, *typing.get_args(hint), type(default))
        given = [part for part in parts if isinstance(part, Value)]
        kinds = [part for part in parts if part in _KINDS]
        value = given[0] if given else Value(kinds[0] if kinds else object)
        found[name] = default, dataclasses.replace(value, optional=default is None)
    return found


def defaults(function: Callable) -> dict[str, Any]:
    """The options (keyword-only parameters) of a registered function, with their defaults."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


@dataclasses.dataclass(frozen=True)
class Each:
    """A section whose fields have any names, and values that are all alike."""

    value: Any


ANYTHING = None  # checked elsewhere, where its meaning is known
