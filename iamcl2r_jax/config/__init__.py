"""The configuration of a run: every field with its meaning, and the check of their values.

A file in `configs/` starts from `default()` or `default_pretrain()` and changes fields; `validate`
and `validate_pretrain` then refuse what cannot work, in one line, before any work starts.
"""

import difflib
import math
import runpy
from typing import Any

from ml_collections import ConfigDict

from iamcl2r_jax import methods, models, retrieval, simplex
from iamcl2r_jax.methods import heads
from iamcl2r_jax.system.errors import InputError

# Fields of a run and of a pre-training on which no result depends.
WITHOUT_EFFECT = ("resident_gib", "saving", "tracking")

_RESIDENT_GIB = 8.0  # half of a small accelerator's memory; ImageNet at 32x32 takes 3.7


def default_pretrain() -> ConfigDict:
    """Pre-training of an external model; the values are those of the embedded default."""
    c = ConfigDict()
    c.name = "glyphs"  # names the directory of the checkpoints
    c.seed = 0  # of initialisation, batches and augmentation
    c.dataset = "glyphs/external"  # TFDS name, or folder:DIR
    c.train_split = "train"
    c.test_split = "test"  # held-out images, for the accuracy that is reported; "" for none
    c.data_dir = ""  # where TFDS keeps data sets; "" for TFDS's default
    c.classes = 240  # pre-train on the first so many classes, simplex slots 0, 1, ...
    c.num_slots = 320  # K, pre-allocated classes of the simplex; features have K - 1 dimensions
    c.head = heads.SIMPLEX  # classifier: "simplex", or "linear" for methods with a learnable one
    c.image = _image()  # the network's input
    c.model = _model()  # the architecture
    # The schedule.
    c.train = _train(epochs=6, learning_rate=0.1)
    c.saving = _saving()
    c.resident_gib = _RESIDENT_GIB  # see default()
    c.tracking = _tracking()
    return c


def default() -> ConfigDict:
    """A lifelong run; the values are those of the embedded default."""
    c = ConfigDict()
    c.name = "glyphs"  # names the run and its default directory
    c.method = "hoc"  # what to train with: a key of methods.METHODS
    # Options of each method, by its name; only those of `method` are used.
    c.method_options = ConfigDict({n: methods.default_options(n) for n in methods.METHODS})
    c.seed = 0  # of initialisation, memory, batches and augmentation
    c.num_seeds = 1  # runs trained at once, with seed, seed + 1, ..., see seeds.run
    c.data_dir = ""  # where TFDS keeps data sets; "" for TFDS's default
    c.num_slots = 320  # K, pre-allocated classes of the simplex; features have K - 1 dimensions
    c.image = _image()  # the network's input
    # Of the networks that start from random variables: at the first task without an external model,
    # and where the run retrains.
    c.model = _model()
    # The schedule of each task.
    c.train = _train(epochs=14, learning_rate=0.06)
    c.saving = _saving()
    # Training images of up to so many GiB, as uint8, stay on the device, on each if there are
    # several; more are streamed to it from the host, four calls' batches at once at most. No result
    # depends on it.
    c.resident_gib = _RESIDENT_GIB
    c.adapter = _adapter()  # of methods that carry stored galleries on, see adapters.Settings

    c.stream = ConfigDict()
    c.stream.dataset = "glyphs/latin"  # TFDS name, or folder:DIR
    c.stream.train_split = "train"
    c.stream.test_split = "test"  # held-out images, for task_accuracy
    c.stream.initial_classes = 8  # classes of the first task
    c.stream.increment = 11  # classes of each later task
    c.stream.limit_per_class = 0  # train on the first so many images of each class; 0 for all
    c.stream.class_order_seed = -1  # shuffles the classes; -1 for the data set's order
    c.memory_per_class = 20  # images remembered of each class once its task is over

    c.replacements = ConfigDict()
    c.replacements.tasks = (0, 2, 4)  # 0-based tasks that start from an external model
    # Directories of the external models, one per task above; () to make them by `recipe`.
    c.replacements.checkpoints = ()
    c.replacements.classes = (60, 120, 240)  # classes of the models made by `recipe`
    # Its `classes` come from the line above, its `head` from the method, its `tracking` from below.
    c.replacements.recipe = default_pretrain()
    c.replacements.recipe.num_slots = c.get_ref("num_slots")  # the simplex is the interface
    c.replacements.recipe.resident_gib = c.get_ref("resident_gib")
    c.replacements.directory = "runs/external"  # where models made by `recipe` are kept and found
    # 0-based tasks at which a new network is trained on the images of all tasks so far, without the
    # memory; the old model is that of the task before.
    c.replacements.retrain = ()
    # Directory that is looked into before each task of neither kind: the best external model there
    # that is better than the one in use is taken up. "Better" is more classes of pre-training, then
    # a higher held-out accuracy. "" for none.
    c.replacements.watch = ""

    c.evaluations = ConfigDict()  # open-set evaluations, by name
    c.evaluations.digits = evaluation("glyphs/digits")
    c.evaluations.handwriting = evaluation("handwriting")
    # Retrieval measures, keys of retrieval.MEASURES; the first gives matrix, AC and AA.
    c.measures = ("identification", "recall_at_1", "mean_average_precision")

    c.tracking = _tracking()
    c.tracking.wandb = False  # Weights & Biases: log in first, or set WANDB_MODE=offline
    return c


