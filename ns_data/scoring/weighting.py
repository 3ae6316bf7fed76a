"""Loss weights. A weighting decides how much the loss of each sample counts in a step.

    w_i = sigma + rho * s_i

rho = +1 strengthens winners (NS-WS), rho = -1 focuses on losers (NS-LF). A group's scores sum to 1, so its mean weight is
sigma + rho / m: with SGD a factor on the learning rate. The controls share that mean and the batches, and differ in the rest:

    ns                 scores of the composites
    own                group softmax of each image's own log-probability: no composites, no extra cost
    shuffled           composite scores, permuted over the batch: scores without content
    constant           the mean weight: the learning-rate effect alone
    inverse_frequency  the mean weight times N / (K n_y): class size alone
    none               1: the baseline

Source: "Darwinian Optimization: Training Deep Networks with Natural Selection", section 3; the controls are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ns_data.layout import Layout
from ns_data.scoring.scorer import scatter_scores
from ns_data.scoring.stitch import check_groups
from ns_data.scoring.targets import check_targets, target_logits
from ns_data.stats import ClassStats


def check_strength(sigma: float, rho: float) -> None:
    """Refuse a sigma and rho that make a negative weight for some score in [0, 1]."""
    if not (sigma + min(rho, 0.0) >= 0.0):
        raise ValueError(
            f"sigma={sigma:g} and rho={rho:g} give weights down to {sigma + min(rho, 0.0):g}: with this rho, sigma must be "
            f"at least {max(0.0, -rho):g}"
        )


def ns_weights(
    scores_B: Tensor, *, sigma: float, rho: float = 1.0, group_size: int | None = None, normalize: bool = False
) -> Tensor:
    """Loss weights sigma + rho * score, shape (B,).

    ``normalize=True`` divides by the mean weight sigma + rho / group_size, which takes the learning-rate effect out.
    Raises ``ValueError`` for a sigma and rho that make negative weights.

    >>> ns_weights(torch.tensor([0.75, 0.25]), sigma=1.5, rho=-1.0)
    tensor([0.7500, 1.2500])
    """
    check_strength(sigma, rho)
    weights_B = sigma + rho * scores_B
    if not normalize:
        return weights_B
    if group_size is None:
        raise ValueError("normalize=True divides by sigma + rho / group_size: pass group_size")
    mean = mean_weight(sigma, rho, group_size)
    if mean <= 0:
        raise ValueError(f"sigma={sigma:g}, rho={rho:g} and group size {group_size} have mean weight 0: nothing to normalise")
    return weights_B / mean


def mean_weight(sigma: float, rho: float, group_size: int) -> float:
    """Mean weight of every group, sigma + rho / m: under SGD a factor on the learning rate."""
    return sigma + rho / group_size


def own_scores(logits_BK: Tensor, labels_B: Tensor, *, layout: Layout | str = "2x2", groups_GM: Tensor | None = None) -> Tensor:
    """Scores without composites, shape (B,): group softmax of each image's own log-probability, from its training logits.

    ``labels_B`` may be soft, of shape (B, K).
    """
    group_size = Layout.parse(layout).group_size
    check_targets(labels_B, logits_BK.shape[0], look=labels_B.device.type == "cpu")
    groups_GM = check_groups(groups_GM, logits_BK, group_size)
    log_probability_B = target_logits(torch.log_softmax(logits_BK.detach().float(), dim=1), labels_B[:, None])[:, 0]
    scores_GM = torch.softmax(log_probability_B[groups_GM], dim=1)
    invalid_G = ~torch.isfinite(scores_GM).all(dim=1, keepdim=True)
    return scatter_scores(scores_GM.masked_fill(invalid_G, 1 / group_size), groups_GM, logits_BK.shape[0])


@dataclass(frozen=True)
class Strength:
    """sigma and rho over the training: weights of 1 before ``start_epoch``, then linear to the ``_end`` values, if given."""

    sigma: float
    rho: float
    start_epoch: int = 0
    sigma_end: float | None = None
    rho_end: float | None = None

    def __post_init__(self) -> None:
        check_strength(self.sigma, self.rho)
        check_strength(*self._end())  # weights in between are convex combinations of weights at the ends

    def _end(self) -> tuple[float, float]:
        return (
            self.sigma if self.sigma_end is None else self.sigma_end,
            self.rho if self.rho_end is None else self.rho_end,
        )

    def at(self, epoch: int, num_epochs: int) -> tuple[float, float]:
        """(sigma, rho) of an epoch; (1, 0) before ``start_epoch``. The end values are reached in the last epoch."""
        if epoch < self.start_epoch:
            return 1.0, 0.0
        sigma_end, rho_end = self._end()
        span = num_epochs - 1 - self.start_epoch
        t = (epoch - self.start_epoch) / span if span > 0 else 0.0
        return self.sigma + t * (sigma_end - self.sigma), self.rho + t * (rho_end - self.rho)


class Step(NamedTuple):
    """What a weighting may look at in one step."""

    scores_B: Tensor | None  # of the composites, if the weighting asked for them
    logits_BK: Tensor  # of the training pass
    labels_B: Tensor  # class ids (B,) or distributions (B, K)
    groups_GM: Tensor
    layout: Layout
    sigma: float
    rho: float
    stats: ClassStats
    generator: torch.Generator  # on the CPU, for this step


class Weighting(NamedTuple):
    """``weigh(step) -> weights_B, scores_B``; ``composites`` asks for the no-gradient pass over them."""

    weigh: Callable[[Step], tuple[Tensor, Tensor]]
    composites: bool = False


def _ns(step: Step) -> tuple[Tensor, Tensor]:
    assert step.scores_B is not None, "asked for by composites=True"
    return ns_weights(step.scores_B, sigma=step.sigma, rho=step.rho), step.scores_B


def _own(step: Step) -> tuple[Tensor, Tensor]:
    scores_B = own_scores(step.logits_BK, step.labels_B, layout=step.layout, groups_GM=step.groups_GM)
    return ns_weights(scores_B, sigma=step.sigma, rho=step.rho), scores_B


def _shuffled(step: Step) -> tuple[Tensor, Tensor]:
    assert step.scores_B is not None, "asked for by composites=True"
    order = torch.randperm(step.scores_B.shape[0], generator=step.generator)
    scores_B = step.scores_B[order.to(step.scores_B.device)]
    return ns_weights(scores_B, sigma=step.sigma, rho=step.rho), scores_B


def _constant(step: Step) -> tuple[Tensor, Tensor]:
    scores_B = _neutral(step)
    return ns_weights(scores_B, sigma=step.sigma, rho=step.rho), scores_B


def _inverse_frequency(step: Step) -> tuple[Tensor, Tensor]:
    counts_K = torch.as_tensor(step.stats.counts, device=step.labels_B.device).float()
    present = step.stats.num_classes - step.stats.empty_classes.size
    mean = mean_weight(step.sigma, step.rho, step.layout.group_size)
    weights_K = mean * step.stats.total / (present * counts_K)
    if step.labels_B.ndim == 1:
        return weights_K[step.labels_B], _neutral(step)
    return step.labels_B.float() @ weights_K.masked_fill(counts_K == 0, 0), _neutral(step)  # soft: by share of a class


def _none(step: Step) -> tuple[Tensor, Tensor]:
    return torch.ones_like(_neutral(step)), _neutral(step)


def _neutral(step: Step) -> Tensor:
    return torch.full((step.labels_B.shape[0],), 1 / step.layout.group_size, device=step.labels_B.device)


WEIGHTINGS: dict[str, Weighting] = {
    "ns": Weighting(_ns, composites=True),
    "own": Weighting(_own),
    "shuffled": Weighting(_shuffled, composites=True),
    "constant": Weighting(_constant),
    "inverse_frequency": Weighting(_inverse_frequency),
    "none": Weighting(_none),
}
