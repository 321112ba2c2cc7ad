"""The images of a run: its stream and its evaluations, all checked."""

from ml_collections import ConfigDict

from iamcl2r_jax.data import sources
from iamcl2r_jax.data.sources import Evaluation, refuse_equal_sets
from iamcl2r_jax.data.stream import Stream, build_stream, split_tasks
from iamcl2r_jax.system.progress import Reporter


def stream_size(config: ConfigDict) -> tuple[int, int]:
    """Number of stream classes and of tasks, before any image is loaded."""
    num_classes = len(_stream_classes(config))
    tasks = split_tasks(num_classes, config.stream.initial_classes, config.stream.increment)
    return num_classes, len(tasks)


def _stream_classes(config: ConfigDict) -> tuple[str, ...]:
    """Names of the classes with training images; a folder may hold others in its other splits."""
    stream = config.stream
    return sources.describe(
        stream.dataset, stream.train_split, data_dir=config.data_dir or None
    ).class_names


def load_stream(config: ConfigDict) -> Stream:
    """The stream that the configuration describes, in memory."""
    options = {"image_size": config.image.size, "data_dir": config.data_dir or None}
    stream = config.stream
    train = sources.load(stream.dataset, stream.train_split, min_per_class=2, **options)
    test = sources.load(stream.dataset, stream.test_split, **options)
    classes = _stream_classes(config)
    if len(classes) < len(train.class_names):
        kept = [train.class_names.index(name) for name in classes]
        train, test = (sources.select_classes(images, kept) for images in (train, test))
    return build_stream(
        train,
        test,
        initial_classes=stream.initial_classes,
        increment=stream.increment,
        limit_per_class=stream.limit_per_class or None,
        class_order_seed=None if stream.class_order_seed < 0 else stream.class_order_seed,
    )


def load_evaluations(config: ConfigDict) -> dict[str, Evaluation]:
    """The open-set evaluations by name, in memory.

    Raises `InputError` if a set cannot be had, or every query of an evaluation is in its gallery.
    """
    options = {"image_size": config.image.size, "data_dir": config.data_dir or None}
    evaluations = {
        name: Evaluation(
            query=sources.load(e.dataset, e.query_split, **options),
            gallery=sources.load(e.dataset, e.gallery_split, **options),
        )
        for name, e in config.evaluations.items()
    }
    for name, evaluation in evaluations.items():
        field = f"evaluations.{name}.query_split={config.evaluations[name].query_split}"
        refuse_equal_sets(field, evaluation)
    return evaluations


ImageSets = tuple[Stream, dict[str, Evaluation]]  # all that a run reads


def report_passed_over(config: ConfigDict, reporter: Reporter) -> None:
    """Mentions what the folders of a run hold that is not read."""
    sets = {(config.stream.dataset, config.stream[f"{part}_split"]) for part in ("train", "test")}
    for evaluation in config.evaluations.values():
        sets |= {(evaluation.dataset, evaluation[f"{p}_split"]) for p in ("query", "gallery")}
    for dataset, split in sorted(sets):
        if line := sources.passed_over(dataset, split):
            reporter.message(line)


def digests(stream: Stream, evaluations: dict[str, Evaluation]) -> dict[str, str]:
    """SHA-256 of every image set of a run, images and labels, by its field in the configuration."""
    sets = {"stream.train_split": stream.train, "stream.test_split": stream.test}
    for name, evaluation in evaluations.items():
        sets[f"evaluations.{name}.query_split"] = evaluation.query
        sets[f"evaluations.{name}.gallery_split"] = evaluation.gallery
    return {name: images.digest() for name, images in sets.items()}