def evaluation(
    dataset: str, *, query_split: str = "train", gallery_split: str = "test"
) -> ConfigDict:
    """One open-set evaluation: the data set (TFDS name or folder:DIR) and its two splits."""
    return ConfigDict(
        {"dataset": dataset, "query_split": query_split, "gallery_split": gallery_split}
    )


def choose_backbone(model: ConfigDict, name: str) -> None:
    """Makes `model` of a configuration that backbone, with all its options at their defaults.

    Options that the one before has too keep their values; all can then be given as
    --config.model.options.NAME=VALUE.

    Raises:
      InputError: if there is no backbone of that name.
    """
    options = models.default_options(name)
    del options["dtype"]  # not JSON; a run computes in the default
    kept = {option: value for option, value in model.options.items() if option in options}
    model.backbone = name
    with model.unlocked():
        model.options = ConfigDict(options | kept)


def _image() -> ConfigDict:
    c = ConfigDict()
    c.size = 32  # height and width in pixels
    c.mean = (0.5, 0.5, 0.5)  # per channel, of pixels in [0, 1]
    c.std = (0.25, 0.25, 0.25)  # per channel, of pixels in [0, 1]
    c.crop_padding = 4  # random crops come from the image with this many black pixels around it
    c.flip = False  # mirror every other image; not for characters
    return c


def _model() -> ConfigDict:
    c = ConfigDict()
    c.backbone = "resnet18"  # a key of models.BACKBONES
    # Fields of the backbone's module: `width` is the channels of its first stage, `stem` is
    # "imagenet" (7x7 stride 2 and max-pool) or "small" (3x3 stride 1). A config file may add
    # `dtype`, "bfloat16" to compute in it; it goes with a model, so external ones need it too.
    c.options = ConfigDict({"width": 16, "stem": "imagenet"})
    return c


def _train(*, epochs: int, learning_rate: float) -> ConfigDict:
    c = ConfigDict()
    c.epochs = epochs  # of each task, or of pre-training
    c.batch_size = 128  # over all devices; half of it from memory once there is one
    c.learning_rate = learning_rate  # of SGD in the first epoch of a task
    c.final_learning_rate = learning_rate / 100  # that the cosine falls to, once an epoch
    c.momentum = 0.9  # of SGD
    c.weight_decay = 5e-4  # of SGD, on parameters of two or more dimensions
    return c


def _saving() -> ConfigDict:
    """How often training saves where it stands; no result depends on it."""
    c = ConfigDict()
    c.every_epochs = 0  # save after so many epochs; 0 to go by the seconds alone
    c.every_seconds = 60.0  # save after so many seconds; 0 to go by the epochs alone
    # Steps of one call of the compiled program. Between calls a run can save and be asked to stop.
    c.steps_per_call = 50
    return c


