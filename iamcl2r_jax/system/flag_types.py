"""Kinds of command-line flags; defining one imports nothing heavy."""

import importlib
from collections.abc import Callable

from absl import flags

from iamcl2r_jax.system import paths


class _Parser(flags.ArgumentParser):
    def __init__(self, read: Callable[[str], str]):
        self.parse = read


class _ListParser(flags.ListParser):
    def __init__(self, read: Callable[[str], str]):
        super().__init__()
        self._read = read

    def parse(self, argument: str | list[str]) -> list[str]:
        return [self._read(item) for item in super().parse(argument)]


def _one_of(registry: str, *also: str) -> Callable[[str], str]:
    def read(name: str) -> str:
        module, _, attribute = registry.partition(":")
        known = (*also, *getattr(importlib.import_module(module), attribute))
        if name not in known:
            raise ValueError(f"{name!r} is not one of {', '.join(known)}")
        return name

    return read


def path(name: str, default: str | None, help_string: str) -> flags.FlagHolder:
    """Defines a flag that takes a path; see `paths.expand`."""
    return flags.DEFINE(_Parser(paths.expand), name, default, help_string)


def several_paths(name: str, default: str | None, help_string: str) -> flags.FlagHolder:
    """Defines a flag that takes paths with commas between them; see `paths.expand`."""
    parser, serializer = _ListParser(paths.expand), flags.CsvListSerializer(",")
    return flags.DEFINE(parser, name, default, help_string, serializer=serializer)


def name_in(registry: str, name: str, default: str | None, help_string: str) -> flags.FlagHolder:
    """Defines a flag that takes a name of a registry, which is imported to check one.

    Args:
      registry: "package.module:NAME", whose keys are the choices.
      name: of the flag.
      default: one of the choices, or None.
      help_string: of the flag.
    """
    read = _one_of(registry)
    parser = _Parser(lambda given: given if given == default else read(given))
    listed = f"{help_string} --{name}=? lists the choices."
    return flags.DEFINE(parser, name, default, listed)


def several_names_in(registry: str, name: str, help_string: str) -> flags.FlagHolder:
    """Defines a flag, empty by default, of names in a registry with commas between them, or all."""
    parser, serializer = _ListParser(_one_of(registry, "all")), flags.CsvListSerializer(",")
    listed = f"{help_string} --{name}=? lists the choices."
    return flags.DEFINE(parser, name, [], listed, serializer=serializer)
