"""Poly-1: l = -log p_y + epsilon1 (1 - p_y), cross-entropy with the first coefficient of its expansion in 1 - p_y changed.

With soft targets t of shape (B, K): l = sum_k t_k (-log p_k + epsilon1 (1 - p_k)).

Source: "PolyLoss: A Polynomial Expansion Perspective of Classification Loss Functions", Leng et al., 2022.
CIFAR: none given; epsilon1 = 2 on ImageNet, 1 in common use and the default. Deviations: none.
"""

from __future__ import annotations

from torch import Tensor

from ns_data.losses.base import PerSampleLoss, check_range, log_softmax, of_label, one_minus_exp


class Poly1(PerSampleLoss):
    """``epsilon1`` of at least -1; ``labels_B`` may be soft targets of shape (B, K)."""

    def __init__(self, epsilon1: float = 1.0) -> None:
        super().__init__()
        check_range("epsilon1", epsilon1, -1)
        self.epsilon1 = epsilon1

    def forward(self, logits_BK: Tensor, labels_B: Tensor, *, ids: Tensor | None = None) -> Tensor:
        log_p_BK = log_softmax(logits_BK)
        if labels_B.ndim == 2:
            return (labels_B * self._loss(log_p_BK)).sum(1)
        return self._loss(of_label(log_p_BK, labels_B))

    def _loss(self, log_p: Tensor) -> Tensor:
        return -log_p + self.epsilon1 * one_minus_exp(log_p)
