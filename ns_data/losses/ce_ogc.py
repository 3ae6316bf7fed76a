"""Cross-entropy with optimised gradient clipping: above a moving threshold r of p_y the loss, below it its tangent.

    l = f(p_y) where p_y > r,  else 1 - tau p_y + f(r),  tau = -f'(r);  f(p) = -log p, p in [1e-7, 1 - 1e-7]

so that no sample pulls on p_y with more than tau. Every ``every``-th training step, once the queue of the last ``queue_size``
values h = -log p_y is full, two normals are fitted to it; that of the lower mean stands for clean samples, the other for noisy
ones. r is then the threshold at which the mean pull of the noisy ones is 1 + epsilon * lr times that of the clean ones,

    E_noisy[min(-f'(p), tau)] / E_clean[min(-f'(p), tau)] = 1 + epsilon * lr,  p = exp(-h),

or 1e-7 (no clipping) where the ratio is smaller even without. The step that refits already uses the new r.

Source: "Optimized Gradient Clipping for Noisy Label Learning", Ye et al., 2025.
CIFAR: epsilon 20, every 32, queue 4096 for both, learning rate 0.1 divided by 10 twice. The learning rate moves r: at 0.1,
0.01, 0.001, 0.0001 one mixture gave 0.17, 0.49, 0.78, 0.93, so late training comes close to the absolute error. It is that of
the first parameter group, as the authors have it.
Deviations: the mixture starts from the exact best split of the queue in two where theirs starts from random centres, so it
needs no random numbers and a queue has one fit (theirs had six on a queue with one mode). The queue takes the losses before
any weighting. Each rank of a distributed run has its own queue. ``base`` "focal" or "gce" clips those in the same way, as
the authors also do; their constant 1 then makes the value, not the gradient, jump at r.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ns_data.choose import choose
from ns_data.losses.base import PerSampleLoss, check_range, log_softmax, of_label

MIN_P, MAX_P = 1e-7, 1 - 1e-7
_FIT_STEPS, _FIT_TOLERANCE, _FIT_MIN_VARIANCE = 10, 1e-3, 1e-3
_GRID, _BISECTIONS = 1000, 10

Curve = Callable[[Tensor], Tensor]


class Base(NamedTuple):
    """A loss as a function of p_y, and minus its derivative."""

    value: Curve
    pull: Curve


def _bases(gamma: float, q: float) -> dict[str, Base]:
    def focal_pull(p: Tensor) -> Tensor:
        return (1 - p) ** gamma / p - gamma * (1 - p) ** (gamma - 1) * p.log()

    return {
        "cross_entropy": Base(lambda p: -p.log(), lambda p: 1 / p),
        "focal": Base(lambda p: -((1 - p) ** gamma) * p.log(), focal_pull),
        "gce": Base(lambda p: (1 - p**q) / q, lambda p: p ** (q - 1)),
    }


class ClippedCrossEntropy(PerSampleLoss):
    """``gamma`` is for the base "focal", ``q`` for "gce". Needs ``set_lr`` before each training step."""

    def __init__(
        self,
        epsilon: float = 20.0,
        every: int = 32,
        queue_size: int = 4096,
        *,
        base: str = "cross_entropy",
        gamma: float = 0.5,
        q: float = 0.7,
    ) -> None:
        super().__init__()
        check_range("epsilon", epsilon, 0)
        check_range("every", every, 1)
        check_range("queue_size", queue_size, 2)
        self.epsilon, self.every = epsilon, every
        self.base = choose(_bases(gamma, q), base, "base of ce_ogc")
        self.lr: float | None = None
        self.threshold = MIN_P
        self.steps = 0  # of training, so far
        self.seen = 0  # samples that went into the queue
        self.queue: Tensor
        self.register_buffer("queue", torch.zeros(queue_size))

    def set_lr(self, lr: float) -> None:
        self.lr = lr

    def forward(self, logits_BK: Tensor, labels_B: Tensor, *, ids: Tensor | None = None) -> Tensor:
        p_B = of_label(log_softmax(logits_BK), labels_B).exp().clamp(MIN_P, MAX_P)
        if self.training:
            self._observe(-p_B.detach().log())
        threshold = torch.tensor(self.threshold, dtype=torch.float64)
        tau, offset = self.base.pull(threshold).item(), 1 + self.base.value(threshold).item()
        return torch.where(p_B > self.threshold, self.base.value(p_B), offset - tau * p_B)

    def _observe(self, h_B: Tensor) -> None:
        h_B = h_B[-self.queue.shape[0] :]
        places_B = (self.seen + torch.arange(h_B.shape[0], device=h_B.device)) % self.queue.shape[0]
        self.queue[places_B] = h_B.to(self.queue.dtype)
        self.seen += h_B.shape[0]
        self.steps += 1
        if self.steps % self.every == 0 and self.seen >= self.queue.shape[0]:
            if self.lr is None:
                raise ValueError("ce_ogc chooses its threshold by the learning rate: call set_lr(lr) before each training step")
            means_2, variances_2 = fit_two_normals(self.queue)
            self.threshold = find_threshold(means_2, variances_2, 1 + self.epsilon * self.lr, self.base.pull)

    def get_extra_state(self) -> dict[str, Any]:
        return {"threshold": self.threshold, "steps": self.steps, "seen": self.seen}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.threshold, self.steps, self.seen = state["threshold"], state["steps"], state["seen"]


def fit_two_normals(values_N: Tensor) -> tuple[Tensor, Tensor]:
    """Means, the lower first, and variances of a mixture of two normals, both of shape (2,), by at most 10 steps of EM.

    The start is the split of the sorted values in two with the smallest sum of squares.
    """
    values_N = values_N.double().cpu().sort().values
    n = values_N.shape[0]
    sizes = torch.arange(1, n, dtype=torch.float64)
    sums = values_N.cumsum(0)
    split = 1 + int((sums[:-1] ** 2 / sizes + (sums[-1] - sums[:-1]) ** 2 / (n - sizes)).argmax())
    shares_2N = torch.zeros(2, n, dtype=torch.float64)
    shares_2N[0, :split] = 1
    shares_2N[1, split:] = 1
    likelihood = -math.inf
    means_2, variances_2, log_size_2 = _moments(values_N, shares_2N)
    for _ in range(_FIT_STEPS):
        square_2N = (values_N - means_2[:, None]) ** 2 / variances_2[:, None]
        log_joint_2N = log_size_2[:, None] - 0.5 * (square_2N + (2 * math.pi * variances_2[:, None]).log())
        log_total_N = log_joint_2N.logsumexp(0)
        means_2, variances_2, log_size_2 = _moments(values_N, (log_joint_2N - log_total_N).exp())
        likelihood, before = float(log_total_N.mean()), likelihood
        if abs(likelihood - before) < _FIT_TOLERANCE:
            break
    order = means_2.argsort()
    return means_2[order], variances_2[order]


def _moments(values_N: Tensor, shares_2N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Means, variances and log shares of two components that hold the given shares of each value."""
    sizes_2 = shares_2N.sum(1) + 10 * torch.finfo(torch.float64).eps
    means_2 = shares_2N @ values_N / sizes_2
    variances_2 = (shares_2N * (values_N - means_2[:, None]) ** 2).sum(1) / sizes_2 + _FIT_MIN_VARIANCE
    return means_2, variances_2, (sizes_2 / sizes_2.sum()).log()


def find_threshold(means_2: Tensor, variances_2: Tensor, target: float, pull: Curve) -> float:
    """The r at which the clipped mean pull of the second normal is ``target`` times that of the first, to 1/1024.

    Both normals are cut off outside of [-log MAX_P, -log MIN_P] and integrated on 1000 points.
    """
    h_G = torch.linspace(-math.log(MAX_P), -math.log(MIN_P), _GRID, dtype=torch.float64)
    density_2G = torch.softmax(-0.5 * (h_G - means_2[:, None]) ** 2 / variances_2[:, None], dim=1)
    pull_G = pull((-h_G).exp())

    def ratio(threshold: float) -> float:
        clean, noisy = density_2G @ pull_G.clamp_max(pull(torch.tensor(threshold, dtype=torch.float64)))
        return float(noisy / clean)

    low, high = MIN_P, MAX_P
    if ratio(low) < target:
        return MIN_P
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if ratio(middle) > target else (low, middle)
    return high
