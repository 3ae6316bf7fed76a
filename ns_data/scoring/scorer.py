"""NSScorer: natural-selection scores by one no-gradient pass over the composites of a batch.

With logits z of a group's composite and labels y_1..y_m of its members, the paper's score is q_i / sum_j q_j for
q = softmax(z)[y_i]. The class softmax cancels:

    s_i = exp(z[y_i]) / sum_j exp(z[y_j]),

a softmax over the group's own label logits, in float32, which is finite where the quotient is 0/0.
Source: "Darwinian Optimization: Training Deep Networks with Natural Selection", section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ns_data.layout import Layout
from ns_data.scoring.stitch import check_groups, stitch

BATCH_NORM_MODES = ("batch", "running", "paper")


def group_softmax(logits_GK: Tensor, labels_GM: Tensor) -> Tensor:
    """Scores of each group's members, shape (G, M), float32; every row sums to 1. NaN logits give NaN.

    >>> group_softmax(torch.tensor([[2.0, 0.0, 2.0]]), torch.tensor([[0, 2]]))
    tensor([[0.5000, 0.5000]])
    """
    return torch.softmax(logits_GK.float().gather(1, labels_GM), dim=1)


def scatter_scores(scores_GM: Tensor, groups_GM: Tensor, batch_size: int) -> Tensor:
    """Scores by position in the batch, shape (B,); samples without a group get the neutral 1/M."""
    scores_B = scores_GM.new_full((batch_size,), 1 / groups_GM.shape[1])
    return scores_B.scatter_(0, groups_GM.reshape(-1), scores_GM.reshape(-1))


def ns_scores(
    model: nn.Module,
    images_BCHW: Tensor,
    labels_B: Tensor,
    *,
    layout: Layout | str = "2x2",
    groups_GM: Tensor | None = None,
    batch_norm: str = "batch",
) -> Tensor:
    """Natural-selection scores of one batch, shape (B,), float32, without gradient. See ``NSScorer``."""
    return NSScorer(model, layout=layout, batch_norm=batch_norm)(images_BCHW, labels_B, groups_GM)


class NSScorer:
    """The scoring hook: ``scores_B = scorer(images_BCHW, labels_B)`` anywhere in a training loop.

    Args:
        model: the network in training, also wrapped by DistributedDataParallel or torch.compile (the bare module is scored).
        layout: ``Layout`` or "RxC".
        batch_norm: what the pass does with the network's state.
            "batch": batch statistics, dropout and drop path off; running statistics, modes and RNG stay untouched.
            "running": evaluation mode. Another method: its scores agree little with "batch", and early in training
            they are degenerate on residual CIFAR networks.
            "paper": the model as it is, as the published listing has it; in training mode the composites enter the
            running statistics and dropout draws noise.
        logits: takes the logits (G, K) out of what the model returns, if that is not a tensor.

    Neutral scores (1/M) go to samples without a group, to groups whose logits are not finite numbers, and to a lone
    composite that BatchNorm cannot normalise. They are counted on the device; ``report()`` reads the counts.
    A first batch that cannot fill one group is refused with a ``ValueError``; a short last batch is neutral.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        layout: Layout | str = "2x2",
        batch_norm: str = "batch",
        logits: Callable[[Any], Tensor] | None = None,
    ) -> None:
        if batch_norm not in BATCH_NORM_MODES:
            raise ValueError(f"batch_norm must be one of {', '.join(BATCH_NORM_MODES)}, got {batch_norm!r}")
        self.model = bare_module(model)
        self.layout = Layout.parse(layout)
        self.batch_norm = batch_norm
        self.logits = logits
        self._filled_a_group = False
        self._invalid: Tensor | int = 0  # groups; a tensor on the device once a batch was scored
        self._ungrouped = 0
        self._lone = 0

    @torch.no_grad()
    def __call__(
        self, images_BCHW: Tensor, labels_B: Tensor, groups_GM: Tensor | None = None, ids_B: Tensor | None = None
    ) -> Tensor:
        """Scores, shape (B,). ``groups_GM`` lists positions in the batch; ``None`` means consecutive members."""
        B, group_size = images_BCHW.shape[0], self.layout.group_size
        if labels_B.shape != (B,) or labels_B.is_floating_point():
            raise ValueError(f"labels must be {B} class ids, one an image, got {labels_B.dtype} of {tuple(labels_B.shape)}")
        if self._filled_a_group and groups_GM is None and group_size > B:
            groups_GM = labels_B.new_empty((0, group_size))
        groups_GM = check_groups(groups_GM, images_BCHW, group_size)
        self._ungrouped += B - groups_GM.numel()
        if groups_GM.shape[0] == 0:
            return torch.full((B,), 1 / group_size, device=images_BCHW.device)
        self._filled_a_group = True
        composites_GCHW = stitch(images_BCHW, self.layout, groups_GM)
        logits_GK = self._forward(composites_GCHW)
        if logits_GK is None:
            self._lone += 1
            return torch.full((B,), 1 / group_size, device=images_BCHW.device)
        labels_GM = labels_B[groups_GM]
        _check_logits(logits_GK, labels_GM)
        scores_GM = group_softmax(logits_GK, labels_GM)
        invalid_G = ~torch.isfinite(scores_GM).all(dim=1)
        self._invalid = self._invalid + invalid_G.sum()
        scores_GM = scores_GM.masked_fill(invalid_G[:, None], 1 / group_size)
        return scatter_scores(scores_GM, groups_GM, B)

    def _forward(self, composites_GCHW: Tensor) -> Tensor | None:
        """Logits of the composites; ``None`` if BatchNorm cannot normalise a lone one."""
        device = composites_GCHW.device.type
        # Autocast caches the weights it casts; cached here, without gradient, they would get none in the training pass.
        autocast = torch.autocast(
            device, torch.get_autocast_dtype(device), enabled=torch.is_autocast_enabled(device), cache_enabled=False
        )
        try:
            with autocast, scoring_mode(self.model, self.batch_norm):
                output = self.model(composites_GCHW)
        except ValueError as error:
            if composites_GCHW.shape[0] == 1 and "more than 1 value per channel" in str(error):
                return None
            raise
        return output if self.logits is None else self.logits(output)

    def report(self) -> dict[str, int]:
        """Counts since the last report: groups with invalid logits, ungrouped samples, lone composites. Synchronises."""
        counts = {"invalid_groups": int(self._invalid), "ungrouped": self._ungrouped, "lone_composites": self._lone}
        self._invalid, self._ungrouped, self._lone = 0, 0, 0
        return counts