def _tracking() -> ConfigDict:
    """Who is told of every epoch beside metrics.jsonl; no result depends on it."""
    c = ConfigDict()
    c.tensorboard = True  # event files in DIR/tensorboard
    return c


def _adapter() -> ConfigDict:
    c = ConfigDict()
    c.hidden = 1024  # width of its hidden layer
    c.steps = 500  # of Adam
    c.batch_size = 128  # pairs of features in a step
    c.learning_rate = 1e-3  # of Adam in the first step; it falls to zero
    c.similarity_weight = 100.0  # α, of the cosine distance beside the cross-entropy
    return c


def load(file: str) -> ConfigDict:
    """The configuration in a file, as the flag --config gives it to a program; for notebooks.

    Args:
      file: "configs/NAME.py", or "configs/NAME.py:option=value,...".

    Returns:
      The configuration, locked: a field that it has not got cannot be set.
    """
    path, _, options = file.partition(":")
    get_config = runpy.run_path(path)["get_config"]
    return (get_config(options) if options else get_config()).lock()


def recorded(written: dict[str, Any]) -> ConfigDict:
    """The configuration that a run has written as JSON, checked.

    Sections and fields that an earlier version had not get their defaults, which are what it did;
    options of other methods that are not known here are left out.

    Raises:
      InputError: naming the field, its value and what would be right.
    """
    try:
        config = ConfigDict(_with_tuples(written))
    except (KeyError, TypeError, ValueError) as error:  # of names that no field can have
        raise InputError(" ".join(str(error).split())) from None
    defaults = default()
    for field in (*_LATER, *(f"method_options.{name}" for name in methods.METHODS)):
        parent, _, name = field.rpartition(".")
        section = config
        for part in filter(None, parent.split(".")):
            section = section.get(part) if isinstance(section, ConfigDict) else None
        if isinstance(section, ConfigDict) and name not in section:
            section[name] = _lookup(defaults, field)
    if isinstance(options := config.get("method_options"), ConfigDict):
        for name in set(options) - methods.METHODS.keys():
            if name != config.get("method"):
                del options[name]
    validate(config)
    return config


# Added since the first runs, which did what the defaults say.
_LATER = (
    *WITHOUT_EFFECT,
    *(f"replacements.recipe.{field}" for field in WITHOUT_EFFECT),
    "adapter",
    "num_seeds",
    "replacements.retrain",
    "replacements.watch",
)


