"""resnext29_cifar: ResNeXt-29 8x64d, bottlenecks of grouped convolutions, for 32x32 images.

Source: "Aggregated Residual Transformations for Deep Neural Networks", Xie, Girshick, Dollar, Tu and He.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ns_data.models.init import convolutions_by_fan_out


class ResNeXtCIFAR(nn.Module):
    """A 3x3 convolution, three stages of (depth - 2) / 9 blocks with 256, 512 and 1024 channels, mean, linear head.

    Inside the blocks ``cardinality`` groups of ``base_width`` channels in the first stage, twice and four times as wide in the
    next. Convolutions from N(0, 2 / (k k C_out)), the head from N(0, 2 / fan_in) with zero bias.
    Raises ``ValueError`` for a depth that is not 9 n + 2.
    """

    def __init__(self, num_classes: int, depth: int = 29, cardinality: int = 8, base_width: int = 64) -> None:
        super().__init__()
        if depth < 11 or (depth - 2) % 9:
            raise ValueError(f"depth must be 9 n + 2 for n blocks a stage, such as 11, 20 or 29, got {depth}")
        blocks = (depth - 2) // 9
        self.conv = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(64)
        layers: list[nn.Module] = []
        channels_in = 64
        for stage in range(3):
            channels, inner = 256 * 2**stage, cardinality * base_width * 2**stage
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(Bottleneck(channels_in, inner, channels, stride, cardinality))
                channels_in = channels
        self.blocks = nn.Sequential(*layers)
        self.head = nn.Linear(channels_in, num_classes)
        convolutions_by_fan_out(self)
        nn.init.kaiming_normal_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.bn(self.conv(images_BCHW))))
        logits_BK: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits_BK


class Bottleneck(nn.Module):
    """1x1 down to ``inner`` channels, grouped 3x3, 1x1 up, each with BatchNorm; added to the shortcut before the last ReLU."""

    def __init__(self, channels_in: int, inner: int, channels: int, stride: int, groups: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride=stride, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if channels_in != channels:
            projection = nn.Conv2d(channels_in, channels, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + self.shortcut(x))
