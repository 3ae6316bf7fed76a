"""Cross-entropy: l = -log p_y."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ns_data.losses.base import PerSampleLoss, at_least_float32


class CrossEntropy(PerSampleLoss):
    """The baseline's loss, per sample."""

    def forward(self, logits_BK: Tensor, labels_B: Tensor, *, ids: Tensor | None = None) -> Tensor:
        return F.cross_entropy(at_least_float32(logits_BK), labels_B, reduction="none")
