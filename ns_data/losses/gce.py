"""Generalised cross-entropy: l = (1 - p_y^q) / q, between cross-entropy (q -> 0) and the absolute error (q = 1).

Truncated: l_i = v_i (L_q(p_y) - L_q(k)), L_q as above and v_i = 1 where p_y > k, else 0: samples below k are left out. The
constant L_q(k) makes the value of kept samples negative; it has no gradient.

Source: "Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy Labels", Zhang and Sabuncu, 2018.
CIFAR: q = 0.7, k = 0.5, truncation from epoch 40 (CIFAR-10) or 80 (CIFAR-100) of 120; comparisons by others use the plain form.
Deviations: p is at least ``min_p`` = 1e-7, with gradient 0 below it, as in the code of later comparisons (None: unclamped).
The authors refit v every 10 epochs by a pass of the best network so far; here, every ``refit_every`` epochs, from the
p_y that each sample had when it was last drawn in training, which costs no pass; samples never drawn are kept.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, distributed

from ns_data.losses.base import PerSampleLoss, check_range, log_softmax, of_label


class GeneralizedCrossEntropy(PerSampleLoss):
    """Plain, or truncated if ``k`` is given, which needs ``num_samples`` and the ids of each batch."""

    def __init__(
        self,
        q: float = 0.7,
        k: float | None = None,
        *,
        min_p: float | None = 1e-7,
        num_samples: int | None = None,
        start_prune: int = 40,
        refit_every: int = 10,
    ) -> None:
        super().__init__()
        check_range("q", q, 0, 1, open_low=True)
        check_range("refit_every", refit_every, 1)
        self.q, self.k, self.min_p = q, k, min_p
        self.start_prune, self.refit_every = start_prune, refit_every
        self.epoch: int | None = None
        self.last_p: Tensor
        self.kept: Tensor
        if k is not None:
            check_range("k", k, 0, 1, open_low=True)
            if num_samples is None:
                raise ValueError(f"truncated GCE (k={k:g}) remembers every sample: pass num_samples")
            if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
                raise ValueError(f"truncated GCE (k={k:g}) remembers samples in one process: run it in one, or use k=None")
            self.register_buffer("last_p", torch.ones(num_samples))
            self.register_buffer("kept", torch.ones(num_samples, dtype=torch.bool))

    def start_epoch(self, epoch: int, num_epochs: int) -> None:
        if self.k is None or epoch == self.epoch:  # the same epoch again: a run that was resumed in the middle of it
            return
        self.epoch = epoch
        if self.start_prune >= num_epochs:
            raise ValueError(f"start_prune={self.start_prune} is never reached in {num_epochs} epochs: choose a smaller one")
        if epoch >= self.start_prune and (epoch - self.start_prune) % self.refit_every == 0:
            self.kept = self.last_p > self.k

    def get_extra_state(self) -> dict[str, int | None]:
        return {"epoch": self.epoch}

    def set_extra_state(self, state: dict[str, int | None]) -> None:
        self.epoch = state["epoch"]

    def forward(self, logits_BK: Tensor, labels_B: Tensor, *, ids: Tensor | None = None) -> Tensor:
        log_p_B = of_label(log_softmax(logits_BK), labels_B)
        clamped_B = log_p_B if self.min_p is None else log_p_B.clamp_min(math.log(self.min_p))
        loss_B = -torch.expm1(self.q * clamped_B) / self.q  # p^q as exp(q log p): p itself may underflow
        if self.k is None:
            return loss_B
        loss_B = loss_B - (1 - self.k**self.q) / self.q
        if not self.training:
            return loss_B
        if ids is None or self.epoch is None:
            missing = "sample ids: pass ids=" if ids is None else "epochs: call start_epoch(epoch, num_epochs) before each"
            raise ValueError(f"truncated GCE (k={self.k:g}) needs {missing}, or use k=None for plain GCE")
        self.last_p[ids] = log_p_B.detach().exp().to(self.last_p.dtype)
        return loss_B * self.kept[ids]
