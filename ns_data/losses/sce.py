"""Symmetric cross-entropy: l = alpha * (-log p_y) + beta * (-log_zero) (1 - p_y).

The second term is the cross-entropy with label and prediction exchanged; ``log_zero`` (A in the paper) stands for log 0.

Source: "Symmetric Cross Entropy for Robust Learning with Noisy Labels", Wang et al., 2019.
CIFAR: alpha 0.1, beta 1 (CIFAR-10) or 6, 0.1 (CIFAR-100). The authors state A = -4 and their code computes log 1e-4 = -9.21,
which weighs the reverse term 2.3 times more: the default is the code's, -4 the option.
Deviations: none from the PyTorch version that the authors name, where p_k is at least 1e-7 in the reverse term only. Their
own first version does the opposite, ce_min_p=1e-7 and rce_min_p=None: it has no gradient of the cross-entropy below 1e-7.
"""

from __future__ import annotations

import math

from torch import Tensor

from ns_data.losses.base import PerSampleLoss, log_softmax, of_label, reverse_cross_entropy


class SymmetricCrossEntropy(PerSampleLoss):
    """``ce_min_p`` and ``rce_min_p``: the smallest p in each term, with gradient 0 below it; None leaves p as it is."""

    def __init__(
        self,
        alpha: float = 0.1,
        beta: float = 1.0,
        log_zero: float = math.log(1e-4),
        *,
        ce_min_p: float | None = None,
        rce_min_p: float | None = 1e-7,
    ) -> None:
        super().__init__()
        self.alpha, self.beta, self.log_zero = alpha, beta, log_zero
        self.ce_min_p, self.rce_min_p = ce_min_p, rce_min_p

    def forward(self, logits_BK: Tensor, labels_B: Tensor, *, ids: Tensor | None = None) -> Tensor:
        log_p_BK = log_softmax(logits_BK)
        ce_B = -of_label(log_p_BK, labels_B)
        if self.ce_min_p is not None:
            ce_B = ce_B.clamp_max(-math.log(self.ce_min_p))
        rce_B = reverse_cross_entropy(log_p_BK, labels_B, self.log_zero, self.rce_min_p)
        return self.alpha * ce_B + self.beta * rce_B
