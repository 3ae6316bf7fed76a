"""Epsilon-softmax cross-entropy with the absolute error: l = alpha * CE_eps + beta * 2 (1 - p_y).

    CE_eps = -log max(s_y, 1e-8),  s = (p + m e_t) / (m + 1),  t = argmax p (of equals the first)

Source: "epsilon-Softmax: Approximating One-Hot Vectors for Mitigating Label Noise", Wang et al., 2024.
CIFAR-10: alpha 0.01, beta 5, m 1e5 (symmetric noise and none); 0.02, 5, 1e3 (asymmetric). CIFAR-100, beta 1: alpha 0.1 (no
noise), 0.05, 0.03, 0.00125, 0.0075 (symmetric 0.2, 0.4, 0.6, 0.8), m 1e4; 0.015, 0.007, 0.005, 0.004 (asymmetric), m 1e2.
Deviations: none; alone: the other's factor 0. CE_eps is a jump where the argmax changes, has 1/(m + 1) of the gradient where
y is the argmax, and none where it is not and p_y < 1e-8 (m + 1): the authors note that the bound matters.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ns_data.losses.base import PerSampleLoss, check_range, log_softmax, of_label, one_minus_exp


class EpsSoftmaxMAE(PerSampleLoss):
    """``m`` > 0 pulls the softmax towards its largest entry; ``min_s`` bounds s_y below."""

    def __init__(
        self,
        alpha: float = 0.01,
        beta: float = 5.0,
        m: float = 1e5,
        *,
        min_s: float = 1e-8,
        mae_scale: float = 2.0,
    ) -> None:
        super().__init__()
        check_range("m", m, 0, open_low=True)
        check_range("min_s", min_s, 0, 1, open_low=True)
        self.alpha, self.beta, self.m, self.min_s, self.mae_scale = alpha, beta, m, min_s, mae_scale

    def forward(self, logits_BK: Tensor, labels_B: Tensor, *, ids: Tensor | None = None) -> Tensor:
        log_p_BK = log_softmax(logits_BK)
        log_p_B = of_label(log_p_BK, labels_B)
        miss_B = one_minus_exp(log_p_B)
        log_s_B = torch.where(
            log_p_BK.argmax(1) == labels_B,
            torch.log1p(-miss_B / (self.m + 1)),  # (p + m) / (m + 1) is 1 - (1 - p) / (m + 1): no digits lost
            log_p_B - math.log1p(self.m),
        )
        return -self.alpha * log_s_B.clamp_min(math.log(self.min_s)) + self.beta * self.mae_scale * miss_B