def bare_module(model: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel, DataParallel and torch.compile wrappers."""
    while True:
        if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            model = model.module
        elif hasattr(model, "_orig_mod"):
            model = cast(nn.Module, model._orig_mod)
        else:
            return model


@contextmanager
def scoring_mode(model: nn.Module, batch_norm: str) -> Iterator[None]:
    """Put ``model`` in the mode of the pass, and every module back into its own afterwards."""
    if batch_norm == "paper":
        yield
        return
    modes = [(module, module.training) for module in model.modules()]
    tracking = [(module, module.track_running_stats) for module, _ in modes if isinstance(module, _BatchNorm)]
    try:
        for module, _ in modes:
            module.training = False
        if batch_norm == "batch":
            for module, _ in tracking:
                module.training, module.track_running_stats = True, False  # batch statistics, buffers untouched
        yield
    finally:
        for module, training in modes:
            module.training = training
        for module, track in tracking:
            module.track_running_stats = track


def _check_logits(logits_GK: Any, labels_GM: Tensor) -> None:
    if not isinstance(logits_GK, Tensor):
        raise ValueError(
            f"the model returned {type(logits_GK).__name__}, not a tensor of logits: pass logits=, a callable that takes "
            "them out of the output"
        )
    if logits_GK.ndim != 2 or logits_GK.shape[0] != labels_GM.shape[0]:
        raise ValueError(
            f"the model returned logits of shape {tuple(logits_GK.shape)} for {labels_GM.shape[0]} composites: "
            "one row of class logits a composite is needed"
        )
    if logits_GK.device.type == "cpu":  # on a GPU the check would wait for the device; there the gather itself fails
        highest, lowest = int(labels_GM.max()), int(labels_GM.min())
        if lowest < 0 or highest >= logits_GK.shape[1]:
            wrong = lowest if lowest < 0 else highest
            raise ValueError(f"label {wrong} is out of range for a model of {logits_GK.shape[1]} classes")