def _with_tuples(value: Any) -> Any:
    """What was made of JSON, with tuples for its lists."""
    if isinstance(value, dict):
        return {name: _with_tuples(item) for name, item in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def validate(config: ConfigDict) -> None:
    """Checks a lifelong run's configuration without touching data or models.

    Raises:
      InputError: naming the field, its value and what would be right.
    """
    _check_kinds(config, default())
    methods.get(config.method)
    _check_model(config)
    _check_train(config.train)
    _check_saving(config)
    _check_resident(config)
    _check_items(config, "image.mean", float)
    _check_items(config, "image.std", float)
    _check_image(config.image)
    _check_method_options(config)
    _check_adapter(config)
    _at_least(config, "memory_per_class", 0)
    _at_least(config, "stream.initial_classes", 1)
    _at_least(config, "stream.increment", 1)
    _at_least(config, "stream.limit_per_class", 0)
    _at_least(config, "stream.class_order_seed", -1)
    _check_seed_and_name(config)
    _at_least(config, "num_seeds", 1)
    if config.seed + config.num_seeds > 2**32:
        raise InputError(
            f"num_seeds={config.num_seeds}: the last seed, seed + num_seeds - 1, must be in "
            f"0..{2**32 - 1}; seed is {config.seed}"
        )
    if config.num_seeds > 1 and config.replacements.watch:
        raise InputError(
            f"num_seeds={config.num_seeds}: must be 1 with replacements.watch, since a model may "
            "arrive for one seed and not for another"
        )
    _check_replacements(config)
    if not config.evaluations:
        raise InputError("evaluations: there is none; a run needs at least one")
    _check_items(config, "measures", str)
    if not config.measures or set(config.measures) - retrieval.MEASURES.keys():
        known = ", ".join(retrieval.MEASURES)
        raise InputError(f"measures={config.measures}: must be one or more of {known}")


def validate_pretrain(config: ConfigDict) -> None:
    """Checks a pre-training configuration without touching data or models.

    Raises:
      InputError: naming the field, its value and what would be right.
    """
    _check_kinds(config, default_pretrain())
    _check_model(config)
    _check_train(config.train)
    _check_saving(config)
    _check_resident(config)
    _check_items(config, "image.mean", float)
    _check_items(config, "image.std", float)
    _check_image(config.image)
    _check_seed_and_name(config)
    _at_least(config, "classes", 2)
    if config.head not in (heads.SIMPLEX, heads.LINEAR):
        raise InputError(f"head={config.head!r}: must be {heads.SIMPLEX} or {heads.LINEAR}")
    if config.classes > config.num_slots:
        raise InputError(
            f"classes={config.classes}: must be at most num_slots={config.num_slots}, "
            "the simplex's classes"
        )


def check_stream(config: ConfigDict, num_stream_classes: int, num_tasks: int) -> None:
    """Checks a run's configuration against the stream it names.

    Raises:
      InputError: naming the field, its value and what would be right.
    """
    for field in ("tasks", "retrain"):
        if max(tasks := config.replacements[field], default=0) >= num_tasks:
            raise InputError(
                f"replacements.{field}={tasks}: the stream has {num_tasks} tasks, "
                f"0 to {num_tasks - 1}"
            )
    made = () if config.replacements.checkpoints else config.replacements.classes
    external = max(made, default=0) if config.replacements.tasks else 0
    simplex.check_slots(num_stream_classes, external, config.num_slots)


def differences(first: dict[str, Any], second: dict[str, Any], prefix: str = "") -> list[str]:
    """Fields in which two configurations differ, as "field: value there, value here"."""
    found = []
    for key in sorted(first.keys() | second.keys()):
        name = prefix + key
        a, b = first.get(key), second.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, name + ".")
        elif a != b:
            found.append(f"{name}: {a!r} there, {b!r} here")
    return found


def _lookup(config: ConfigDict, field: str) -> Any:
    for part in field.split("."):
        config = config[part]
    return config


def _at_least(config: ConfigDict, field: str, least: int) -> None:
    value = _lookup(config, field)
    if value < least:
        raise InputError(f"{field}={value}: must be at least {least}")


def _check_kinds(config: Any, expected: ConfigDict, prefix: str = "") -> None:
    """Checks that the fields are those expected, and each of the same kind as there.

    A Python config can put anything anywhere. What tuples and a model's options hold is checked
    where their meaning is known.
    """
    if not isinstance(config, ConfigDict):
        raise InputError(
            f"{prefix.removesuffix('.') or 'config'}={config!r}: must be a ConfigDict with the "
            f"fields {', '.join(expected)}"
        )
    if prefix == "model.options." or prefix.endswith(".model.options."):
        return
    if prefix == "evaluations.":
        expected = ConfigDict({name: evaluation("") for name in config})
    for name in sorted(set(expected) - set(config)):
        raise InputError(f"{prefix}{name}: is missing; start from config.default()")
    for name in sorted(set(config) - set(expected), key=str):
        near = difflib.get_close_matches(str(name), expected)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(expected)}"
        raise InputError(f"{prefix}{_shown(name)[1:-1]}: is no field; {hint}")
    for name, example in expected.items():
        value, field = config[name], f"{prefix}{name}"
        if isinstance(example, ConfigDict):
            _check_kinds(value, example, f"{field}.")
        elif not isinstance(example, tuple):
            _check_kind(field, value, type(example))


