"""Label smoothing: l = -sum_k t_k log p_k with t = (1 - smoothing) e_y + smoothing / K; dl/dz = p - t.

Source: "When Does Label Smoothing Help?", Mueller et al., 2019. CIFAR: smoothing 0.1. Deviations: none. The loss has no upper
bound for confident logits and is not 0 at p_y = 1.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ns_data.losses.base import PerSampleLoss, at_least_float32, check_range


class LabelSmoothing(PerSampleLoss):
    """``smoothing`` in [0, 1] is the share of the target that is spread over all K classes."""

    def __init__(self, smoothing: float = 0.1) -> None:
        super().__init__()
        check_range("smoothing", smoothing, 0, 1)
        self.smoothing = smoothing

    def forward(self, logits_BK: Tensor, labels_B: Tensor, *, ids: Tensor | None = None) -> Tensor:
        return F.cross_entropy(at_least_float32(logits_BK), labels_B, reduction="none", label_smoothing=self.smoothing)
