"""Configurations in files: a Python file in `configs/`, or the JSON that a run has written."""

import runpy
from typing import Any

from ml_collections import ConfigDict

from iamcl2r_jax.config.checks import validate
from iamcl2r_jax.config.fields import default
from iamcl2r_jax.system.errors import InputError


def load(file: str) -> ConfigDict:
    """The configuration in a file, as the flag --config gives it to a program; for notebooks.

    Args:
      file: "configs/NAME.py", or "configs/NAME.py:option=value,...".

    Returns:
      The configuration, locked: a field that it has not got cannot be set.
    """
    path, _, options = file.partition(":")
    get_config = runpy.run_path(path)["get_config"]
    return (get_config(options) if options else get_config()).lock()


def recorded(written: dict[str, Any]) -> ConfigDict:
    """The configuration that a run has written as JSON, checked.

    Options of other methods are those of today: a method added or removed leaves runs of all
    others readable.

    Raises:
      InputError: naming the field, its value and what would be right.
    """
    try:
        config = ConfigDict(_with_tuples(written))
    except (KeyError, TypeError, ValueError) as error:  # of names that no field can have
        raise InputError(" ".join(str(error).split())) from None
    method, options = config.get("method"), config.get("method_options")
    if isinstance(options, ConfigDict) and isinstance(method, str) and method in options:
        config.method_options = default().method_options
        config.method_options[method] = options[method]
    validate(config)
    return config


def _with_tuples(value: Any) -> Any:
    """What was made of JSON, with tuples for its lists."""
    if isinstance(value, dict):
        return {name: _with_tuples(item) for name, item in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def differences(first: dict[str, Any], second: dict[str, Any], prefix: str = "") -> list[str]:
    """Fields in which two configurations differ, as "field: value there, value here"."""
    found = []
    for key in sorted(first.keys() | second.keys()):
        name = prefix + key
        a, b = first.get(key), second.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, name + ".")
        elif a != b:
            found.append(f"{name}: {a!r} there, {b!r} here")
    return found
