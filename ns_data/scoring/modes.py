"""What the scoring pass does to a network's modes, and what its wrappers ask of the pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

BATCH_NORM_MODES = ("batch", "running", "paper")


def bare_module(model: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel, DataParallel and torch.compile wrappers; sharded models (FSDP) stay whole."""
    while True:
        if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            model = model.module
        elif hasattr(model, "_orig_mod"):
            model = cast(nn.Module, model._orig_mod)
        else:
            return model


def needs_every_rank(model: nn.Module, batch_norm: str) -> bool:
    """Whether a forward of ``model`` waits for the other ranks: sharded parameters, or statistics shared by SyncBatchNorm."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return False
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel  # only here: it takes its time

    shared = () if batch_norm == "running" else (nn.SyncBatchNorm,)
    return any(isinstance(module, (FSDPModule, FullyShardedDataParallel, *shared)) for module in model.modules())


@contextmanager
def scoring_mode(model: nn.Module, batch_norm: str) -> Iterator[None]:
    """Put ``model`` in the mode of the pass, and every module back into its own afterwards.

    "batch" leaves a BatchNorm that is in evaluation mode inside a model in training (a frozen part) as it trains: on its
    running statistics.
    """
    if batch_norm == "paper":
        yield
        return
    modes = [(module, module.training) for module in model.modules()]
    norms = [
        (module, module.track_running_stats)
        for module, training in modes
        if batch_norm == "batch" and isinstance(module, _BatchNorm) and (training or not model.training)
    ]
    try:
        for module, training in modes:
            if training:
                module.training = False
        for module, _ in norms:
            module.training, module.track_running_stats = True, False  # batch statistics, buffers untouched
        yield
    finally:
        for module, training in modes:
            if module.training is not training:
                module.training = training
        for module, track in norms:
            module.track_running_stats = track
