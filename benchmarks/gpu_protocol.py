"""The paper's whole protocol on one GPU, against a PyTorch loop of common shape.

    python benchmarks/gpu_protocol.py [--tasks=7] [--epochs=70] [--dtype=bfloat16] [--no-torch]

Random images in the shape of CIFAR100R/10: 30,000 to train on in 7 or 31 tasks, 70 epochs each,
with a memory and replacements as in the paper, then the evaluation of every model on 60,000 images.
Wall time from the images in memory to the matrix, compilation and saving included, and the peak of
device memory until then. Training and loading of external models are not part of it: random
networks take their place.

The PyTorch side trains some epochs of one task in the official code's shape, `DataLoader`s and the
loss read after every step, in float32; its time a step times the protocol's number of steps is
compared with our training alone. It needs a PyTorch that knows the GPU.

Without a GPU it runs --small only, and says that it measured no GPU.

ratio: our training time / PyTorch's; 1 / 10 is the goal. Without PyTorch, wall time / goal of 60 s
for 7 tasks or 120 s for 31.
"""

import tempfile
import time

import harness
import jax
import synthetic
import traces

from iamcl2r_jax.config import recipes
from iamcl2r_jax.data.sampling import steps_per_epoch
from iamcl2r_jax.data.sources import Evaluation
from iamcl2r_jax.training import lifelong, results

_GOALS = {"7": 60.0, "31": 120.0}  # seconds of wall time on one H200
_NO_GPU = "not measured on a GPU here"


def protocol_config(args):
    """The paper's protocol, or one that a CPU finishes in seconds."""
    config = recipes.cifar100r(*recipes.CIFAR100R_TASKS[args.tasks], dtype=args.dtype)
    config.train.epochs = args.epochs
    if args.small:
        config.num_slots, config.model.options.width = 128, 4
        config.train.epochs, config.train.batch_size = 1, 16
        config.memory_per_class = 1
    return config


def run(config, per_class: int, evaluation: Evaluation) -> dict[str, float]:
    """Seconds of training and evaluation, by the procedures of a run; traces and passes."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as workdir:
        context = traces.context_of(config, 100, per_class, workdir)
        lifelong.train_stream([context], workdir)
        trained = time.perf_counter()
        _, passes = results.evaluate(context, {"random": evaluation})
    ended = time.perf_counter()
    return {
        "train": trained - started,
        "evaluate": ended - trained,
        "total": ended - started,
        "traces": context.programs.traces(),
        "passes": passes,
        "steps": config.train.epochs * _steps(config, per_class),
    }


def _steps(config, per_class: int) -> int:
    """Steps of one epoch of every task."""
    total, seen = 0, 0
    while seen < 100:
        new = config.stream.increment if seen else config.stream.initial_classes
        new = min(new, 100 - seen)
        memory = seen * config.memory_per_class
        total += steps_per_epoch(new * per_class, memory, config.train.batch_size)
        seen += new
    return total


def torch_seconds_per_step(config, args) -> tuple[float | None, str]:
    """Time of a step of the official shape, or why there is none."""
    try:
        import torch
        import torch_baseline
    except ImportError:
        return None, "PyTorch is not installed"
    if not args.small and not torch.cuda.is_available():
        return None, "this PyTorch does not know the GPU"
    batch_size = config.train.batch_size
    case = synthetic.hoc_case(
        width=config.model.options.width,
        num_slots=config.num_slots,
        batch_size=batch_size,
        num_new=4 * batch_size if args.small else 4500,
        num_memory=2 * batch_size if args.small else 800,
    )
    trainer = torch_baseline.Trainer.of(
        case.variables,
        case.data,
        case.program.image_options,
        batch_size,
        learning_rate=1e-3,
        layout="channels_last",
        device="cuda" if torch.cuda.is_available() else "cpu",
    )
    steps = (int(case.data.new.size) + int(case.data.memory.size)) // batch_size
    _, seconds = torch_baseline.official_loop(trainer, case.data, args.torch_epochs, args.workers)
    return seconds / (steps * args.torch_epochs), ""


def main(argv: list[str] | None = None):
    options = harness.parser(__doc__)
    options.add_argument("--tasks", choices=_GOALS, default="7")
    options.add_argument("--epochs", type=int, default=70)
    options.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    options.add_argument("--no-torch", action="store_true", help="ours alone")
    options.add_argument("--torch-epochs", type=int, default=3, help="epochs measured of PyTorch")
    options.add_argument("--workers", type=int, default=4, help="processes of a DataLoader")
    args = options.parse_args(argv)
    on_gpu = jax.default_backend() == "gpu"
    if not on_gpu and not args.small:
        print(f"{_NO_GPU}: JAX finds none; --small shows that the program works")
        return None
    if on_gpu and jax.device_count() > 1:
        print(f"{_NO_GPU}: JAX sees {jax.device_count()}; set CUDA_VISIBLE_DEVICES to one of them")
        return None
    if args.small:
        args.workers, args.torch_epochs = 0, 1
    config = protocol_config(args)
    per_class, queries, gallery = (2, 40, 20) if args.small else (300, 50_000, 10_000)
    seconds = run(config, per_class, synthetic.evaluation(queries, gallery))
    peak = harness.peak_memory()  # before the PyTorch side's own arrays
    rows = [] if on_gpu else [("device", _NO_GPU)]
    rows += [(name, f"{seconds[name]:.1f} s") for name in ("train", "evaluate", "total")]
    rows += [(name, str(seconds[name])) for name in ("traces", "passes", "steps")]
    rows.append(("peak device memory", harness.gigabytes(peak)))
    theirs, why = (None, "left out") if args.no_torch else torch_seconds_per_step(config, args)
    figures = {"ours": seconds, "torch_seconds_per_step": theirs, "measured_on_gpu": on_gpu}
    figures["peak_bytes_in_use"] = peak
    if theirs is None:
        rows.append(("PyTorch", why))
        ratio = seconds["total"] / _GOALS[args.tasks]
    else:
        rows.append(("PyTorch, official shape, all steps", f"{theirs * seconds['steps']:.1f} s"))
        ratio = seconds["train"] / (theirs * seconds["steps"])
    return harness.finish(f"gpu_protocol_{args.tasks}", rows, figures, ratio, args)


if __name__ == "__main__":
    main()
