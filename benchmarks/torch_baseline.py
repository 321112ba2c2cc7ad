"""The train step, feature extraction and loop in PyTorch, to be measured against.

Written for this comparison, to be as fast as plain PyTorch is: the data set stays on the device as
uint8, a whole batch is cropped, padded and mirrored by one gather, SGD is fused, no step waits for
a figure. `official_loop` has instead the shape of common training code, and of the official one.
"""

import dataclasses
import itertools
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from iamcl2r_jax.data.augment import ImageOptions
from iamcl2r_jax.models.checkpoints import Variables
from iamcl2r_jax.torch_import import to_torch_state_dict
from iamcl2r_jax.training.step import TaskData

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def _conv(inputs: int, outputs: int, size: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = _conv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = _conv(outputs, outputs, 3, 1), nn.BatchNorm2d(outputs)
        self.downsample = None
        if inputs != outputs:
            shortcut = _conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)
            self.downsample = nn.Sequential(*shortcut)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class Trunk(nn.Module):
    """ResNet-18 with the ImageNet stem, up to the global mean."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1, self.bn1 = _conv(3, width, 7, 2), nn.BatchNorm2d(width)
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        for stage, (inputs, outputs) in enumerate(itertools.pairwise(widths), 1):
            stride = 1 if stage == 1 else 2
            blocks = Block(inputs, outputs, stride), Block(outputs, outputs, 1)
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.relu, self.pool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)

    def forward(self, x):
        x = self.pool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x.mean((2, 3))


class Network(nn.Module):
    """Trunk and map to the feature; the fixed simplex beside them."""

    def __init__(self, width: int, num_classes: int):
        super().__init__()
        self.backbone = Trunk(width)
        self.fc1 = nn.Linear(8 * width, num_classes - 1, bias=False)
        self.fc2 = nn.Linear(num_classes - 1, num_classes, bias=False).requires_grad_(False)

    def forward(self, x):
        return self.fc1(self.backbone(x))


def network(
    variables: Variables, layout: str = "contiguous", device: torch.device | str = "cpu"
) -> Network:
    """Our ResNet-18 of the same variables, in evaluation mode."""
    state = {
        name: torch.tensor(value)
        for name, value in to_torch_state_dict(variables, "resnet18").items()
    }
    model = Network(state["backbone.conv1.weight"].shape[0], state["fc2.weight"].shape[0])
    missing, unexpected = model.load_state_dict(state, strict=False)
    strange = [name for name in missing if not name.endswith("num_batches_tracked")]
    if strange or unexpected:
        raise ValueError(f"the networks differ: {strange} missing, {unexpected} left over")
    return model.to(device, memory_format=LAYOUTS[layout]).eval()


def normalize(images: torch.Tensor, options: ImageOptions, layout: str) -> torch.Tensor:
    """uint8 [B, H, W, 3] to the network's input, float32 [B, 3, H, W]."""
    mean, std = (torch.tensor(v, device=images.device) for v in (options.mean, options.std))
    scaled = images.float() * (1 / (255 * std)) - mean / std
    return scaled.permute(0, 3, 1, 2).contiguous(memory_format=LAYOUTS[layout])


def hoc_objective(
    features: torch.Tensor,
    old_features: torch.Tensor,
    rows: torch.Tensor,
    labels: torch.Tensor,
    *,
    ce_weight: float = 0.1,
    mu: float = 10.0,
) -> torch.Tensor:
    """λ CE(W z, slot(y)) + (1-λ) L_HOC, as `methods.hoc` with an old model."""
    similarities = mu * F.normalize(old_features) @ F.normalize(features).T
    same = labels[:, None] == labels[None, :]
    contrast = torch.logsumexp(similarities.masked_fill(same, 0.0), 1) - similarities.diagonal()
    ce = F.cross_entropy(features @ rows.T, labels)
    return ce_weight * ce + (1 - ce_weight) * contrast.mean()


