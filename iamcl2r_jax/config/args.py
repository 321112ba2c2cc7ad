"""Options of a config file, as in --config=configs/NAME.py:option=value,option=value."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from absl import flags


class ConfigArgError(flags.Error):
    """An option after the colon cannot work; the message is one line.

    Not a ValueError: to those, raised in a config file, ml_collections adds a traceback.
    """


@dataclasses.dataclass(frozen=True)
class Free:
    """An option that takes any value which `read` takes.

    Attributes:
      shown: the value in messages, such as DIR.
      read: makes the value of what is written; raises ValueError if it cannot.
      default: its value if it is not given; None if it must be.
    """

    shown: str
    read: Callable[[str], Any] = str
    default: Any = None


def parse(arg: str | None, choices: Mapping[str, Mapping[str, Any] | Free]) -> dict[str, Any]:
    """Reads what a config file is given after the colon.

    Args:
      arg: "option=value,option=value"; None or "" for the defaults. In the value of a
        `Free` option, a comma that no "option=" follows is part of it.
      choices: for each option its values, as written, and what each stands for, the first being
        the default; or `Free`.

    Returns:
      For each option what its value stands for.

    Raises:
      ConfigArgError: naming the option, its value and what would be right.
    """
    known = ", ".join(
        f"{name}={values.shown if isinstance(values, Free) else '|'.join(values)}"
        for name, values in choices.items()
    )
    given = {}
    for part in _parts(arg or "", choices):
        option, separator, value = part.partition("=")
        if option not in choices or not separator:
            raise ConfigArgError(f"config option {part!r} is unknown; the options are {known}")
        if option in given:
            raise ConfigArgError(f"config option {option} is given twice")
        given[option] = _read(option, value, choices[option])
    defaults = {
        option: values.default if isinstance(values, Free) else next(iter(values.values()))
        for option, values in choices.items()
    }
    chosen = defaults | given
    for option, value in chosen.items():
        if value is None:
            raise ConfigArgError(f"config option {option} is missing; the options are {known}")
    return chosen


def _parts(arg: str, choices: Mapping[str, Any]) -> list[str]:
    parts = []
    for part in arg.split(",") if arg else ():
        last = parts[-1].partition("=")[0] if parts else ""
        if isinstance(choices.get(last), Free) and not re.match(r"\w+=", part):
            parts[-1] += f",{part}"  # of a path, say
        else:
            parts.append(part)
    return parts


def _read(option: str, value: str, values: Mapping[str, Any] | Free) -> Any:
    if isinstance(values, Free):
        try:
            return values.read(value)
        except ValueError:
            raise ConfigArgError(
                f"config option {option}={value}: must be {values.shown}"
            ) from None
    if value not in values:
        raise ConfigArgError(f"config option {option}={value}: must be one of {', '.join(values)}")
    return values[value]
