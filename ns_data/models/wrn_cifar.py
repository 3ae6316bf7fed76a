"""wrn28_10_cifar: the wide residual network WRN-28-10 for 32x32 images.

Source: "Wide Residual Networks", Zagoruyko and Komodakis.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ns_data.models.init import convolutions_by_fan_out


class WideResNetCIFAR(nn.Module):
    """Pre-activation basic blocks, (depth - 4) / 6 a stage, with 16, 32 and 64 times ``widen`` channels; linear head.

    Convolutions from N(0, 2 / (k k C_out)), the head as torch does with zero bias.

    Args:
        dropout: probability between a block's convolutions. The common CIFAR recipe takes 0.3; the paper names none.

    Raises ``ValueError`` for a depth that is not 6 n + 4.
    """

    def __init__(self, num_classes: int, depth: int = 28, widen: int = 10, dropout: float = 0.3) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"depth must be 6 n + 4 for n blocks a stage, such as 10, 16 or 28, got {depth}")
        self.conv = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        layers: list[nn.Module] = []
        channels_in = 16
        for stage in range(3):
            channels = 16 * widen * 2**stage
            for block in range((depth - 4) // 6):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(WideBlock(channels_in, channels, stride, dropout))
                channels_in = channels
        self.blocks = nn.Sequential(*layers)
        self.bn = nn.BatchNorm2d(channels_in)
        self.head = nn.Linear(channels_in, num_classes)
        convolutions_by_fan_out(self)
        nn.init.zeros_(self.head.bias)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        x = F.relu(self.bn(self.blocks(self.conv(images_BCHW))))
        logits_BK: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits_BK


class WideBlock(nn.Module):
    """BatchNorm and ReLU before each 3x3 convolution. Where the channels change, the 1x1 shortcut shares the first of them."""

    def __init__(self, channels_in: int, channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.shortcut: nn.Module | None = None
        if channels_in != channels or stride != 1:
            self.shortcut = nn.Conv2d(channels_in, channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        out: Tensor = self.conv2(self.dropout(F.relu(self.bn2(self.conv1(active)))))
        return out + (x if self.shortcut is None else self.shortcut(active))
