"""LOW: cross-entropy with weights from the batch that speed up its descent, l_i = w_i * (-log p_y).

    w = argmin lam |w|^2 - sum_i (g_i^2 + lam) w_i  with w >= 0, sum_i w_i = B;  g_i = |d CE_i / dz_i| = |p_i - e_y|

so that w is the projection of g^2 / (2 lam) on that simplex: w_i = max(0, g_i^2 / (2 lam) - t), t found by one sort. w has no
gradient.

Source: "LOW: Training Deep Neural Networks by Learning Optimal Sample Weights", Santiago et al., 2021.
CIFAR: unknown; lam = 0.1 is the authors' published setting (MNIST).
Deviations: exact, where the authors call a solver that stops at 1e-4. ``grad_scale="batch_mean"`` is theirs: their g is that of
the mean loss, so divided by B, and the weights of 128 samples lie within 0.0004 of 1; ``"per_sample"`` leaves the division
out: up to half of the weights become 0, others reach 5. The weights couple the batch: a smaller last batch or the share of
one rank has its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ns_data.choose import choose
from ns_data.losses.base import PerSampleLoss, check_range, log_softmax, of_label


class LOW(PerSampleLoss):
    """``lam`` > 0: the smaller, the further the weights are from 1."""

    def __init__(self, lam: float = 0.1, grad_scale: str = "batch_mean") -> None:
        super().__init__()
        check_range("lam", lam, 0, open_low=True)
        self.lam = lam
        self.divide_by_batch = choose({"batch_mean": True, "per_sample": False}, grad_scale, "grad_scale")

    def forward(self, logits_BK: Tensor, labels_B: Tensor, *, ids: Tensor | None = None) -> Tensor:
        log_p_BK = log_softmax(logits_BK)
        return self.weights(log_p_BK, labels_B) * -of_label(log_p_BK, labels_B)

    @torch.no_grad()
    def weights(self, log_p_BK: Tensor, labels_B: Tensor) -> Tensor:
        """w, shape (B,), with sum B."""
        slope_BK = log_p_BK.exp()
        slope_BK.scatter_add_(1, labels_B[:, None], -torch.ones_like(slope_BK[:, :1]))
        square_B = slope_BK.square().sum(1)
        if self.divide_by_batch:
            square_B = square_B / labels_B.shape[0] ** 2
        return project_on_simplex(square_B / (2 * self.lam), float(labels_B.shape[0]))


def project_on_simplex(values_B: Tensor, total: float) -> Tensor:
    """The point nearest to ``values_B`` among those with no negative entry and sum ``total``: max(0, values - t).

    >>> project_on_simplex(torch.tensor([2.0, 1.0, -3.0]), 2.0)
    tensor([1.5000, 0.5000, 0.0000])
    """
    falling_B = values_B.sort(descending=True).values
    counts_B = torch.arange(1, falling_B.shape[0] + 1, device=values_B.device)
    # (sum of the n largest - total) / n rises as long as the next value exceeds it: t is its maximum
    t = ((falling_B.cumsum(0) - total) / counts_B).max()
    return (values_B - t).clamp_min(0)
