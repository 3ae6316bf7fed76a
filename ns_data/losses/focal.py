"""Focal loss: l = -alpha_y (1 - p_y)^gamma log p_y.

With the true gradient, dl/dz = c (p - e_y), c = (1 - p)^gamma + gamma (1 - p)^(gamma - 1) p (-log p) for p = p_y.

Source: "Focal Loss for Dense Object Detection", Lin et al., 2017; their own softmax kernel has the true gradient.
CIFAR: the authors give none. gamma = 1 in the authors' code of "Learning Imbalanced Datasets with Label-Distribution-Aware
Margin Loss", Cao et al., 2019 (long tails); gamma = 0.5, detached, in the comparisons under label noise since "Normalized
Loss Functions for Deep Learning with Noisy Labels", Ma et al., 2020. Deviations: none; where p_y rounds to 1, the
gradient is its limit 0, where the quotient rule gives NaN for gamma < 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ns_data.losses.base import PerSampleLoss, check_range, log_softmax, of_label, one_minus_exp


class Focal(PerSampleLoss):
    """``alpha``: a factor for all, or one for each class; ``detach``: no gradient through (1 - p_y)^gamma."""

    def __init__(self, gamma: float = 2.0, alpha: float | Sequence[float] | None = None, detach: bool = False) -> None:
        super().__init__()
        check_range("gamma", gamma, 0)
        self.gamma, self.detach = gamma, detach
        self.alpha: Tensor | None
        self.register_buffer("alpha", None if alpha is None else torch.as_tensor(alpha), persistent=False)

    def forward(self, logits_BK: Tensor, labels_B: Tensor, *, ids: Tensor | None = None) -> Tensor:
        log_p_B = of_label(log_softmax(logits_BK), labels_B)
        miss_B = one_minus_exp(log_p_B.detach() if self.detach else log_p_B)
        miss_B = miss_B.clamp_min(torch.finfo(miss_B.dtype).tiny)  # no gradient at 0, where that of the power is infinite
        loss_B = -(miss_B**self.gamma) * log_p_B
        if self.alpha is None:
            return loss_B
        return loss_B * (self.alpha[labels_B] if self.alpha.ndim else self.alpha)
