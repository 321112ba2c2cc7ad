"""The fields of a configuration, with their meanings and defaults; `bounds` checks them."""

from collections.abc import Callable, Mapping

from ml_collections import ConfigDict, config_dict

from iamcl2r_jax import methods, models
from iamcl2r_jax.data.augment import AUGMENTATIONS
from iamcl2r_jax.methods import heads
from iamcl2r_jax.methods.optimizers import OPTIMIZERS
from iamcl2r_jax.system import values

# Fields of a run and of a pre-training on which no result depends.
WITHOUT_EFFECT = ("resident_gib", "saving", "tracking")

SHIPPED = ("shipped",)  # a value of replacements.checkpoints

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
    c.classes = 600  # pre-train on the first so many classes, simplex slots 0, 1, ...
    c.num_slots = 1024  # K, pre-allocated classes of the simplex; features have K - 1 dimensions
    c.head = heads.SIMPLEX  # classifier: "simplex", or "linear" for methods with a learnable one
    c.image = _image()  # the network's input
    c.model = _model()  # the architecture
    # Start with zeros in the last layer, the linear map to the feature: the features then stay in
    # the span of the classes trained on. The official code starts with random numbers.
    c.zero_projection = True
    # The schedule.
    c.train = _train(epochs=8, learning_rate=0.1)
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
    c.method_options = _options({name: m.loss for name, m in methods.METHODS.items()})
    c.seed = 0  # of initialisation, memory, batches and augmentation
    c.num_seeds = 1  # runs trained at once, with seed, seed + 1, ..., see lifelong.run
    c.data_dir = ""  # where TFDS keeps data sets; "" for TFDS's default
    c.num_slots = 1024  # K, pre-allocated classes of the simplex; features have K - 1 dimensions
    c.image = _image()  # the network's input
    # Of the networks that start from random variables: at the first task without an external model,
    # and where the run retrains.
    c.model = _model()
    # The schedule of each task.
    c.train = _train(epochs=8, learning_rate=0.06)
    c.saving = _saving()
    # Training images of up to so many GiB, as uint8, stay on the device, on each if there are
    # several; more are streamed to it from the host, four calls' batches at once at most. No result
    # depends on it.
    c.resident_gib = _RESIDENT_GIB
    c.adapter = _adapter()  # of methods that carry stored galleries on, see maps.fan.Settings

    c.stream = ConfigDict()
    c.stream.dataset = "glyphs/stream"  # TFDS name, or folder:DIR
    c.stream.train_split = "train"
    c.stream.test_split = "test"  # held-out images, for task_accuracy
    c.stream.initial_classes = 10  # classes of the first task
    c.stream.increment = 15  # classes of each later task
    c.stream.limit_per_class = 300  # train on the first so many images of each class; 0 for all
    c.stream.class_order_seed = -1  # shuffles the classes; -1 for the data set's order
    c.memory_per_class = 20  # images remembered of each class once its task is over

    c.replacements = ConfigDict()
    c.replacements.tasks = (0, 2, 4)  # 0-based tasks that start from an external model
    # Directories of the external models, one per task above; () to make them by `recipe`; SHIPPED
    # to make only those that do not come with this package.
    c.replacements.checkpoints = SHIPPED
    c.replacements.classes = (100, 300, 600)  # classes of the models made by `recipe`
    # Its `classes` come from the line above, its `head` from the method, its `tracking` from below.
    c.replacements.recipe = default_pretrain()
    c.replacements.recipe.num_slots = c.get_ref("num_slots")  # the simplex is the interface
    c.replacements.recipe.resident_gib = c.get_ref("resident_gib")
    # α in [0, 1]: at a replacement, a method's terms that read an old model are 1-α of the external
    # model's and α of the replaced one's. 0 is the paper's.
    c.replacements.replaced_weight = 0.0
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
    c.evaluations.unseen = evaluation("glyphs/unseen")
    c.evaluations.handwriting = evaluation("handwriting")
    # Retrieval metrics, keys of retrieval.METRICS; the first gives matrix, AC and AA.
    c.metrics = ("identification", "recall_at_1", "mean_average_precision")

    c.tracking = _tracking()
    c.tracking.wandb = False  # Weights & Biases: log in first, or set WANDB_MODE=offline
    c.tracking.report = True  # report.html and its figures once the run is finished
    return c


def makes_external_models(config: ConfigDict) -> bool:
    """Whether a run's external models are those of its recipe, and not given by their paths."""
    return tuple(config.replacements.checkpoints) in ((), SHIPPED)


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


def _options(registry: Mapping[str, Callable]) -> ConfigDict:
    """The options of each registered function, by its name, at their defaults."""
    c = ConfigDict()
    for name, function in registry.items():
        c[name] = ConfigDict()
        kinds = values.options(function)
        for option, default in values.defaults(function).items():
            # A placeholder knows how to read a value from the command line.
            empty = default is None
            c[name][option] = config_dict.placeholder(kinds[option].kind) if empty else default
    return c


def _image() -> ConfigDict:
    c = ConfigDict()
    c.size = 32  # height and width in pixels
    c.mean = (0.5, 0.5, 0.5)  # per channel, of pixels in [0, 1]
    c.std = (0.25, 0.25, 0.25)  # per channel, of pixels in [0, 1]
    c.augmentation = "crop_flip"  # of training images: a key of augment.AUGMENTATIONS
    c.augmentation_options = _options(AUGMENTATIONS)  # only those of `augmentation` are used
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
    c.learning_rate = learning_rate  # in the first epoch of a task
    c.final_learning_rate = learning_rate / 100  # that the cosine falls to, once an epoch
    c.optimizer = "sgd"  # a key of optimizers.OPTIMIZERS
    c.optimizer_options = _options(OPTIMIZERS)  # only those of `optimizer` are used
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
