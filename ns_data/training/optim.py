"""Optimisers and learning-rate schedules by name, and learning rates of their own for parts of a network."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ns_data.choose import construct, unknown
from ns_data.losses.base import check_range

Groups = list[dict[str, Any]]  # torch's parameter groups, each with its "factor" on the learning rate


def _sgd(groups: Groups, lr: float, *, momentum: float = 0.9, weight_decay: float = 0.0, nesterov: bool = False) -> Any:
    return torch.optim.SGD(groups, lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)


def _adamw(groups: Groups, lr: float, *, weight_decay: float = 0.05, beta1: float = 0.9, beta2: float = 0.999) -> Any:
    """AdamW without decay for biases and normalisation parameters, which have at most one dimension."""
    halves = []
    for group in groups:
        decayed = [p for p in group["params"] if p.ndim > 1]
        others = [p for p in group["params"] if p.ndim <= 1]
        halves += [{**group, "params": decayed, "weight_decay": weight_decay}, {**group, "params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(halves, lr, betas=(beta1, beta2))


# optimiser(groups, lr, **options)
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"sgd": _sgd, "adamw": _adamw}


def create_optimizer(
    name: str, model: nn.Module, lr: float, options: dict[str, Any], factors: Mapping[str, float] | None = None
) -> torch.optim.Optimizer:
    """An optimiser of the parameters that need gradients; ``factors`` as in ``parameter_groups``."""
    groups = parameter_groups(model, factors or {})
    builders = {known: partial(build, groups, lr) for known, build in OPTIMIZERS.items()}
    return construct(builders, name, "optimizer", options)


def parameter_groups(model: nn.Module, factors: Mapping[str, float]) -> Groups:
    """Parameters by the factor on their learning rate: 1, or that of the longest prefix in ``factors`` of their name.

    A prefix names a module or a parameter, such as "fc" or "layer4.1". A factor of 0 freezes: its parameters are taken
    out of training, gradients included. Raises ``ValueError`` for a prefix that matches nothing, naming the nearest one.
    """
    for prefix, factor in factors.items():
        if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 <= factor < math.inf:
            raise ValueError(f"optimizer.groups.{prefix} must be a factor on the learning rate, 0 or more, got {factor!r}")
        _check_prefix(model, prefix)
    by_factor: dict[float, list[nn.Parameter]] = {1.0: []}
    for name, parameter in model.named_parameters():
        matching = [prefix for prefix in factors if _is_within(name, prefix)]
        factor = float(factors[max(matching, key=len)]) if matching else 1.0
        if factor == 0:
            parameter.requires_grad_(False)
        if parameter.requires_grad:
            by_factor.setdefault(factor, []).append(parameter)
    if not any(by_factor.values()):
        raise ValueError(f"optimizer.groups={dict(factors)} freezes the whole network: leave a part of it to train")
    return [{"params": parameters, "factor": factor} for factor, parameters in by_factor.items() if parameters]


def _is_within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def _check_prefix(model: nn.Module, prefix: str) -> None:
    names = [name for name, _ in model.named_parameters()]
    if not any(_is_within(name, prefix) for name in names):
        depth = 1 + prefix.count(".")  # a name of the network's top level is met by names of that level
        near = dict.fromkeys(".".join(name.split(".")[:depth]) for name in names)
        raise ValueError(unknown(prefix, near, "part of the network in optimizer.groups"))


def _constant(epoch: float, num_epochs: int, *, warmup_epochs: float = 0.0) -> float:
    return _warmup(epoch, warmup_epochs)


def _cosine(epoch: float, num_epochs: int, *, warmup_epochs: float = 0.0, final: float = 0.0) -> float:
    """Linear warm-up, then half a cosine from 1 to ``final``."""
    if epoch < warmup_epochs:
        return _warmup(epoch, warmup_epochs)
    return final + (1 - final) * (1 + math.cos(math.pi * _progress(epoch, num_epochs, warmup_epochs))) / 2


def _multi_step(
    epoch: float, num_epochs: int, *, milestones: Sequence[float] = (), factor: float = 0.1, warmup_epochs: float = 0.0
) -> float:
    """``factor`` at each milestone (in epochs) that has passed."""
    return _warmup(epoch, warmup_epochs) * factor ** sum(epoch >= milestone for milestone in milestones)


def _poly(epoch: float, num_epochs: int, *, power: float = 0.9, warmup_epochs: float = 0.0) -> float:
    """Linear warm-up, then (1 - t/T)^power, t/T the share of the epochs after it that has passed."""
    check_range("schedule.options.power", power, 0.0, open_low=True)
    if epoch < warmup_epochs:
        return _warmup(epoch, warmup_epochs)
    return (1 - _progress(epoch, num_epochs, warmup_epochs)) ** power


def _shot(epoch: float, num_epochs: int, *, gamma: float = 10.0, power: float = 0.75, warmup_epochs: float = 0.0) -> float:
    """Linear warm-up, then (1 + gamma t/T)^-power, as in "Do We Really Need to Access the Source Data? Source Hypothesis
    Transfer for Unsupervised Domain Adaptation", Liang, Hu and Feng."""
    check_range("schedule.options.gamma", gamma, 0.0)
    check_range("schedule.options.power", power, 0.0)
    if epoch < warmup_epochs:
        return _warmup(epoch, warmup_epochs)
    return float((1 + gamma * _progress(epoch, num_epochs, warmup_epochs)) ** -power)


def _warmup(epoch: float, warmup_epochs: float) -> float:
    return min(1.0, (epoch + 1e-3) / warmup_epochs) if warmup_epochs > 0 else 1.0


def _progress(epoch: float, num_epochs: int, warmup_epochs: float) -> float:
    """From 0 at the end of the warm-up to 1 at the end of training."""
    return min(1.0, (epoch - warmup_epochs) / max(num_epochs - warmup_epochs, 1e-9))


# schedule(epoch, num_epochs, **options) -> factor on the learning rate; epochs are fractional, a step counts its share.
SCHEDULES: dict[str, Callable[..., float]] = {
    "constant": _constant,
    "cosine": _cosine,
    "multi_step": _multi_step,
    "poly": _poly,
    "shot": _shot,
}


def create_schedule(name: str, num_epochs: int, options: dict[str, Any]) -> Callable[[float], float]:
    """A function of the fractional epoch, its options checked now."""
    construct({known: partial(schedule, 0.0, num_epochs) for known, schedule in SCHEDULES.items()}, name, "schedule", options)
    return partial(SCHEDULES[name], num_epochs=num_epochs, **options)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group the learning rate ``lr`` times its factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("factor", 1.0)
