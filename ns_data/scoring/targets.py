"""Targets of a score: class ids, or a distribution over classes for each sample (mixup, CutMix, label smoothing).

A composite's logit for soft targets t is logsumexp_k(z_k + log t_k), the log of the probability it gives to t's classes
weighted by t, up to the normaliser that the members share. With one-hot t it is z_y.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def target_logits(logits_GK: Tensor, targets: Tensor) -> Tensor:
    """Each member's own logit, shape (G, M), float32, for targets of class ids (G, M) or distributions (G, M, K)."""
    logits_GK = logits_GK.float()
    if not targets.is_floating_point():
        return logits_GK.gather(1, targets)
    terms_GMK = logits_GK[:, None] + targets.float().log()
    return terms_GMK.masked_fill(targets == 0, float("-inf")).logsumexp(2)  # a class without share says nothing, even NaN


def hard_labels(labels: Tensor) -> Tensor:
    """Class ids (B,) as they are, of distributions (B, K) the likeliest class."""
    return labels.argmax(1) if labels.ndim == 2 else labels


def check_targets(labels: Tensor, batch_size: int, look: bool) -> None:
    """Refuse labels that are neither class ids (B,) nor distributions (B, K); ``look`` reads the values of the latter."""
    shape, matrix = tuple(labels.shape), labels.ndim == 2 and labels.shape[0] == batch_size
    if matrix and not labels.is_floating_point() and labels.shape[1] > 1:
        raise ValueError(
            f"labels of {labels.dtype} and shape {shape} are multi-label targets, for which no score is defined: pass one "
            "class id a sample, or distributions that sum to 1"
        )
    if not matrix and (shape != (batch_size,) or labels.is_floating_point() or labels.dtype == torch.bool):
        raise ValueError(f"labels must be {batch_size} class ids, one an image, got {labels.dtype} of {shape}")
    if matrix and look:
        # The sums of bfloat16 distributions are off by up to 1 %.
        sums_B = labels.float().sum(1)
        wrong_B = ~((sums_B - 1).abs() <= 0.02) | (labels < 0).any(1)
        if bool(wrong_B.any()):
            i = int(wrong_B.int().argmax())
            raise ValueError(
                f"the targets of sample {i} sum to {float(sums_B[i]):g}, not 1, or have a negative share: soft targets are "
                "distributions over the classes, and for multi-label targets no score is defined"
            )


def check_logits(logits_GK: Any, targets: Tensor, look: bool) -> None:
    """Refuse an output that is no (G, K) tensor of logits for these targets; ``look`` reads the values of class ids."""
    if not isinstance(logits_GK, Tensor):
        raise ValueError(
            f"the model returned {type(logits_GK).__name__}, not a tensor of logits: pass logits=, a callable that takes "
            "them out of the output"
        )
    if logits_GK.ndim != 2 or logits_GK.shape[0] != targets.shape[0]:
        raise ValueError(
            f"the model returned logits of shape {tuple(logits_GK.shape)} for {targets.shape[0]} composites: "
            "one row of class logits a composite is needed"
        )
    classes = logits_GK.shape[1]
    if targets.is_floating_point() and targets.shape[2] != classes:
        raise ValueError(f"soft targets over {targets.shape[2]} classes do not fit a model of {classes} classes")
    if look and not targets.is_floating_point() and targets.numel():
        lowest, highest = (int(bound) for bound in targets.aminmax())
        if lowest < 0 or highest >= classes:
            wrong = lowest if lowest < 0 else highest
            raise ValueError(f"label {wrong} is out of range for a model of {classes} classes")
