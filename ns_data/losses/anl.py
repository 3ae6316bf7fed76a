"""Active negative loss: l = alpha * active + beta * negative, and delta |theta|_1 over the parameters beside it.

    active    nce   log p_y / sum_k log p_k                    nfl  the same with f_k = (1 - p_k)^gamma log p_k for log p_k
    negative        1 - (A + log p_y) / sum_k (A + log p_k)         1 - (A' + f_y) / sum_k (A' + f_k)

with A = -log min_p, A' = (1 - min_p)^gamma A, log p at least log min_p (gradient 0 below) in the negative term, and no
gradient through the factors (1 - p_k)^gamma.

Source: "Active Negative Loss Functions for Learning with Noisy Labels", Ye et al., 2023.
CIFAR: alpha 5, beta 5, delta 5e-5 (CIFAR-10) or 10, 1, 5e-7 (CIFAR-100), with weight_decay = 0 in the optimiser, which the L1
term replaces: set it so. Deviations: the L1 term is ``regularizer(model)``, so that no weight of a sample multiplies it,
and leaves frozen parameters out, which have no gradient; like the authors' it counts biases and normalisation layers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ns_data.choose import choose
from ns_data.losses.base import PerSampleLoss, check_range, focal_terms, log_softmax, normalized


class ActiveNegative(PerSampleLoss):
    """``active`` "nce" (ANL-CE) or "nfl" (ANL-FL, with ``gamma``) decides both terms."""

    def __init__(
        self,
        active: str = "nce",
        alpha: float = 5.0,
        beta: float = 5.0,
        delta: float = 5e-5,
        *,
        gamma: float = 0.5,
        min_p: float = 1e-7,
    ) -> None:
        super().__init__()
        check_range("gamma", gamma, 0)
        check_range("delta", delta, 0)
        check_range("min_p", min_p, 0, 1, open_low=True)
        self.alpha, self.beta, self.delta = alpha, beta, delta
        self.gamma = choose({"nce": 0.0, "nfl": gamma}, active, "active term")
        self.log_min_p = math.log(min_p)
        self.highest = -((1 - min_p) ** self.gamma) * self.log_min_p  # A or A'

    def forward(self, logits_BK: Tensor, labels_B: Tensor, *, ids: Tensor | None = None) -> Tensor:
        log_p_BK = log_softmax(logits_BK)
        active_B = normalized(focal_terms(log_p_BK, self.gamma), labels_B)
        room_BK = self.highest - focal_terms(log_p_BK.clamp_min(self.log_min_p), self.gamma)
        return self.alpha * active_B + self.beta * (1 - normalized(room_BK, labels_B))

    def regularizer(self, model: nn.Module) -> Tensor | float:
        """delta times the sum of |theta| over all parameters that are trained."""
        norms = [parameter.abs().sum() for parameter in model.parameters() if parameter.requires_grad]
        return self.delta * torch.stack(norms).sum() if norms and self.delta else 0.0
