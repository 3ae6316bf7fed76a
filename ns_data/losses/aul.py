"""Asymmetric unhinged loss: l = beta ((a - p_y)^q - (a - 1)^q) / q, plus alpha * NCE if alpha is not 0.

The derivative in p_y is -beta (a - p_y)^(q - 1). NCE = log p_y / sum_k log p_k.

Source: "Asymmetric Loss Functions for Noise-Tolerant Learning: Theory and Applications", Zhou et al., 2023.
CIFAR: alone a = 5.5, q = 3 (CIFAR-10 and CIFAR-100). With NCE alpha 1, beta 4, a = 6.3, q = 1.5 (CIFAR-10) or alpha 10,
beta 0.015, a = 6, q = 3 (CIFAR-100).
Deviations: none. Alone, it has no gradient on confident mistakes, and starts with 3 times cross-entropy's for K = 10.
"""

from __future__ import annotations

from torch import Tensor

from ns_data.losses.base import PerSampleLoss, check_range, log_softmax, normalized, of_label


class AsymmetricUnhinged(PerSampleLoss):
    """``a`` > 1 and ``q`` > 0; ``alpha`` and ``beta`` are the factors of NCE and of the unhinged term."""

    def __init__(self, a: float = 5.5, q: float = 3.0, alpha: float = 0.0, beta: float = 1.0) -> None:
        super().__init__()
        check_range("a", a, 1, open_low=True)
        check_range("q", q, 0, open_low=True)
        self.a, self.q, self.alpha, self.beta = a, q, alpha, beta

    def forward(self, logits_BK: Tensor, labels_B: Tensor, *, ids: Tensor | None = None) -> Tensor:
        log_p_BK = log_softmax(logits_BK)
        p_B = of_label(log_p_BK, labels_B).exp()
        loss_B = self.beta * ((self.a - p_B) ** self.q - (self.a - 1) ** self.q) / self.q
        return loss_B + self.alpha * normalized(-log_p_BK, labels_B) if self.alpha else loss_B
