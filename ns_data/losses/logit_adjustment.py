"""Logit adjustment: l = -log softmax(z + tau log pi)_y with the class shares pi_k = n_k / N of the training set.

With tau = 1 the balanced softmax. Predictions are made from the unadjusted z.

Source: "Long-tail Learning via Logit Adjustment", Menon et al., 2021; "Balanced Meta-Softmax for Long-Tailed Visual
Recognition", Ren et al., 2020. CIFAR-LT: tau = 1. Deviations: a class without samples counts as one sample, since log 0 would
leave its logit without any gradient.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ns_data.losses.base import PerSampleLoss, at_least_float32
from ns_data.stats import ClassStats


class LogitAdjustment(PerSampleLoss):
    """Cross-entropy with every logit raised by ``tau`` times the log of its class's share in ``stats``."""

    def __init__(self, tau: float = 1.0, stats: ClassStats | None = None) -> None:
        super().__init__()
        if stats is None:
            raise ValueError("logit_adjustment needs the class counts: pass stats=ClassStats.from_labels(labels)")
        self.tau = tau
        self.counts_K: Tensor
        self.register_buffer("counts_K", torch.as_tensor(stats.counts).clamp_min(1), persistent=False)

    def forward(self, logits_BK: Tensor, labels_B: Tensor, *, ids: Tensor | None = None) -> Tensor:
        logits_BK = at_least_float32(logits_BK)
        counts_K = self.counts_K.to(logits_BK.dtype)
        return F.cross_entropy(logits_BK + self.tau * (counts_K / counts_K.sum()).log(), labels_B, reduction="none")
