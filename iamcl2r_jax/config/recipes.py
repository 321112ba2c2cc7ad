"""The paper's protocol, in miniature and at full size; other config files start from these."""

from ml_collections import ConfigDict

from iamcl2r_jax import config

# Classes that arrive with each task after the first, which has 10, and the 0-based tasks that start
# from a new model, by the number of tasks.
TASKS = {"7": (15, (0, 2, 4)), "31": (3, (0, 10, 20))}

# Of CIFAR-100's training images, as the paper normalises every image.
CIFAR_MEAN = (0.5071, 0.4867, 0.4408)
CIFAR_STD = (0.2675, 0.2565, 0.2761)


def glyphs(increment: int, replaced: tuple[int, ...]) -> ConfigDict:
    """The miniature: the protocol on embedded images, with a narrow network and short schedules.

    Args:
      increment: classes of each task after the first, which has 10.
      replaced: 0-based tasks that start from a new model.
    """
    c = config.default()
    num_tasks = len(range(10, 100, increment)) + 1
    c.name = "glyphs" if num_tasks == 7 else f"glyphs{num_tasks}"
    c.stream.increment = increment
    c.replacements.tasks = replaced
    if num_tasks > 10:
        c.metrics = ("identification",)  # as in the paper: there are 496 pairs of 31 models
    return c


def cifar100r(increment: int, replaced: tuple[int, ...], *, dtype: str = "float32") -> ConfigDict:
    """The paper's protocol on CIFAR100R/10: `glyphs` with other images, wider and trained longer.

    Args:
      increment: classes of each task after the first, which has 10.
      replaced: 0-based tasks that start from a new model.
      dtype: that the networks, the external ones too, compute in: "float32" or "bfloat16".
    """
    c = glyphs(increment, replaced)
    c.name = f"cifar100r-{len(range(10, 100, increment)) + 1}"
    c.image.mean, c.image.std = CIFAR_MEAN, CIFAR_STD
    c.image.augmentation_options.crop_flip.flip = True
    c.model.options.width = 64  # the full ResNet-18
    c.train.epochs = 70
    c.train.learning_rate = 1e-3
    c.train.final_learning_rate = 1e-5
    c.stream.dataset = "cifar100"
    c.replacements.checkpoints = ()
    config.set_recipe(c, pretrain_imagenet32())
    # Queries are the 50,000 training images, the gallery the class means of the 10,000 test images.
    c.evaluations = ConfigDict({"cifar10": config.evaluation("cifar10")})
    if dtype != "float32":
        c.model.options.dtype = c.replacements.recipe.model.options.dtype = dtype
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
    # A model is handed the images of the run that takes it, so it must know their normalisation.
    c.image.mean, c.image.std = CIFAR_MEAN, CIFAR_STD
    c.image.augmentation_options.crop_flip.flip = True
    c.model.options.width = 64  # the full ResNet-18
    c.train.epochs = 90  # customary on ImageNet
    return c
