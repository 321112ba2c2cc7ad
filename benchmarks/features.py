"""Feature extraction against PyTorch's, on the same images and as many threads.

    python benchmarks/features.py [--batches=4] [--width=64]

Whole ResNet-18, batches of 256 images of 32x32, from uint8 images in memory to features in memory.
Both sides' features must agree before they are timed.

ratio: ours / PyTorch eager in its faster memory layout. Goal: at most 1.0.
"""

import statistics

import harness
import jax
import numpy as np
import synthetic
import torch
import torch_baseline

from iamcl2r_jax import models
from iamcl2r_jax.evaluation.features import FeatureExtractor

BATCH_SIZE = 256  # that the extractor runs


def main(argv: list[str] | None = None):
    options = harness.parser(__doc__, repeats=20)
    options.add_argument("--batches", type=int, default=4, help="batches measured together")
    options.add_argument("--width", type=int, default=64, help="channels of the first stage")
    args = options.parse_args(argv)
    jax.config.update("jax_platforms", "cpu")  # as PyTorch here; GPUs have gpu_protocol.py
    width, num_features = args.width, 1023
    if args.small:
        width, num_features, args.batches = 4, 31, 1
    torch.set_num_threads(1 if args.small else harness.cores())
    model = models.create("resnet18", num_features, width=width)
    variables = synthetic.random_variables(model)
    image_options = synthetic.image_options()
    images = synthetic.images(args.batches * BATCH_SIZE, 10).images
    extract = FeatureExtractor(model, image_options)
    tensors = torch.from_numpy(images)
    networks = {
        layout: torch_baseline.network(variables, layout) for layout in torch_baseline.LAYOUTS
    }

    def theirs(layout):
        return torch_baseline.extract(
            networks[layout], tensors, image_options, layout, BATCH_SIZE
        ).numpy()

    for layout in networks:
        ours = extract(variables, images)
        np.testing.assert_allclose(theirs(layout), ours, rtol=1e-3, atol=1e-4 * np.abs(ours).max())
    actions = {"ours": lambda: extract(variables, images)}
    actions |= {f"PyTorch, {layout}": lambda at=layout: theirs(at) for layout in networks}
    seconds = {
        name: [value / args.batches for value in values]
        for name, values in harness.in_turn(actions, args.repeats).items()
    }
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    rows = [(f"{name}, a batch", harness.milliseconds(v)) for name, v in seconds.items()]
    ratio = medians.pop("ours") / min(medians.values())
    figures = {"seconds_per_batch": seconds, "batch_size": BATCH_SIZE, "width": width}
    figures["torch"] = torch.__version__
    return harness.finish("features", rows, figures, ratio, args)


if __name__ == "__main__":
    main()
