"""What a comparison consists of: variants of one run, each with several seeds."""

import copy
import dataclasses
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from iamcl2r_jax.config import validate
from iamcl2r_jax.system import files
from iamcl2r_jax.system.errors import DamagedError, InputError

Overrides = dict[str, Any]  # values by dotted field of a run's configuration

BASE = "base"  # the variant of an ablation that changes nothing

# What a table's rows have in common, or what comes with its columns.
_COMMON = ("seed", "evaluations", "metrics")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One variant with one seed.

    Attributes:
      seed: of the run, and of its external models too if these vary, see `comparison`.
    """

    variant: str
    seed: int
    config: ConfigDict
    workdir: str

    @property
    def name(self) -> str:
        """Name of its directory."""
        return f"{self.variant}-seed{self.seed}"

    def results(self) -> dict[str, Any] | None:
        """What its finished run left; None if there is none.

        Raises:
          DamagedError: if it is not as it was written.
        """
        return files.read_json(os.path.join(self.workdir, "results.json"))

    def finished(self) -> bool:
        """Whether its run is finished; a run whose results are damaged is to make them again."""
        try:
            return self.results() is not None
        except DamagedError:
            return False

    def failure(self) -> str | None:
        """Why its last run failed; None if it did not, or was finished later."""
        failure = files.read_json(os.path.join(self.workdir, "failure.json"))
        return failure["error"] if failure and self.results() is None else None


def comparison(
    name: str, base: ConfigDict, variants: Mapping[str, Overrides] | None = None
) -> ConfigDict:
    """A comparison's configuration."""
    c = ConfigDict()
    c.name = name  # names the comparison and its default directory
    c.base = base  # the run that all are variants of
    c.seeds = (0, 1, 2)  # each variant is run with each of them
    # Whether external models made by a recipe are made with each seed, and not with the recipe's
    # own. If not, all runs start from the same ones, and the deviation over seeds says nothing
    # about other external models.
    c.vary_external_models = False
    # {variant: {dotted field of base: value}}, in the order of the tables.
    c.variants = ConfigDict(dict(variants or {}), allow_dotted_keys=True, sort_keys=False)
    # Ablations, {group: {"field": dotted field of base, "settings": its values}}, see `ablate`.
    c.groups = ConfigDict(sort_keys=False)
    return c


def ablate(config: ConfigDict, group: str, field: str, settings: Sequence[Any]) -> None:
    """Adds the variants that differ from the base in one field: a table and a curve of their own.

    A setting that is the base's own is the variant "base", which all groups share.

    Args:
      config: see `comparison`; it is added to.
      group: names the variants, the table and the curve.
      field, settings: dotted field of the base, and its values in the order of the table.
    """
    config.groups[group] = ConfigDict({"field": field, "settings": tuple(settings)})


def variants(config: ConfigDict) -> dict[str, Overrides]:
    """What each variant changes of the base, those of the groups after those named.

    Raises:
      InputError: if a variant has two meanings, or a group's field or setting cannot be.
    """
    found = {name: overrides.to_dict() for name, overrides in config.variants.items()}
    for group in config.groups:
        for variant, overrides in _group_overrides(config, group).items():
            if found.setdefault(variant, overrides) != overrides:
                raise InputError(f"variants.{variant}: groups.{group} makes one of that name")
    return found


def group_variants(config: ConfigDict, group: str) -> dict[str, str]:
    """For each setting of a group, as text, its variant."""
    field = config.groups[group].field
    return {
        str(overrides.get(field, _lookup(config.base, field))): variant
        for variant, overrides in _group_overrides(config, group).items()
    }


def _group_overrides(config: ConfigDict, group: str) -> dict[str, Overrides]:
    field, settings = config.groups[group].field, config.groups[group].settings
    if not isinstance(settings, tuple) or not settings:
        raise InputError(f"groups.{group}.settings={settings!r}: must be a tuple of values")
    found = {}
    for setting in settings:
        # Read back, so that 5 and 5.0 are one setting of a field that holds a float.
        value = _lookup(override(config.base, {field: setting}, f"groups.{group}"), field)
        variant = BASE if value == _lookup(config.base, field) else f"{group}-{value}"
        if variant in found:
            raise InputError(f"groups.{group}.settings={settings}: {value} is there twice")
        found[variant] = {} if variant == BASE else {field: value}
    return found


def override(base: ConfigDict, overrides: Overrides, what: str) -> ConfigDict:
    """A copy of a configuration with other values; what refers to a changed field follows it.

    Raises:
      InputError: naming `what`, if there is no such field, or it takes no such value.
    """
    config = copy.deepcopy(base)
    for field, value in overrides.items():
        parent, _, name = field.rpartition(".")
        try:
            section = _lookup(config, parent) if parent else config
            known = isinstance(section, ConfigDict) and name in section
        except (KeyError, TypeError):
            known = False
        if not known:
            raise InputError(f"{what}: base has no field {field!r}")
        try:
            section[name] = value
        except TypeError:
            kind = type(section[name]).__name__
            raise InputError(f"{what}: {field}={value!r}: must be of type {kind}") from None
    return config


def _lookup(config: ConfigDict, field: str) -> Any:
    for part in field.split("."):
        config = config[part]
    return config


def expand(config: ConfigDict, workdir: str) -> list[Cell]:
    """Every variant with every seed, one seed of all variants after the other.

    Raises:
      InputError: if the comparison or the configuration of any cell cannot work.
    """
    _check_name("name", config.name)
    seeds = config.seeds
    if not isinstance(seeds, tuple) or not seeds or len(set(seeds)) < len(seeds):
        raise InputError(f"seeds={seeds!r}: must be a tuple of different seeds, at least one")
    overrides_of = variants(config)
    if not overrides_of:
        raise InputError("variants: there is none; a comparison needs at least one")
    return [
        Cell(
            variant,
            seed,
            _cell_config(config, variant, overrides, seed),
            os.path.join(workdir, "cells", f"{variant}-seed{seed}"),
        )
        for seed in seeds
        for variant, overrides in overrides_of.items()
    ]


def _cell_config(config: ConfigDict, variant: str, overrides: Overrides, seed: int) -> ConfigDict:
    _check_name("variants", variant)
    for field in overrides:
        if field.split(".")[0] in _COMMON:
            raise InputError(f"variant {variant!r}: {field} must be the same for all variants")
    seeds = {"seed": seed}
    if config.vary_external_models:
        if "replacements.recipe.seed" in overrides:
            raise InputError(
                f"variant {variant!r}: replacements.recipe.seed: vary_external_models sets it"
            )
        seeds["replacements.recipe.seed"] = seed
    cell_config = override(config.base, overrides | seeds, f"variant {variant!r}")
    try:
        validate(cell_config)
    except InputError as error:
        raise InputError(f"variant {variant!r}: {error}") from None
    return cell_config


def _check_name(field: str, name: str) -> None:
    if not name or "/" in name or name.startswith("."):
        raise InputError(f"{field}: {name!r} must be a plain file name, it names directories")


def select(cells: Sequence[Cell], only: Collection[str] | None) -> list[Cell]:
    """The cells called for by variant or by name; all for None.

    Raises:
      InputError: if there is none of a name.
    """
    if only is None:
        return list(cells)
    for name in only:
        if not any(name in (cell.variant, cell.name) for cell in cells):
            known = ", ".join(dict.fromkeys(cell.variant for cell in cells))
            raise InputError(
                f"only={name}: must be a variant, or VARIANT-seedSEED of one; variants are {known}"
            )
    return [cell for cell in cells if cell.variant in only or cell.name in only]
