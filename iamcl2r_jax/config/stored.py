"""Configurations in files: a Python file in `configs/`, or the JSON that a run has written."""

import runpy
from typing import Any

from ml_collections import ConfigDict

from iamcl2r_jax.system.errors import InputError


def load(file: str) -> ConfigDict:
    """The configuration in a file, as the flag --config gives it to a program; for notebooks.

    The file is "configs/NAME.py", or "configs/NAME.py:option=value,...". The configuration is
    locked: a field that it has not got cannot be set.
    """
    path, _, options = file.partition(":")
    get_config = runpy.run_path(path)["get_config"]
    return (get_config(options) if options else get_config()).lock()


def as_config(written: dict[str, Any], today: ConfigDict) -> ConfigDict:
    """A configuration from what a run has written as JSON; unused options are those of `today`.

    Raises `InputError` for names that no field can have.
    """
    try:
        config = ConfigDict(_with_tuples(written))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(" ".join(str(error).split())) from None
    _take_unused_options(config, today)
    return config


# Each names an entry of a registry, whose options lie beside it in, say, method_options.
_CHOICES = ("method", "optimizer", "augmentation")


def without_unused_options(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration without the options of methods, optimisers and the like not in use."""
    kept = {n: without_unused_options(v) if isinstance(v, dict) else v for n, v in config.items()}
    for choice in _CHOICES:
        if (field := f"{choice}_options") in kept:
            kept[field] = {kept[choice]: kept[field].get(kept[choice])}
    return kept


def _take_unused_options(config: ConfigDict, today: ConfigDict) -> None:
    for name in config:
        if isinstance(config[name], ConfigDict) and isinstance(today.get(name), ConfigDict):
            _take_unused_options(config[name], today[name])
    for choice in _CHOICES:
        field, name = f"{choice}_options", config.get(choice)
        options = config.get(field)
        if field in today and isinstance(options, ConfigDict) and isinstance(name, str):
            used = {name: options[name]} if name in options else {}
            config[field] = ConfigDict(today[field].to_dict() | used)


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
