"""Active passive loss: l = alpha * active + beta * passive.

    active    nce   log p_y / sum_k log p_k
              nfl   f_y / sum_k f_k,  f_k = (1 - p_k)^gamma log p_k, no gradient through the factors
              ngce  (1 - p_y^q) / (K - sum_k p_k^q)
    passive   mae   mae_scale (1 - p_y)
              rce   the reverse term of the symmetric cross-entropy, A = log 1e-4

Source: "Normalized Loss Functions for Deep Learning with Noisy Labels", Ma et al., 2020.
CIFAR: alpha 1, beta 1 for every pair on CIFAR-10; on CIFAR-100 10 and 0.1 with rce, 10 and 1 with mae. gamma 0.5. Later
comparisons differ: 10 and 1 (rce), 10 and 0.1 (mae), mae_scale 2. The pair nce + rce is the authors' example and the default.
Deviations: none. One term alone: the other's factor 0. With many classes the starting gradient is small (NCE + RCE at 10 and
0.1 with K = 100: 0.03 of cross-entropy's).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from ns_data.choose import choose
from ns_data.losses.base import (
    PerSampleLoss,
    check_range,
    focal_terms,
    log_softmax,
    normalized,
    of_label,
    one_minus_exp,
    reverse_cross_entropy,
)


class ActivePassive(PerSampleLoss):
    """``gamma`` is for nfl, ``q`` for ngce, ``mae_scale`` for mae."""

    def __init__(
        self,
        active: str = "nce",
        passive: str = "rce",
        alpha: float = 1.0,
        beta: float = 1.0,
        *,
        gamma: float = 0.5,
        q: float = 0.7,
        mae_scale: float = 1.0,
    ) -> None:
        super().__init__()
        check_range("gamma", gamma, 0)
        check_range("q", q, 0, 1, open_low=True)
        active_terms: dict[str, Callable[[Tensor], Tensor]] = {
            "nce": lambda log_p_BK: -log_p_BK,
            "nfl": lambda log_p_BK: focal_terms(log_p_BK, gamma),
            "ngce": lambda log_p_BK: one_minus_exp(q * log_p_BK),
        }
        passive_terms: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
            "mae": lambda log_p_BK, labels_B: mae_scale * one_minus_exp(of_label(log_p_BK, labels_B)),
            "rce": lambda log_p_BK, labels_B: reverse_cross_entropy(log_p_BK, labels_B, math.log(1e-4), 1e-7),
        }
        self.alpha, self.beta = alpha, beta
        self.active_terms = choose(active_terms, active, "active term")
        self.passive = choose(passive_terms, passive, "passive term")

    def forward(self, logits_BK: Tensor, labels_B: Tensor, *, ids: Tensor | None = None) -> Tensor:
        log_p_BK = log_softmax(logits_BK)
        active_B = normalized(self.active_terms(log_p_BK), labels_B)
        return self.alpha * active_B + self.beta * self.passive(log_p_BK, labels_B)