def sgd(model: Network, learning_rate: float) -> torch.optim.SGD:
    """As the protocol has it: no decay of parameters with fewer than two dimensions."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": 5e-4},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=learning_rate, momentum=0.9, fused=True)


@dataclasses.dataclass
class Trainer:
    """The train step on the arrays that ours trains with.

    Attributes:
      student: the network in training.
      teacher: frozen.
      layout: key of `LAYOUTS`.
      options: augmentation and normalisation.
      batch_size: B.
      padded: the data set with black pixels around, uint8 [N, H', W', 3].
      labels: rows of the classifier, [N].
      new: samples of the task.
      memory: samples of earlier tasks.
      optimizer: of the student.
      objective: forward passes and loss of normalised images and labels.
    """

    student: Network
    teacher: Network
    layout: str
    options: ImageOptions
    batch_size: int
    padded: torch.Tensor
    labels: torch.Tensor
    new: torch.Tensor
    memory: torch.Tensor
    optimizer: torch.optim.SGD
    objective: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

    @classmethod
    def of(
        cls,
        variables: Variables,
        data: TaskData,
        options: ImageOptions,
        batch_size: int,
        *,
        learning_rate: float,
        layout: str = "contiguous",
        compiled: bool = False,
        device: torch.device | str = "cpu",
    ) -> "Trainer":
        """The trainer for what `CompiledEpoch` is given.

        Raises:
          ValueError: if there is no memory; only batches half from memory are written here.
        """
        sizes = int(data.new.size), int(data.memory.size)
        if not sizes[1]:
            raise ValueError("the baseline trains with memory only")
        student = network(variables, layout, device).train()
        teacher = network(data.old.variables, layout, device).requires_grad_(False)
        rows = student.fc2.weight

        def objective(images, labels):
            with torch.no_grad():
                old_features = teacher(images)
            return hoc_objective(student(images), old_features, rows, labels)

        images = torch.tensor(np.asarray(data.dataset.images), device=device)
        margin = options.augment.keywords["padding"]
        return cls(
            student=student,
            teacher=teacher,
            layout=layout,
            options=options,
            batch_size=batch_size,
            padded=F.pad(images, (0, 0, margin, margin, margin, margin)),
            labels=torch.tensor(np.asarray(data.dataset.labels), device=device).long(),
            new=torch.tensor(np.asarray(data.new.indices)[: sizes[0]], device=device),
            memory=torch.tensor(np.asarray(data.memory.indices)[: sizes[1]], device=device),
            optimizer=sgd(student, learning_rate),
            objective=torch.compile(objective) if compiled else objective,
        )

    def augmented(
        self, indices: torch.Tensor, shifts: torch.Tensor, mirrored: torch.Tensor
    ) -> torch.Tensor:
        """Crops at `shifts` [2, B, 1] into the padded images, some mirrored (bool [B, 1])."""
        size = self.padded.shape[1] - 2 * self.options.augment.keywords["padding"]
        span = torch.arange(size, device=indices.device)[None]
        rows = shifts[0] + span
        columns = shifts[1] + torch.where(mirrored, size - 1 - span, span)
        crops = self.padded[indices[:, None, None], rows[:, :, None], columns[:, None, :]]
        return normalize(crops, self.options, self.layout)

    def batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A random batch, half of it from memory, augmented."""
        device, half = self.padded.device, self.batch_size // 2

        def draw(pool, number):
            return pool[torch.randperm(len(pool), device=device)[:number]]

        indices = torch.cat([draw(self.memory, half), draw(self.new, self.batch_size - half)])
        shifts = torch.randint(
            2 * self.options.augment.keywords["padding"] + 1, (2, len(indices), 1), device=device
        )
        mirrored = torch.rand(len(indices), 1, device=device) < 0.5
        return self.augmented(indices, shifts, mirrored), self.labels[indices]

    def step(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """One update; the loss stays on the device."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.objective(images, labels)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def steps(self, number: int) -> float:
        """So many updates on random batches: the mean loss."""
        total = torch.zeros((), device=self.padded.device)
        for _ in range(number):
            total += self.step(*self.batch())
        return total.item() / number


def extract(
    model: nn.Module, images: torch.Tensor, options: ImageOptions, layout: str, batch_size: int
) -> torch.Tensor:
    """Features [N, D] of uint8 images [N, H, W, 3], in batches."""
    with torch.inference_mode():
        return torch.cat([model(normalize(b, options, layout)) for b in images.split(batch_size)])


class _Samples(torch.utils.data.Dataset):
    """One image at a time, augmented in the worker."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, options: ImageOptions):
        self._images, self._labels, self._options = images, labels, options
        self._mean, self._std = (
            torch.tensor(v)[:, None, None] for v in (options.mean, options.std)
        )

    def __len__(self):
        return len(self._labels)

    def __getitem__(self, index):
        margin = self._options.augment.keywords["padding"]
        image = torch.from_numpy(self._images[index]).permute(2, 0, 1)
        size = image.shape[-1]
        top, left = torch.randint(2 * margin + 1, (2,)).tolist()
        image = F.pad(image, (margin,) * 4)[:, top : top + size, left : left + size]
        if torch.rand(()) < 0.5:
            image = image.flip(-1)
        return (image / 255 - self._mean) / self._std, int(self._labels[index])


def official_loop(
    trainer: Trainer, data: TaskData, epochs: int, workers: int
) -> tuple[float, float]:
    """Training of common shape: `DataLoader`s, samples augmented one by one, figures every step.

    Half of each batch comes from a loader of the memory and half from one of the new samples, and
    the loss is read after every step, as in the official code.

    Returns:
      The last loss, and the seconds of all steps but for one epoch before them, in which the
      loaders start their processes and the device warms up.
    """
    device, half = trainer.padded.device, trainer.batch_size // 2
    images, labels = np.asarray(data.dataset.images), np.asarray(data.dataset.labels)
    loaders = []
    for pool, number in ((trainer.memory, half), (trainer.new, trainer.batch_size - half)):
        chosen = pool.cpu().numpy()
        loaders.append(
            torch.utils.data.DataLoader(
                _Samples(images[chosen], labels[chosen], trainer.options),
                batch_size=number,
                shuffle=True,
                drop_last=True,
                num_workers=workers,
                pin_memory=device.type == "cuda",
                persistent_workers=workers > 0,
                # A fork would copy JAX's threads in whatever state they are.
                multiprocessing_context="forkserver" if workers else None,
            )
        )
    steps = (len(trainer.new) + len(trainer.memory)) // trainer.batch_size
    endless = [itertools.chain.from_iterable(itertools.repeat(loader)) for loader in loaders]
    loss, started = float("nan"), time.perf_counter()
    for number, parts in enumerate(
        itertools.islice(zip(*endless, strict=True), (1 + epochs) * steps)
    ):
        if number == steps:
            started = time.perf_counter()  # the loss has been read: no work is under way
        batch, targets = (
            torch.cat([value.to(device, non_blocking=True) for value in values])
            for values in zip(*parts, strict=True)
        )
        batch = batch.contiguous(memory_format=LAYOUTS[trainer.layout])
        loss = trainer.step(batch, targets.long()).item()
    return loss, time.perf_counter() - started
