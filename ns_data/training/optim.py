"""Optimisers and learning-rate schedules by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ns_data.choose import construct


def _sgd(model: nn.Module, lr: float, momentum: float = 0.9, weight_decay: float = 0.0, nesterov: bool = False) -> Any:
    return torch.optim.SGD(model.parameters(), lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)


def _adamw(model: nn.Module, lr: float, weight_decay: float = 0.05, beta1: float = 0.9, beta2: float = 0.999) -> Any:
    """AdamW without decay for biases and normalisation parameters, which have at most one dimension."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr, betas=(beta1, beta2))


# optimiser(model, lr, **options)
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"sgd": _sgd, "adamw": _adamw}


def create_optimizer(name: str, model: nn.Module, lr: float, options: dict[str, Any]) -> torch.optim.Optimizer:
    return construct(OPTIMIZERS, name, "optimizer", {"model": model, "lr": lr, **options})


def _constant(epoch: float, num_epochs: int, *, warmup_epochs: float = 0.0) -> float:
    return _warmup(epoch, warmup_epochs)


def _cosine(epoch: float, num_epochs: int, *, warmup_epochs: float = 0.0, final: float = 0.0) -> float:
    """Linear warm-up, then half a cosine from 1 to ``final``."""
    if epoch < warmup_epochs:
        return _warmup(epoch, warmup_epochs)
    progress = min(1.0, (epoch - warmup_epochs) / max(num_epochs - warmup_epochs, 1e-9))
    return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2


def _multi_step(
    epoch: float, num_epochs: int, *, milestones: Sequence[float] = (), factor: float = 0.1, warmup_epochs: float = 0.0
) -> float:
    """``factor`` at each milestone (in epochs) that has passed."""
    return _warmup(epoch, warmup_epochs) * factor ** sum(epoch >= milestone for milestone in milestones)


def _poly(epoch: float, num_epochs: int, *, power: float = 0.9, warmup_epochs: float = 0.0) -> float:
    """(1 - epoch / num_epochs) ** power, after a linear warm-up towards it."""
    return _warmup(epoch, warmup_epochs) * max(0.0, 1 - epoch / num_epochs) ** power


def _warmup(epoch: float, warmup_epochs: float) -> float:
    return min(1.0, (epoch + 1e-3) / warmup_epochs) if warmup_epochs > 0 else 1.0


# schedule(epoch, num_epochs, **options) -> factor on the learning rate; epochs are fractional, a step counts its share.
SCHEDULES: dict[str, Callable[..., float]] = {
    "constant": _constant,
    "cosine": _cosine,
    "multi_step": _multi_step,
    "poly": _poly,
}


def create_schedule(name: str, num_epochs: int, options: dict[str, Any]) -> Callable[[float], float]:
    """A function of the fractional epoch, its options checked now."""
    construct(SCHEDULES, name, "schedule", {"epoch": 0.0, "num_epochs": num_epochs, **options})
    return partial(SCHEDULES[name], num_epochs=num_epochs, **options)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
