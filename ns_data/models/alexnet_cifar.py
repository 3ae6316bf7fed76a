"""alexnet_cifar: five convolutions and one linear layer for 32x32 images; no BatchNorm."""

from __future__ import annotations

from torch import Tensor, nn


class AlexNetCIFAR(nn.Module):
    """AlexNet cut down to 32x32 images (and larger ones, by the mean over the last places), initialised as torch does.

    Source: the layers of "ImageNet Classification with Deep Convolutional Neural Networks", Krizhevsky, Sutskever and
    Hinton, with one linear layer in place of three.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 11, stride=4, padding=5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.head = nn.Linear(256, num_classes)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        logits_BK: Tensor = self.head(self.features(images_BCHW).mean(dim=(2, 3)))
        return logits_BK
