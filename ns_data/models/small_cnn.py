"""small_cnn: three convolutions for small images, to try things out on a CPU."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn


class SmallCNN(nn.Module):
    """Three 3x3 convolutions with BatchNorm and ReLU, halving the size twice; mean over places; a linear head.

    Takes images of shape (3, H, W) from 8x8 pixels on; ``width`` channels in the first layer, twice and four times as many
    in the next. ``batch_norm=False`` leaves the normalisation out: a batch then falls apart into its samples.
    """

    def __init__(self, num_classes: int, width: int = 16, batch_norm: bool = True) -> None:
        super().__init__()
        widths = (3, width, 2 * width, 4 * width)
        first, second, third = (_layer(*pair, batch_norm) for pair in pairwise(widths))
        self.features = nn.Sequential(*first, nn.MaxPool2d(2), *second, nn.MaxPool2d(2), *third)
        self.head = nn.Linear(4 * width, num_classes)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        logits_BK: Tensor = self.head(self.features(images_BCHW).mean(dim=(2, 3)))
        return logits_BK


def _layer(channels_in: int, channels_out: int, batch_norm: bool) -> list[nn.Module]:
    convolution = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=not batch_norm)
    return [convolution, nn.BatchNorm2d(channels_out), nn.ReLU()] if batch_norm else [convolution, nn.ReLU()]
