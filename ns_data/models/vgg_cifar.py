"""vgg19_bn_cifar: VGG's configuration E with BatchNorm and one linear layer, for 32x32 images."""

from __future__ import annotations

from torch import Tensor, nn

from ns_data.models.init import convolutions_by_fan_out

_STAGES = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))  # channels, convolutions; each stage ends in a max pool


class VGG19CIFAR(nn.Module):
    """Sixteen 3x3 convolutions with bias, BatchNorm and ReLU in five stages, and a linear head.

    Convolutions from N(0, 2 / (9 C_out)), the head from N(0, 0.01^2), biases zero.
    Source: "Very Deep Convolutional Networks for Large-Scale Image Recognition", Simonyan and Zisserman.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels_in = 3
        for channels, num_convolutions in _STAGES:
            for _ in range(num_convolutions):
                layers += [nn.Conv2d(channels_in, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()]
                channels_in = channels
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(channels_in, num_classes)
        convolutions_by_fan_out(self)
        nn.init.normal_(self.head.weight, 0.0, 0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        logits_BK: Tensor = self.head(self.features(images_BCHW).mean(dim=(2, 3)))
        return logits_BK
