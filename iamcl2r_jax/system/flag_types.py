"""Kinds of command-line flags; defining one imports nothing heavy."""

import importlib

from absl import flags

from iamcl2r_jax.system import paths


class _PathParser(flags.ArgumentParser):
    def parse(self, argument: str) -> str:
        return paths.expand(argument)


class _PathsParser(flags.ListParser):
    def parse(self, argument: str | list[str]) -> list[str]:
        return [paths.expand(path) for path in super().parse(argument)]


def _refuse_unless_in(registry: str, name: str, also: tuple[str, ...] = ()) -> None:
    module, _, attribute = registry.partition(":")
    known = (*also, *getattr(importlib.import_module(module), attribute))
    if name not in known:
        raise ValueError(f"{name!r} is not one of {', '.join(known)}")


class _NameParser(flags.ArgumentParser):
    def __init__(self, default: str | None, registry: str):
        self._default, self._registry = default, registry

    def parse(self, argument: str) -> str:
        if argument != self._default:
            _refuse_unless_in(self._registry, argument)
        return argument


class _NamesParser(flags.ListParser):
    def __init__(self, registry: str):
        super().__init__()
        self._registry = registry

    def parse(self, argument: str | list[str]) -> list[str]:
        names = super().parse(argument)
        for name in names:
            _refuse_unless_in(self._registry, name, ("all",))
        return names


def path(name: str, default: str | None, help_string: str) -> flags.FlagHolder:
    """Defines a flag that takes a path; see `paths.expand`."""
    return flags.DEFINE(_PathParser(), name, default, help_string)


def several_paths(name: str, default: str | None, help_string: str) -> flags.FlagHolder:
    """Defines a flag that takes paths with commas between them; see `paths.expand`."""
    return flags.DEFINE(
        _PathsParser(), name, default, help_string, serializer=flags.CsvListSerializer(",")
    )


def name_in(registry: str, name: str, default: str | None, help_string: str) -> flags.FlagHolder:
    """Defines a flag that takes a name of a registry, which is imported to check one.

    Args:
      registry: "package.module:NAME", whose keys are the choices.
      name: of the flag.
      default: one of the choices, or None.
      help_string: of the flag.
    """
    listed = f"{help_string} --{name}=? lists the choices."
    return flags.DEFINE(_NameParser(default, registry), name, default, listed)


def several_names_in(registry: str, name: str, help_string: str) -> flags.FlagHolder:
    """Defines a flag that takes names of a registry with commas between them, or all.

    Args:
      registry: "package.module:NAME", whose keys are the choices.
      name: of the flag; without it, there are none.
      help_string: of the flag.
    """
    listed = f"{help_string} --{name}=? lists the choices."
    serializer = flags.CsvListSerializer(",")
    return flags.DEFINE(_NamesParser(registry), name, [], listed, serializer=serializer)