def _check_kind(field: str, value: Any, kind: type) -> None:
    allowed, what = {
        bool: ((bool,), "True or False"),
        int: ((int,), "a whole number"),
        float: ((float, int), "a number"),
        str: ((str,), "a text"),
    }[kind]
    if type(value) not in allowed:
        raise InputError(f"{field}={_shown(value)}: must be {what}")
    if kind is str and not (value.isprintable() and len(value) <= _LONGEST):
        raise InputError(f"{field}={_shown(value)}: must be printable, up to {_LONGEST} characters")
    if kind in (int, float) and _LARGEST < abs(value) != math.inf:
        raise InputError(f"{field}={_shown(value)}: must not be beyond {_LARGEST}")


# Beyond these a value is a slip of the hand, and would end in an error of the memory's.
_LARGEST = 2**53
_LONGEST = 1000
_LARGEST_RATE = 1e6
_LARGEST_BATCH = 2**16
_LARGEST_SIMPLEX = 2**15  # takes 4 GiB
_LARGEST_IMAGE = 2**12
_LARGEST_ADAPTER = 2**20
_MOST_EPOCHS = 10**6


def _shown(value: Any) -> str:
    try:
        text = repr(value)[:100]
    except Exception:  # of a foreign object, or of a number with more digits than Python prints
        text = f"a {type(value).__name__}"
    return text if text.isprintable() else ascii(text)[1:-1]


def _check_seed_and_name(config: ConfigDict) -> None:
    if not 0 <= config.seed < 2**32:  # JAX's keys would drop the higher bits
        raise InputError(f"seed={config.seed}: must be in 0..{2**32 - 1}")
    if not config.name or "/" in config.name or config.name.startswith("."):
        raise InputError(f"name={config.name!r}: must be a plain file name, it names directories")


def _check_resident(config: ConfigDict) -> None:
    if not 0 <= config.resident_gib < math.inf:
        raise InputError(f"resident_gib={config.resident_gib}: must be a number, at least 0")


def _check_items(config: ConfigDict, field: str, kind: type) -> None:
    """Tuples take items of any type from the command line; only those of `kind` can work."""
    value = _lookup(config, field)
    allowed = (int, float) if kind is float else (kind,)
    good = isinstance(value, tuple) and all(type(item) in allowed for item in value)
    if not good or (kind is not str and not all(abs(item) <= _LARGEST for item in value)):
        raise InputError(
            f"{field}={_shown(value)}: must be a tuple of {kind.__name__} values, or ()"
        )
    for item in value if kind is str else ():
        _check_kind(field, item, str)


def _check_model(config: ConfigDict) -> None:
    if config.num_slots < 2:
        raise InputError(f"num_slots={config.num_slots}: a simplex needs at least 2 classes")
    if config.num_slots > _LARGEST_SIMPLEX:
        raise InputError(f"num_slots={config.num_slots}: must be at most {_LARGEST_SIMPLEX}")
    try:
        models.create(config.model.backbone, config.num_slots - 1, **config.model.options)
    except InputError as error:
        raise InputError(f"model: {error}") from None


def _check_train(train: ConfigDict) -> None:
    for field, most in (("epochs", _MOST_EPOCHS), ("batch_size", _LARGEST_BATCH)):
        if train[field] < 1:
            raise InputError(f"train.{field}={train[field]}: must be at least 1")
        if train[field] > most:
            raise InputError(f"train.{field}={train[field]}: must be at most {most}")
    for field in ("learning_rate", "final_learning_rate"):
        if not 0 < train[field] <= _LARGEST_RATE:
            raise InputError(
                f"train.{field}={train[field]}: must be a positive number, up to {_LARGEST_RATE:g}"
            )
    if not 0 <= train.momentum < 1:
        raise InputError(f"train.momentum={train.momentum}: must be in [0, 1)")
    if not 0 <= train.weight_decay <= _LARGEST_RATE:
        raise InputError(
            f"train.weight_decay={train.weight_decay}: must be in 0..{_LARGEST_RATE:g}"
        )


def _check_saving(config: ConfigDict) -> None:
    _at_least(config, "saving.every_epochs", 0)
    _at_least(config, "saving.steps_per_call", 1)
    if not 0 <= config.saving.every_seconds < math.inf:
        raise InputError(
            f"saving.every_seconds={config.saving.every_seconds}: must be a number, at least 0"
        )


