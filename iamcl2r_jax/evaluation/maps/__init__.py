"""Maps after the fact: from the features of one model to those of another, fitted on pairs.

A map goes from a source to a target. Queries of the new model are mapped into the old space (source
new, target old), and the gallery is left as it is; or a stored gallery is mapped forward (source
old, target new), without its images. Conventions are those of `linear`.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from iamcl2r_jax.evaluation.maps import fan, linear, trained
from iamcl2r_jax.evaluation.maps.linear import Params
from iamcl2r_jax.system.errors import InputError

QUERIES, GALLERY = "queries", "gallery"  # what a map is applied to
_ROWS_AT_ONCE = 8192


@dataclasses.dataclass(frozen=True)
class Map:
    """A family of maps.

    Attributes:
      fit: maps (source [N, S], target [N, D], key) to parameters; further keyword arguments are the
        map's options. Its docstring has equation and source.
      apply: maps (parameters, features [N, S]) to [N, D].
      title: a few words for a table.
      equal_widths: whether S and D must be the same.
      uses_target: whether `apply` also takes the target model's own features [N, D] of the same
        images. Such a map serves queries alone, and both models run for each of them.
    """

    fit: Callable[..., Params]
    apply: Callable[..., jax.Array]
    title: str
    equal_widths: bool = False
    uses_target: bool = False

    def directions(self) -> tuple[str, ...]:
        """What it can be applied to."""
        return (QUERIES,) if self.uses_target else (QUERIES, GALLERY)


MAPS: dict[str, Map] = {
    "procrustes": Map(linear.procrustes_fit, linear.affine_apply, "orthogonal Procrustes"),
    "scaled_procrustes": Map(
        linear.scaled_procrustes_fit, linear.affine_apply, "Procrustes, centred and scaled"
    ),
    "rotation": Map(
        linear.rotation_fit, linear.affine_apply, "rotation e^P, P skew", equal_widths=True
    ),
    "ridge": Map(linear.ridge_fit, linear.affine_apply, "ridge-regularised affine"),
    "low_rank": Map(linear.low_rank_fit, linear.low_rank_apply, "low-rank affine"),
    "residual_mlp": Map(trained.residual_mlp_fit, trained.residual_mlp_apply, "residual MLP"),
    "lambda_orthogonal": Map(trained.lambda_orthogonal_fit, linear.affine_apply, "λ-orthogonal"),
    "slerp": Map(
        linear.slerp_fit, linear.slerp_apply, "slerp, identity to Procrustes", equal_widths=True
    ),
    "slerp_both": Map(
        linear.procrustes_fit,
        linear.slerp_both_apply,
        "slerp, both models' queries",
        uses_target=True,
    ),
    "fan": Map(fan.fan_fit, fan.apply, "network of FAN"),
}


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A map with its parameters.

    Attributes:
      name: key of `MAPS`.
      fit_seconds: what the fit took, its compilation aside.
    """

    name: str
    params: Params
    fit_seconds: float = 0.0

    def __call__(self, features: np.ndarray, own: np.ndarray | None = None) -> np.ndarray:
        """Features [N, S] as the target model's, float32 [N, D]; `own` as in `Map.uses_target`."""
        chosen = MAPS[self.name]
        given = (features, own) if chosen.uses_target else (features,)
        if len(features) <= _ROWS_AT_ONCE:
            return np.asarray(chosen.apply(self.params, *map(jnp.asarray, given)))
        parts = []
        for start in range(0, len(features), _ROWS_AT_ONCE):
            rows = [part[start : start + _ROWS_AT_ONCE] for part in given]
            count = len(rows[0])
            # Padded to one shape, so that nothing is compiled for the rest.
            rows = [np.pad(part, [(0, _ROWS_AT_ONCE - count), (0, 0)]) for part in rows]
            parts.append(np.asarray(chosen.apply(self.params, *rows))[:count])
        return np.concatenate(parts)

    def seconds_per_query(self, query: np.ndarray, own: np.ndarray, repeats: int = 20) -> float:
        """Median time to map a single feature, of queries [Q, S] and the target model's [Q, D]."""
        self(query[:1], own[:1])
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            self(query[:1], own[:1])
            times.append(time.perf_counter() - start)
        return float(np.median(times))

    @property
    def nbytes(self) -> int:
        """Bytes of its parameters."""
        return sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(self.params))


def check_names(names: str | list[str]) -> list[str]:
    """The maps asked for: "all", or their names.

    Raises:
      InputError: for a name that is not in `MAPS`.
    """
    names = [names] if isinstance(names, str) else list(names)
    if names == ["all"]:
        return list(MAPS)
    for name in names:
        if name not in MAPS:
            raise InputError(f"maps={name}: unknown map; choose all or some of {', '.join(MAPS)}")
    return list(dict.fromkeys(names))


def fit(
    name: str,
    source: np.ndarray,
    target: np.ndarray,
    *,
    seed: int = 0,
    options: Mapping[str, float] | None = None,
) -> Fitted:
    """Fits a map on pairs of features.

    Args:
      name: key of `MAPS`.
      source: what it maps from, [N, S]; row n shows the same image as that of `target`.
      target: what it maps to, [N, D].
      seed: of its random parts.
      options: keyword arguments of the map's own `fit`.

    Raises:
      InputError: for a map that does not exist, pairs that are empty, not finite or of differing
        numbers, widths that the map cannot join, or a fit that is not finite.
    """
    check_names([name])
    source, target = (np.asarray(side, np.float32) for side in (source, target))
    if source.ndim != 2 or target.ndim != 2 or not source.size or not target.size:
        raise InputError(
            f"pairs: expected non-empty features [N, D], got {list(source.shape)} and "
            f"{list(target.shape)}"
        )
    if len(source) != len(target):
        raise InputError(
            f"pairs: {len(source)} rows of one model, {len(target)} of the other; row n must show "
            "the same image in both"
        )
    if not (np.isfinite(source).all() and np.isfinite(target).all()):
        raise InputError("pairs: features must be finite, got NaN or infinity")
    if MAPS[name].equal_widths and source.shape[1] != target.shape[1]:
        raise InputError(
            f"map {name}: widths {source.shape[1]} and {target.shape[1]} differ; it needs equal "
            "ones, as procrustes, ridge, low_rank, residual_mlp and others do not"
        )
    pairs = jnp.asarray(source), jnp.asarray(target), jax.random.key(seed)
    program = MAPS[name].fit.lower(*pairs, **(options or {})).compile()
    start = time.perf_counter()
    params = jax.block_until_ready(program(*pairs))
    fitted = Fitted(name, jax.device_get(params), time.perf_counter() - start)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(fitted.params)):
        raise InputError(f"map {name}: its fit on {len(source)} pairs is not finite")
    return fitted
