"""PerSampleLoss: what the training loop may ask of every loss, so that it knows none by name; and terms that losses share.

Here and in every loss: z logits, p = softmax(z), y label, K classes, l the loss of one sample.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PerSampleLoss(nn.Module):
    """``forward(logits_BK, labels_B, *, ids=None) -> loss_B``, in float32 or better. The calls below are for all alike.

    What a loss learns from the data it sees (a queue, kept samples) changes in training mode only, so that a validation
    loss after ``eval()`` leaves it alone; ``state_dict`` holds all of it.
    """

    def forward(self, logits_BK: Tensor, labels_B: Tensor, *, ids: Tensor | None = None) -> Tensor:
        raise TypeError(f"{type(self).__name__} must say how to compute the loss")

    def start_epoch(self, epoch: int, num_epochs: int) -> None:
        """Called before each epoch."""

    def set_lr(self, lr: float) -> None:
        """Called before each step with the base learning rate, before the factors of ``optimizer.groups``."""

    def regularizer(self, model: nn.Module) -> Tensor | float:
        """What the objective adds to the (weighted) mean of the losses; never multiplied by a sample's weight."""
        return 0.0

    def __call__(self, logits_BK: Tensor, labels_B: Tensor, *, ids: Tensor | None = None) -> Tensor:
        loss_B: Tensor = super().__call__(logits_BK, labels_B, ids=ids)
        return loss_B


def at_least_float32(logits: Tensor) -> Tensor:
    """Half-precision logits as float32; others unchanged."""
    return logits.float() if logits.element_size() < 4 else logits


def log_softmax(logits_BK: Tensor) -> Tensor:
    """log p, shape (B, K), in float32 or better."""
    return F.log_softmax(at_least_float32(logits_BK), dim=1)


def of_label(values_BK: Tensor, labels_B: Tensor) -> Tensor:
    """Each row's value of its own label, shape (B,)."""
    return values_BK.gather(1, labels_B[:, None])[:, 0]


def one_minus_exp(log_p: Tensor) -> Tensor:
    """1 - p from log p, without the cancellation at p close to 1."""
    return -torch.expm1(log_p)


def normalized(terms_BK: Tensor, labels_B: Tensor) -> Tensor:
    """Active term of the label over the sum of all classes' terms, shape (B,): NCE of ``terms = -log p``."""
    return of_label(terms_BK, labels_B) / terms_BK.sum(1)


def focal_terms(log_p_BK: Tensor, gamma: float) -> Tensor:
    """-(1 - p_k)^gamma log p_k, shape (B, K), with no gradient through the factor."""
    return -(one_minus_exp(log_p_BK.detach()) ** gamma) * log_p_BK


def reverse_cross_entropy(log_p_BK: Tensor, labels_B: Tensor, log_zero: float, min_p: float | None) -> Tensor:
    """-log_zero * (1 - p_y), shape (B,): the cross-entropy with label and prediction exchanged, log 0 read as ``log_zero``.

    With ``min_p``, 1 - p_y is the sum of the other classes' p, each at least ``min_p`` and without gradient below it.
    """
    if min_p is None:
        return -log_zero * one_minus_exp(of_label(log_p_BK, labels_B))
    p_BK = log_p_BK.exp().clamp_min(min_p)
    return -log_zero * p_BK.scatter(1, labels_B[:, None], 0.0).sum(1)


def check_range(name: str, value: float, low: float, high: float = float("inf"), *, open_low: bool = False) -> None:
    """Refuse an option outside [low, high], or (low, high] with ``open_low``."""
    if not (low < value or (value == low and not open_low)) or not value <= high:
        bounds = f"{'above' if open_low else 'at least'} {low:g}" + (f" and at most {high:g}" if high < float("inf") else "")
        raise ValueError(f"{name} must be {bounds}, got {value!r}")
