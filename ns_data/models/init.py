"""Initialisations that several networks share."""

from __future__ import annotations

from torch import nn


def convolutions_by_fan_out(module: nn.Module) -> None:
    """Draw every convolution's weight from N(0, 2 / (k k C_out)) and set its bias, if any, to zero.

    A grouped convolution counts all its output channels' fan, as He et al. do for a plain one, divided by the groups.
    Source: "Delving Deep into Rectifiers", He, Zhang, Ren and Sun.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, 0.0, fan_out_std(layer))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def fan_out_std(layer: nn.Conv2d) -> float:
    """sqrt(2 / (k k C_out)) of a convolution."""
    height, width = layer.kernel_size
    return float((2 / (height * width * layer.out_channels)) ** 0.5)
