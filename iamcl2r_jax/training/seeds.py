"""Several seeds of one experiment as a batch: what differs between them has a leading axis."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from iamcl2r_jax.evaluation.intervals import mean_and_std
from iamcl2r_jax.training.step import TaskData, axes_of_seeds


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
    return jax.tree.map(
        lambda axis, *of_seeds: of_seeds[0] if axis is None else stacked(of_seeds),
        axes_of_seeds(data[0]),
        *data,
        is_leaf=lambda axis: axis is None,
    )


def of_seed(tree: Any, index: int, num_seeds: int) -> Any:
    """The part of one seed in what `stacked` made of several."""
    return tree if num_seeds == 1 else jax.tree.map(lambda leaf: leaf[index], tree)


def summary(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over the seeds of AC and AA (in percent), by evaluation."""
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
