"""Options of a config file, as in --config=configs/NAME.py:option=value,option=value."""

from collections.abc import Mapping
from typing import Any

from absl import flags


class ConfigArgError(flags.Error):
    """An option after the colon cannot work; the message is one line.

    Not a ValueError: to those, raised in a config file, ml_collections adds a traceback.
    """


def parse(arg: str | None, choices: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Reads what a config file is given after the colon.

    Args:
      arg: "option=value,option=value"; None or "" for the defaults.
      choices: for each option its values, as written, and what each stands for; the first is the
        default.

    Returns:
      For each option what its value stands for.

    Raises:
      ConfigArgError: naming the option, its value and what would be right.
    """
    chosen = {option: next(iter(values.values())) for option, values in choices.items()}
    given = set()
    for part in arg.split(",") if arg else ():
        option, separator, value = part.partition("=")
        known = ", ".join(f"{name}={'|'.join(values)}" for name, values in choices.items())
        if option not in choices or not separator:
            raise ConfigArgError(f"config option {part!r} is unknown; the options are {known}")
        if value not in choices[option]:
            allowed = ", ".join(choices[option])
            raise ConfigArgError(f"config option {option}={value}: must be one of {allowed}")
        if option in given:
            raise ConfigArgError(f"config option {option} is given twice")
        given.add(option)
        chosen[option] = choices[option][value]
    return chosen