def _check_image(image: ConfigDict) -> None:
    if image.size < 8:
        raise InputError(f"image.size={image.size}: must be at least 8 pixels")
    if image.size > _LARGEST_IMAGE:
        raise InputError(f"image.size={image.size}: must be at most {_LARGEST_IMAGE} pixels")
    if not 0 <= image.crop_padding <= image.size:
        raise InputError(
            f"image.crop_padding={image.crop_padding}: must be in 0..{image.size}, the image's size"
        )
    if len(image.mean) != 3 or len(image.std) != 3 or not all(s > 0 for s in image.std):
        raise InputError(
            f"image.mean={image.mean}, image.std={image.std}: must be three numbers each, "
            "the deviations positive"
        )


def _check_method_options(config: ConfigDict) -> None:
    try:
        methods.check_options(config.method_options[config.method])
    except InputError as error:
        raise InputError(f"method_options.{config.method}.{error}") from None


def _check_adapter(config: ConfigDict) -> None:
    for field in ("hidden", "steps", "batch_size"):
        _at_least(config, f"adapter.{field}", 1)
        if config.adapter[field] > _LARGEST_ADAPTER:
            raise InputError(
                f"adapter.{field}={config.adapter[field]}: must be at most {_LARGEST_ADAPTER}"
            )
    rate, weight = config.adapter.learning_rate, config.adapter.similarity_weight
    if not 0 < rate <= _LARGEST_RATE:
        raise InputError(
            f"adapter.learning_rate={rate}: must be a positive number, up to {_LARGEST_RATE:g}"
        )
    if not 0 <= weight <= _LARGEST_RATE:
        raise InputError(f"adapter.similarity_weight={weight}: must be in 0..{_LARGEST_RATE:g}")


def _check_replacements(config: ConfigDict) -> None:
    r = config.replacements
    kinds = {"tasks": int, "retrain": int, "classes": int, "checkpoints": str}
    for field, kind in kinds.items():
        _check_items(config, f"replacements.{field}", kind)
    for field, first in (("tasks", 0), ("retrain", 1)):
        if list(r[field]) != sorted({task for task in r[field] if task >= first}):
            raise InputError(
                f"replacements.{field}={r[field]}: must be 0-based tasks in increasing order, "
                f"{first} at least"
            )
    if both := sorted(set(r.tasks) & set(r.retrain)):
        raise InputError(
            f"replacements.retrain={r.retrain}: task {both[0]} is in replacements.tasks={r.tasks} "
            "too; a task starts from an external model or from random variables"
        )
    field = "checkpoints" if r.checkpoints else "classes"
    if r.tasks and len(r[field]) != len(r.tasks):
        raise InputError(
            f"replacements.{field}={r[field]}: must name one model for each of "
            f"replacements.tasks={r.tasks}"
        )
    if r.tasks and not r.checkpoints:
        for classes in r.classes:
            recipe = r.recipe.copy_and_resolve_references()
            recipe.classes = classes
            try:
                validate_pretrain(recipe)
            except InputError as error:
                raise InputError(f"replacements.recipe.{error}") from None
        for field in ("size", "mean", "std"):
            if r.recipe.image[field] != config.image[field]:
                raise InputError(
                    f"replacements.recipe.image.{field}={r.recipe.image[field]}: must equal "
                    f"image.{field}={config.image[field]}, since the run's images are its input"
                )
        if r.recipe.head not in (heads.SIMPLEX, wanted := methods.get(config.method).external_head):
            raise InputError(
                f"replacements.recipe.head={r.recipe.head!r}: method={config.method!r} takes "
                f"external models with head={wanted!r}, and sets it by itself"
            )
        if r.recipe.num_slots != config.num_slots:
            raise InputError(
                f"replacements.recipe.num_slots={r.recipe.num_slots}: must equal "
                f"num_slots={config.num_slots}, since the simplex is the interface"
            )
