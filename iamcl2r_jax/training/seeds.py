"""Several seeds of one experiment as a batch: what differs between them has a leading axis."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from iamcl2r_jax.evaluation.intervals import mean_and_std
from iamcl2r_jax.training.step import TaskData


def one_seed(config: ConfigDict, seed: int) -> ConfigDict:
    """The configuration of the run with one of the seeds."""
    config = config.copy_and_resolve_references()
    config.seed, config.num_seeds = seed, 1
    return config


def stacked(trees: Sequence[Any]) -> Any:
    """One tree of the leaves of all, with a leading axis; a single tree as it is."""
    if len(trees) == 1:
        return trees[0]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def stacked_data(data: Sequence[TaskData]) -> TaskData:
    """What a `CompiledEpoch` of several seeds takes, from the data of each."""
    first = data[0]
    if len(data) == 1:
        return first
    replaced = first.replaced
    if replaced is not None:
        replaced = replaced.replace(variables=stacked([d.replaced.variables for d in data]))
    return first.replace(
        old=first.old.replace(variables=stacked([d.old.variables for d in data])),
        replaced=replaced,
        memory=first.memory.replace(indices=stacked([d.memory.indices for d in data])),
        classes=first.classes.replace(
            centres=stacked([d.classes.centres for d in data]),
            boundaries=stacked([d.classes.boundaries for d in data]),
        ),
    )


def of_seed(tree: Any, index: int, num_seeds: int) -> Any:
    """The part of one seed in what `stacked` made of several."""
    return tree if num_seeds == 1 else jax.tree.map(lambda leaf: leaf[index], tree)


def summary(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over the seeds.

    Args:
      results: of each seed's run.

    Returns:
      "name", "method", "seeds", and under "evaluations" for each of them "ac" and "aa" (in
      percent), see `intervals.mean_and_std`.
    """
    return {
        "name": results[0]["name"],
        "method": results[0]["method"],
        "seeds": [result["seed"] for result in results],
        "evaluations": {
            name: {
                figure: mean_and_std([result["evaluations"][name][figure] for result in results])
                for figure in ("ac", "aa")
            }
            for name in results[0]["evaluations"]
        },
    }
