"""The HOC train step against PyTorch's, on the same arrays and as many threads.

    python benchmarks/train_step.py [--batch-size=128] [--width=64] [--no-compile] [--two-teachers]

A step draws a batch from memory and new samples, augments it, runs the teacher and the student,
and updates the student. Ours is the program that a run trains with; PyTorch's is
`torch_baseline.py`, eager in both memory layouts, of which the faster counts, and by
`torch.compile`, which is shown beside it. Before timing, three steps of both on the same batches
must have the same losses. `--two-teachers` also measures a step of a task with replacement that the
replaced model teaches too, which is compared with ours.

ratio: ours / PyTorch eager. Goal: at most 0.8.
"""

import statistics
from collections.abc import Callable

import harness
import jax
import numpy as np
import synthetic
import torch
import torch_baseline

from iamcl2r_jax.data.augment import augmented_batch, normalize_images
from iamcl2r_jax.data.sampling import sample_batch, shuffled
from iamcl2r_jax.training.step import CompiledEpoch

_RATE = 0.01
_TOLERANCE = 1e-3  # of float32 losses after two updates; the first agrees to about 1e-6


def batches(case: synthetic.Case, key: jax.Array, number: int):
    """Images and labels of the first steps of an epoch, as `train_steps` draws them."""
    key_shuffle, key_steps = jax.random.split(key)
    new = shuffled(key_shuffle, case.data.new)
    for index in range(number):
        key_sample, key_augment = jax.random.split(jax.random.fold_in(key_steps, index))
        size, options = case.program.batch_size, case.program.image_options
        indices, _ = sample_batch(key_sample, index, new, case.data.memory, size)
        images = augmented_batch(key_augment, case.data.dataset.images, indices, options)
        yield np.array(images), np.array(case.data.dataset.labels[indices])


def assert_same_losses(
    case: synthetic.Case, epoch: CompiledEpoch, trainer: torch_baseline.Trainer
) -> list[tuple[float, float]]:
    """Three steps of both sides from the same parameters on the same batches: their losses."""
    key, state = jax.random.key(7), case.program.init_state(case.variables)
    samples = synthetic.drawn(case.data, key, case.program.batch_size)
    found = []
    for index, (images, labels) in enumerate(batches(case, key, 3)):
        state, sums, _ = epoch(state, case.data, samples, index, index + 1, _RATE, key)
        theirs = torch.from_numpy(images).permute(0, 3, 1, 2)
        theirs = theirs.contiguous(memory_format=torch_baseline.LAYOUTS[trainer.layout])
        loss = trainer.step(theirs, torch.from_numpy(labels).long())
        found.append((float(sums["loss"]), float(loss)))
    ours, theirs = zip(*found, strict=True)
    np.testing.assert_allclose(ours, theirs, rtol=_TOLERANCE)
    return found


def assert_same_images(case: synthetic.Case, trainer: torch_baseline.Trainer) -> None:
    """Both sides' augmentation of the same crops, mirrored and not."""
    margin = case.program.image_options.augment.keywords["padding"]
    raw = np.asarray(case.data.dataset.images[:2])
    shifts = torch.tensor([0, 2 * margin])[None, :, None].expand(2, 2, 1)
    mirrored = torch.tensor([[False], [True]])
    theirs = trainer.augmented(torch.arange(2), shifts, mirrored).permute(0, 2, 3, 1).numpy()
    ours = np.zeros_like(raw)
    ours[0, margin:, margin:] = raw[0, :-margin, :-margin]
    ours[1, :-margin, :-margin] = raw[1, margin:, margin:]
    ours[1] = ours[1, :, ::-1]
    expected = normalize_images(ours, case.program.image_options)
    np.testing.assert_allclose(theirs, expected, rtol=1e-5, atol=1e-5)


def compiled_steps(trainer: torch_baseline.Trainer) -> tuple[bool, str]:
    """Whether `torch.compile` works here, by one step; else what it said."""
    try:
        trainer.steps(1)
    except RuntimeError as error:  # what its compilers raise are such
        return False, str(error).strip().splitlines()[0]
    return True, ""


def our_steps(case: synthetic.Case, epoch: CompiledEpoch, number: int) -> Callable:
    """So many steps by the compiled program, going on from where the call before ended.

    As in a run, the batches are drawn before.
    """
    state, key = case.program.init_state(case.variables), jax.random.key(0)
    samples = synthetic.drawn(case.data, key, case.program.batch_size)

    def steps():
        nonlocal state, key
        key, here = jax.random.split(key)
        state, sums, _ = epoch(state, case.data, samples, 0, number, _RATE, here)
        jax.block_until_ready((state, sums))

    return steps


def main(argv: list[str] | None = None):
    options = harness.parser(__doc__, repeats=10)
    options.add_argument("--batch-size", type=int, default=128)
    options.add_argument("--width", type=int, default=64, help="channels of the first stage")
    options.add_argument("--steps", type=int, default=5, help="steps measured together")
    options.add_argument("--no-compile", action="store_true", help="leave out torch.compile")
    options.add_argument("--two-teachers", action="store_true", help="also with a second teacher")
    args = options.parse_args(argv)
    jax.config.update("jax_platforms", "cpu")  # as PyTorch here; GPUs have gpu_protocol.py
    torch.set_num_threads(1 if args.small else harness.cores())
    sizes = {"batch_size": args.batch_size, "width": args.width}
    if args.small:
        args.steps, args.no_compile = 2, True
        sizes = synthetic.SMALL
    case = synthetic.hoc_case(**sizes)
    epoch = CompiledEpoch(case.program)

    def trainer(layout, **options):
        given = case.variables, case.data, case.program.image_options, case.program.batch_size
        return torch_baseline.Trainer.of(*given, learning_rate=_RATE, layout=layout, **options)

    eager = {f"PyTorch eager, {layout}": trainer(layout) for layout in torch_baseline.LAYOUTS}
    losses = [assert_same_losses(case, epoch, theirs) for theirs in eager.values()]
    for theirs in eager.values():
        assert_same_images(case, theirs)
    actions = {"ours": our_steps(case, epoch, args.steps)}
    actions |= {name: lambda t=theirs: t.steps(args.steps) for name, theirs in eager.items()}
    if args.two_teachers:
        both = synthetic.hoc_case(**sizes, replaced_weight=0.5)
        actions["ours, two teachers"] = our_steps(both, CompiledEpoch(both.program), args.steps)
    rows, failure = [], "left out"
    if not args.no_compile:
        theirs = trainer("channels_last", compiled=True)
        works, failure = compiled_steps(theirs)
        if works:
            actions["PyTorch compiled"] = lambda: theirs.steps(args.steps)
    seconds = {
        name: [value / args.steps for value in values]
        for name, values in harness.in_turn(actions, args.repeats).items()
    }
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    rows = [(name, harness.milliseconds(values)) for name, values in seconds.items()]
    if failure:
        rows.append(("PyTorch compiled", failure))
    else:
        rows.append(("ours / compiled", f"{medians['ours'] / medians['PyTorch compiled']:.3f}"))
    if args.two_teachers:
        rows.append(("two / one", f"{medians['ours, two teachers'] / medians['ours']:.3f}"))
    rows.append(("losses of step 1", "{:.6f} and {:.6f}".format(*losses[0][0])))
    ratio = medians["ours"] / min(medians[name] for name in eager)
    figures = {"seconds_per_step": seconds, "losses": losses, "sizes": sizes}
    figures["torch"] = torch.__version__
    return harness.finish("train_step", rows, figures, ratio, args)


if __name__ == "__main__":
    main()
