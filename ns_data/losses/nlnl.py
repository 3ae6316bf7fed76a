"""Negative learning, stage 1 of NLNL: l = w_y sum_j -log max(1 - p_{n_j}, 1e-5) over random other classes n_j.

The n_j are drawn anew in every step, uniformly over the K - 1 other classes, with replacement; their terms are summed, not
averaged. w_c = n_max / n_c.

Source: "NLNL: Negative Learning for Noisy Labels", Kim et al., 2019. CIFAR: ``num_negatives`` 1 (CIFAR-10)
or 110 (CIFAR-100; by the same 1.1 (K - 1), 72 for 65 classes), and 720 epochs at a learning rate of 0.02.
Deviations: the later stages are not built (SelNL, which keeps samples whose mean p_y over 10 epochs reaches 1/K; SelPL, a
cross-entropy on those with p_y of at least 0.5, in a separate run; two rounds of pseudo-labels): comparisons use stage 1.
The class weights are the official ones if ``stats`` is given, else 1, as in comparisons on sets that name no targets; under
a long tail they multiply the mean loss (4.5 times on CIFAR-10-LT 200:1), so weight=None is offered. Above p = 1 - 1e-5 a
negative has no gradient: nothing pushes against the most confident mistakes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ns_data.losses.base import PerSampleLoss, check_range, log_softmax, one_minus_exp
from ns_data.stats import ClassStats

_MIN_MISS = 1e-5


class NegativeLearning(PerSampleLoss):
    """``weight`` is "inverse_freq" or None. Negatives depend on (seed, training steps so far, place in the batch)."""

    def __init__(
        self,
        num_negatives: int = 1,
        weight: str | None = "inverse_freq",
        stats: ClassStats | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_range("num_negatives", num_negatives, 1)
        if weight not in ("inverse_freq", None):
            raise ValueError(f"weight must be 'inverse_freq' or None, got {weight!r}")
        self.num_negatives, self.seed = num_negatives, seed
        self.steps = 0  # of training, so far
        self.counts_K: Tensor | None
        counts_K = None if stats is None or weight is None else torch.as_tensor(stats.counts).clamp_min(1)
        self.register_buffer("counts_K", counts_K, persistent=False)

    def forward(self, logits_BK: Tensor, labels_B: Tensor, *, ids: Tensor | None = None) -> Tensor:
        negatives_BJ = self.draw(labels_B, logits_BK.shape[1])
        self.steps += self.training
        miss_BJ = one_minus_exp(log_softmax(logits_BK).gather(1, negatives_BJ))
        loss_B = -miss_BJ.clamp_min(_MIN_MISS).log().sum(1)
        if self.counts_K is None:
            return loss_B
        return loss_B * (self.counts_K.max() / self.counts_K.to(loss_B.dtype))[labels_B]

    def draw(self, labels_B: Tensor, num_classes: int) -> Tensor:
        """The negatives of this step, shape (B, J): any class but the label."""
        rng = np.random.default_rng((self.seed, self.steps))
        shift_BJ = rng.integers(1, num_classes, size=(labels_B.shape[0], self.num_negatives))
        return (labels_B[:, None] + torch.from_numpy(shift_BJ).to(labels_B.device)) % num_classes

    def get_extra_state(self) -> dict[str, int]:
        return {"steps": self.steps}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.steps = state["steps"]
