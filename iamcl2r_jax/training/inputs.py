"""What a run needs before it starts: its stream, evaluations and external models, all checked."""

from ml_collections import ConfigDict

from iamcl2r_jax import methods
from iamcl2r_jax.config import SHIPPED, makes_external_models
from iamcl2r_jax.data import sources
from iamcl2r_jax.data.stream import Stream, build_stream, split_tasks
from iamcl2r_jax.evaluation.features import Evaluation, refuse_equal_sets
from iamcl2r_jax.models import checkpoints
from iamcl2r_jax.models.stored import EXTERNAL, ImageInput, Model, Requirement, load_model
from iamcl2r_jax.system.preemption import Preemption
from iamcl2r_jax.system.progress import Reporter
from iamcl2r_jax.training import pretraining


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


def recipe_of(config: ConfigDict) -> ConfigDict:
    """The recipe of a run's external models, with the head that its method asks for."""
    recipe = config.replacements.recipe.copy_and_resolve_references()
    recipe.head = methods.get(config.method).external_head
    recipe.tracking.tensorboard = config.tracking.tensorboard
    return recipe


def external_models(
    config: ConfigDict, reporter: Reporter, preemption: Preemption, command: str | None = None
) -> dict[int, Model]:
    """The external model of each replacement, by task; those with a recipe are made if missing.

    They are made with the head that the method asks for, and those given must have it. With
    `config.SHIPPED`, those that come with the package are not made.
    """
    recipe, made = recipe_of(config), makes_external_models(config)
    paths, missing = external_paths(config)
    # What is there is checked before what is missing is trained.
    loaded = {path: load_external(config, path) for path in paths if path not in missing.values()}
    if made:
        for path in loaded:
            pretraining.tidy(path, reporter)
    if missing:
        recipe.data_dir = recipe.data_dir or config.data_dir
        pretraining.pretrain(recipe, missing, reporter, preemption, command=command)
        loaded |= {path: load_external(config, path) for path in missing.values()}
    tasks = config.replacements.tasks
    return {task: loaded[path] for task, path in zip(tasks, paths, strict=bool(paths))}


def external_paths(config: ConfigDict) -> tuple[tuple[str, ...], dict[int, str]]:
    """Where the external models are, or will be made.

    Returns:
      The path of the model of each replacement, and by number of classes the path of each that is
      to be made.
    """
    replacements, recipe = config.replacements, recipe_of(config)
    paths = tuple(replacements.checkpoints)
    if not makes_external_models(config):
        return paths, {}
    if not replacements.tasks:
        return (), {}
    shipped = pretraining.shipped_path if paths == SHIPPED else lambda *_: None
    paths = tuple(
        shipped(recipe, classes)
        or pretraining.checkpoint_path(replacements.directory, recipe, classes)
        for classes in replacements.classes
    )
    missing = {
        classes: path
        for classes, path in zip(replacements.classes, paths, strict=True)
        if not checkpoints.exists(path)
    }
    return paths, missing


def load_external(config: ConfigDict, path: str) -> Model:
    """An external model that this run can take up.

    Raises:
      InputError: see `stored.load_model`; or if the stream's classes need slots that it was
        trained on.
    """
    require = Requirement(
        kind=EXTERNAL,
        head=methods.get(config.method).external_head,
        num_slots=config.num_slots,
        image=ImageInput.of(config.image),
        stream_classes=stream_size(config)[0],
    )
    return load_model(path, require)


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

    Raises:
      DataError: if a set cannot be had, or every query of an evaluation is in its gallery.
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


def load_all(config: ConfigDict) -> ImageSets:
    """The stream, and the evaluations by name."""
    return load_stream(config), load_evaluations(config)


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
