"""Losses by name. A loss is ``loss(logits_BK, labels_B, *, ids=None) -> loss_B``: per sample, never reduced."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from ns_data.choose import choose, construct
from ns_data.losses.base import PerSampleLoss
from ns_data.losses.cross_entropy import CrossEntropy

LOSSES: dict[str, Callable[..., PerSampleLoss]] = {
    "cross_entropy": CrossEntropy,
}


def create_loss(name: str, options: dict[str, Any], **facts: Any) -> PerSampleLoss:
    """``LOSSES[name](**options)``; a loss that names one of the ``facts`` of the data (such as ``stats``) is given it."""
    wanted = inspect.signature(choose(LOSSES, name, "loss")).parameters
    known = {key: value for key, value in facts.items() if key in wanted}
    return construct(LOSSES, name, "loss", {**known, **options})
