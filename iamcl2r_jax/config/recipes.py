"""Configurations that more than one config file starts from."""

from ml_collections import ConfigDict

from iamcl2r_jax import config

# Of CIFAR-100's training images, as the paper normalises every image.
CIFAR_MEAN = (0.5071, 0.4867, 0.4408)
CIFAR_STD = (0.2675, 0.2565, 0.2761)

# Classes that arrive with each task after the first, and the tasks that start from a new model, by
# the number of tasks.
CIFAR100R_TASKS = {"7": (15, (0, 2, 4)), "31": (3, (0, 10, 20))}


def cifar100r(increment: int, replaced: tuple[int, ...], *, dtype: str = "float32") -> ConfigDict:
    """The paper's protocol on CIFAR100R/10.

    Args:
      increment: classes of each task after the first, which has 10.
      replaced: 0-based tasks that start from a new model.
      dtype: that the networks, the external ones too, compute in: "float32" or "bfloat16".
    """
    c = config.default()
    c.name = f"cifar100r-{len(range(10, 100, increment)) + 1}"
    c.num_slots = 1024  # K of the paper: CIFAR-100's 100 at one end, ImageNet's 600 at the other
    c.image.mean, c.image.std = CIFAR_MEAN, CIFAR_STD
    c.image.augmentation_options.crop_flip.flip = True
    c.model.options.width = 64  # the full ResNet-18
    c.train.epochs = 70
    c.train.learning_rate = 1e-3
    c.train.final_learning_rate = 1e-5

    c.stream.dataset = "cifar100"
    c.stream.initial_classes = 10
    c.stream.increment = increment
    c.stream.limit_per_class = 300  # the "R": the first 300 of 500 training images
    c.memory_per_class = 20

    c.replacements.tasks = replaced
    c.replacements.classes = (100, 300, 600)  # the first of ImageNet
    c.replacements.recipe = pretrain_imagenet32()
    c.replacements.recipe.num_slots = c.get_ref("num_slots")  # the simplex is the interface
    c.replacements.recipe.resident_gib = c.get_ref("resident_gib")

    if dtype != "float32":
        c.model.options.dtype = c.replacements.recipe.model.options.dtype = dtype

    # Queries are the 50,000 training images, the gallery the class means of the 10,000 test images.
    c.evaluations = ConfigDict({"cifar10": config.evaluation("cifar10")})
    c.metrics = ("identification",)  # what the paper reports
    return c


def pretrain_imagenet32() -> ConfigDict:
    """Pre-training on the first classes of ImageNet at 32x32 pixels.

    The paper names the data, the classes and the network. How its external models were trained is
    not known to us: optimiser, batch and weight decay are those of its tasks, schedule and
    augmentation are our choice, and none of it has been run at full size.
    """
    c = config.default_pretrain()
    c.name = "imagenet32"
    c.dataset = "imagenet_resized/32x32"  # its classes come in the order of the download's labels
    c.test_split = "validation"  # 50 images of each class
    c.classes = 100  # the paper's first model; the others have 300 and 600
    c.num_slots = 1024  # K of the paper; 100 slots at the far end are CIFAR-100's
    # A model is handed the images of the run that takes it, so it must know their normalisation.
    c.image.mean, c.image.std = CIFAR_MEAN, CIFAR_STD
    c.image.augmentation_options.crop_flip.flip = True
    c.model.options.width = 64  # the full ResNet-18
    c.train.epochs = 90  # customary on ImageNet
    c.train.learning_rate = 0.1  # from scratch; the tasks' 1e-3 only adapts what is trained
    c.train.final_learning_rate = 1e-4
    return c
