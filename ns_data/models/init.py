"""Initialisations that several networks share."""

from __future__ import annotations

from torch import nn


def convolutions_by_fan_out(module: nn.Module) -> None:
    """Draw every convolution's weight from N(0, 2 / (k k C_out)), grouped ones too, and set its bias, if any, to zero.

    Source: "Delving Deep into Rectifiers", He, Zhang, Ren and Sun.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
