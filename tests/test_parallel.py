"""Eight virtual devices compute what one does. In a process of its own: devices are for life."""

import os
import pathlib
import subprocess
import sys

import pytest

from iamcl2r_jax.system import parallel

PROGRAM = """
import dataclasses
import sys

import chex
import jax
import numpy

sys.path.insert(0, sys.argv[1])
import test_training
from fitting import fitted
from iamcl2r_jax.data.streaming import HostDataset
from iamcl2r_jax.evaluation.features import FeatureExtractor
from iamcl2r_jax.system import parallel
from iamcl2r_jax.training.step import CompiledEpoch
from iamcl2r_jax.data import augment
from iamcl2r_jax.system import runtime

assert jax.device_count() == 8
program = test_training.make_program()
split = dataclasses.replace(program, batch_sharding=parallel.batch_sharding(program.batch_size))
given = test_training.make_arguments(program)
def trained(p, dataset, epochs, rate):
    data = test_training.task_data(given | {"dataset": dataset})
    arguments = given["variables"], data, [rate] * epochs, jax.random.key(0)
    return fitted(CompiledEpoch(p), *arguments, steps_per_call=2)[-1]


(one, position), (eight, eight_position) = (
    trained(p, given["dataset"], epochs=17, rate=0.01) for p in (program, split)
)
one_metrics, eight_metrics = (
    {name: numpy.mean([epoch[name] for epoch in p.history]) for name in p.history[0]}
    for p in (position, eight_position)
)
chex.assert_trees_all_close(eight_metrics, one_metrics, rtol=1e-4)
chex.assert_trees_all_close(eight, one, rtol=1e-3, atol=1e-4)

# Streamed images, split over the devices, give what those on each of them give.
host = HostDataset(*map(numpy.asarray, (given["dataset"].images, given["dataset"].labels)))
resident, streamed = (
    trained(split, dataset, epochs=1, rate=0.1) for dataset in (given["dataset"], host)
)
chex.assert_trees_all_equal(streamed[0], resident[0])
assert streamed[1] == resident[1]

# Features: two calls, the last batch not full.
extractor = FeatureExtractor(program.model, program.image_options)
images = numpy.random.default_rng(0).integers(0, 256, (2100, 16, 16, 3), numpy.uint8)
alone = jax.jit(program.model.apply)(
    given["variables"], augment.normalize_images(images, program.image_options)
)
numpy.testing.assert_allclose(
    extractor(given["variables"], images), alone, rtol=1e-4, atol=1e-5 * abs(alone).max()
)
with runtime.measure_compilation() as again:
    extractor(given["variables"], images)
assert again.seconds == 0
asked = []
extractor._features_of_batches = lambda _, batches, count: asked.append(batches) or numpy.zeros(
    (*batches.shape[:2], 3)
)
extractor(given["variables"], images)
assert {shard.data.shape[1] for batches in asked for shard in batches.addressable_shards} == {32}
assert parallel.local_sharding(12) is None

try:
    parallel.batch_sharding(12)
except ValueError as error:
    assert "train.batch_size=12: must be a multiple of 8" in str(error)
else:
    raise AssertionError("12 images were split over 8 devices")
"""


def test_eight_devices_compute_what_one_does():
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    subprocess.run(
        [sys.executable, "-c", PROGRAM, pathlib.Path(__file__).parent],
        env=os.environ | {"XLA_FLAGS": flags},
        check=True,
        timeout=300,
    )


def test_one_device_needs_no_sharding():
    if parallel.jax.device_count() > 1:
        pytest.skip("several devices")
    assert parallel.batch_sharding(7) is None
    assert parallel.local_sharding(7) is None
