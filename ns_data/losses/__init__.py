"""Losses by name. A loss is ``loss(logits_BK, labels_B, *, ids=None) -> loss_B``: per sample, never reduced."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from ns_data.choose import choose, construct
from ns_data.losses.anl import ActiveNegative
from ns_data.losses.apl import ActivePassive
from ns_data.losses.aul import AsymmetricUnhinged
from ns_data.losses.base import PerSampleLoss
from ns_data.losses.ce_eps_mae import EpsSoftmaxMAE
from ns_data.losses.ce_ogc import ClippedCrossEntropy
from ns_data.losses.cross_entropy import CrossEntropy
from ns_data.losses.focal import Focal
from ns_data.losses.gce import GeneralizedCrossEntropy
from ns_data.losses.label_smoothing import LabelSmoothing
from ns_data.losses.logit_adjustment import LogitAdjustment
from ns_data.losses.low import LOW
from ns_data.losses.nlnl import NegativeLearning
from ns_data.losses.poly import Poly1
from ns_data.losses.sce import SymmetricCrossEntropy

LOSSES: dict[str, Callable[..., PerSampleLoss]] = {
    "cross_entropy": CrossEntropy,
    "logit_adjustment": LogitAdjustment,
    "focal": Focal,
    "gce": GeneralizedCrossEntropy,
    "label_smoothing": LabelSmoothing,
    "nlnl": NegativeLearning,
    "sce": SymmetricCrossEntropy,
    "apl": ActivePassive,
    "low": LOW,
    "poly": Poly1,
    "anl": ActiveNegative,
    "aul": AsymmetricUnhinged,
    "ce_eps_mae": EpsSoftmaxMAE,
    "ce_ogc": ClippedCrossEntropy,
}


def create_loss(name: str, options: dict[str, Any], **facts: Any) -> PerSampleLoss:
    """``LOSSES[name](**options)``; a loss that names one of the ``facts`` of the data (such as ``stats``) is given it."""
    wanted = inspect.signature(choose(LOSSES, name, "loss")).parameters
    known = {key: value for key, value in facts.items() if key in wanted}
    return construct(LOSSES, name, "loss", {**known, **options})
