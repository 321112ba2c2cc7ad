"""The networks in PyTorch, written from their layouts, for comparison with ours.

Only what the tests compare is here: evaluation mode, the parts' official names, and any width.
"""

import torch
import torch.nn.functional as F
from torch import nn


def _conv(inputs, outputs, size, stride=1, groups=1):
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)


def _conv_norm(inputs, outputs, stride):
    return nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


class Basic(nn.Module):
    expansion = 1

    def __init__(self, inputs, width, stride):
        super().__init__()
        self.conv1, self.bn1 = _conv(inputs, width, 3, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _conv(width, width, 3), nn.BatchNorm2d(width)
        if stride != 1 or inputs != width:
            self.downsample = _conv_norm(inputs, width, stride)

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (self.downsample(x) if hasattr(self, "downsample") else x))


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, inputs, width, stride):
        super().__init__()
        outputs = 4 * width
        self.conv1, self.bn1 = _conv(inputs, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _conv(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = _conv(width, outputs, 1), nn.BatchNorm2d(outputs)
        if stride != 1 or inputs != outputs:
            self.downsample = _conv_norm(inputs, outputs, stride)

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(y)))))
        return F.relu(y + (self.downsample(x) if hasattr(self, "downsample") else x))


class SqueezedPreActivation(nn.Module):
    expansion = 1

    def __init__(self, inputs, width, stride):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), _conv(inputs, width, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(width), _conv(width, width, 3)
        if stride != 1 or inputs != width:
            self.shortcut = nn.Sequential(_conv(inputs, width, 1, stride))
        squeezed = max(1, width // 16)
        self.fc1, self.fc2 = nn.Conv2d(width, squeezed, 1), nn.Conv2d(squeezed, width, 1)

    def forward(self, x):
        active = F.relu(self.bn1(x))
        shortcut = self.shortcut(active) if hasattr(self, "shortcut") else x
        y = self.conv2(F.relu(self.bn2(self.conv1(active))))
        gate = torch.sigmoid(self.fc2(F.relu(self.fc1(y.mean((2, 3), keepdim=True)))))
        return y * gate + shortcut


class Attention(nn.Module):
    def __init__(self, width, squeezed):
        super().__init__()
        self.se1, self.se2 = nn.Conv2d(width, squeezed, 1), nn.Conv2d(squeezed, width, 1)

    def forward(self, x):
        means = F.adaptive_avg_pool2d(x, 1)
        return x * torch.sigmoid(self.se2(F.relu(self.se1(means))))


class Grouped(nn.Module):
    def __init__(self, inputs, width, stride, group_width):
        super().__init__()
        self.conv1, self.bn1 = _conv(inputs, width, 1), nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3, stride, groups=width // group_width)
        self.bn2 = nn.BatchNorm2d(width)
        self.se = Attention(width, max(1, round(inputs * 0.25)))
        self.conv3, self.bn3 = _conv(width, width, 1), nn.BatchNorm2d(width)
        if stride != 1 or inputs != width:
            self.shortcut = _conv_norm(inputs, width, stride)

    def forward(self, x):
        y = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        y = self.bn3(self.conv3(self.se(y)))
        return F.relu(y + (self.shortcut(x) if hasattr(self, "shortcut") else x))


class Trunk(nn.Module):
    """Stem, four stages, global mean."""

    def __init__(self, stages, width, stem):
        super().__init__()
        self.imagenet = stem == "imagenet"
        self.conv1 = _conv(3, width, 7, 2) if self.imagenet else _conv(3, width, 3)
        self.bn1 = nn.BatchNorm2d(width)
        for number, blocks in enumerate(stages, start=1):
            setattr(self, f"layer{number}", nn.Sequential(*blocks))

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        if self.imagenet:
            x = F.max_pool2d(x, 3, 2, 1)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return F.adaptive_avg_pool2d(x, 1).flatten(1)


class Network(nn.Module):
    """Trunk, map to the feature and classifier, as the official code has them."""

    def __init__(self, trunk, trunk_width, simplex):
        super().__init__()
        num_classes, dim = simplex.shape
        self.backbone = trunk
        self.fc1 = nn.Linear(trunk_width, dim, bias=False)
        self.fc2 = nn.Linear(dim, num_classes, bias=False)
        with torch.no_grad():
            self.fc2.weight.copy_(torch.from_numpy(simplex))

    def forward(self, x):
        return self.fc1(self.backbone(x))


def _doubling(block, sizes, width):
    stages, inputs = [], width
    for stage, size in enumerate(sizes):
        blocks = []
        for index in range(size):
            stride = 2 if stage and not index else 1
            blocks.append(block(inputs, width * 2**stage, stride))
            inputs = width * 2**stage * block.expansion
        stages.append(blocks)
    return stages, inputs


def _regnet(width):
    stages, inputs = [], width
    plan = zip((1, 2, 7, 12), (32, 64, 160, 384), (1, 1, 2, 2), strict=True)
    for size, published, stride in plan:
        outputs, blocks = published * width // 64, []
        for index in range(size):
            blocks.append(Grouped(inputs, outputs, 1 if index else stride, 16 * width // 64))
            inputs = outputs
        stages.append(blocks)
    return stages, inputs


def build(backbone, simplex, width=64, stem=None):
    """A network with random weights and random statistics, in evaluation mode."""
    resnets = {
        "resnet18": (Basic, (2, 2, 2, 2)),
        "resnet34": (Basic, (3, 4, 6, 3)),
        "resnet50": (Bottleneck, (3, 4, 6, 3)),
        "senet18": (SqueezedPreActivation, (2, 2, 2, 2)),
    }
    if backbone == "regnety_400mf":
        stages, trunk_width = _regnet(width)
    else:
        block, sizes = resnets[backbone]
        stages, trunk_width = _doubling(block, sizes, width)
    stem = stem or ("imagenet" if backbone.startswith("resnet") else "small")
    network = Network(Trunk(stages, width, stem), trunk_width, simplex)
    generator = torch.Generator().manual_seed(0)

    def uniform(tensor, low, high):
        tensor.uniform_(low, high, generator=generator)

    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                uniform(module.weight, 0.5, 1.5)
                uniform(module.bias, -0.2, 0.2)
                uniform(module.running_mean, -0.5, 0.5)
                uniform(module.running_var, 0.5, 2.0)
                module.num_batches_tracked.fill_(7)
            elif isinstance(module, nn.Conv2d):
                fan_in = module.weight[0].numel()
                uniform(module.weight, -((3 / fan_in) ** 0.5), (3 / fan_in) ** 0.5)
                if module.bias is not None:
                    uniform(module.bias, -1.0, 1.0)
    return network.eval()
