"""resnet110_cifar and resnet32_cifar: residual networks of basic blocks for 32x32 images.

Source: "Deep Residual Learning for Image Recognition", He, Zhang, Ren and Sun, section 4.2. The two differ in what a
block's shortcut does when the size changes, and in their initialisation, as the recipes do that made them known.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ns_data.models.init import convolutions_by_fan_out


def resnet110_cifar(num_classes: int, depth: int = 110) -> nn.Module:
    """ResNet-110 with projection shortcuts (option B); convolutions from N(0, 2 / (k k C_out)), the head as torch does."""
    model = ResNetCIFAR(num_classes, depth, pad_shortcut=False)
    convolutions_by_fan_out(model)
    return model


def resnet32_cifar(num_classes: int, depth: int = 32) -> nn.Module:
    """ResNet-32 with parameter-free shortcuts (option A), the long-tailed recipes' network.

    Weights of convolutions and head from N(0, 2 / fan_in). Source of the initialisation: "Learning Imbalanced Datasets with
    Label-Distribution-Aware Margin Loss", Cao, Wei, Gaidon, Arechiga and Ma.
    """
    model = ResNetCIFAR(num_classes, depth, pad_shortcut=True)
    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight)
    return model


class ResNetCIFAR(nn.Module):
    """A 3x3 convolution, three stages of (depth - 2) / 6 basic blocks with 16, 32 and 64 channels, mean, linear head.

    Raises ``ValueError`` for a depth that is not 6 n + 2.
    """

    def __init__(self, num_classes: int, depth: int, pad_shortcut: bool) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth must be 6 n + 2 for n blocks a stage, such as 8, 20, 32 or 110, got {depth}")
        blocks = (depth - 2) // 6
        self.conv = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.stages = nn.Sequential(
            _stage(16, 16, 1, blocks, pad_shortcut),
            _stage(16, 32, 2, blocks, pad_shortcut),
            _stage(32, 64, 2, blocks, pad_shortcut),
        )
        self.head = nn.Linear(64, num_classes)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        x = self.stages(F.relu(self.bn(self.conv(images_BCHW))))
        logits_BK: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits_BK


def _stage(channels_in: int, channels: int, stride: int, blocks: int, pad_shortcut: bool) -> nn.Sequential:
    first = BasicBlock(channels_in, channels, stride, pad_shortcut)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1, pad_shortcut) for _ in range(blocks - 1)))


class BasicBlock(nn.Module):
    """relu(shortcut(x) + bn(conv(relu(bn(conv(x)))))), both convolutions 3x3."""

    def __init__(self, channels_in: int, channels: int, stride: int, pad_shortcut: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = (
                PadShortcut(channels - channels_in)
                if pad_shortcut
                else nn.Sequential(nn.Conv2d(channels_in, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels))
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class PadShortcut(nn.Module):
    """Option A: every second pixel, and zeros for the ``extra`` channels, half of them on each side."""

    def __init__(self, extra: int) -> None:
        super().__init__()
        self.extra = extra

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return F.pad(x_BCHW[:, :, ::2, ::2], (0, 0, 0, 0, self.extra // 2, self.extra // 2))
