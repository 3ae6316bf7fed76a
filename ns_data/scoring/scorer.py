"""NSScorer: natural-selection scores by one no-gradient pass over the composites of a batch.

With logits z of a group's composite and labels y_1..y_m of its members, the paper's score is q_i / sum_j q_j for
q = softmax(z)[y_i]. The class softmax cancels:

    s_i = exp(z[y_i]) / sum_j exp(z[y_j]),

a softmax over the group's own label logits, in float32, which is finite where the quotient is 0/0.
Source: "Darwinian Optimization: Training Deep Networks with Natural Selection", section 3.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ns_data.layout import Layout
from ns_data.scoring.ledger import ScoreLedger
from ns_data.scoring.modes import BATCH_NORM_MODES, bare_module, needs_every_rank, scoring_mode
from ns_data.scoring.stitch import check_groups, check_positions, check_scale, stitch_checked
from ns_data.scoring.targets import check_logits, check_targets, hard_labels, target_logits


def group_softmax(logits_GK: Tensor, labels_GM: Tensor) -> Tensor:
    """Scores of each group's members, shape (G, M), float32; every row sums to 1. NaN logits give NaN.

    ``labels_GM`` may be soft, of shape (G, M, K): the softmax is then over logsumexp_k(z_k + log t_k).

    >>> group_softmax(torch.tensor([[2.0, 0.0, 2.0]]), torch.tensor([[0, 2]]))
    tensor([[0.5000, 0.5000]])
    """
    return torch.softmax(target_logits(logits_GK, labels_GM), dim=1)


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


class Compose(Protocol):
    """How a group becomes one input: ``inputs`` of B samples and positions (G, M) in, G composites out.

    What comes out is handed to the model: a tensor, a tuple (its arguments) or a mapping (its keyword arguments).
    """

    def __call__(self, inputs: Any, groups_GM: Tensor, /) -> Any: ...


class NSScorer:
    """The scoring hook: ``scores_B = scorer(images_BCHW, labels_B)`` anywhere in a training loop.

    Args:
        model: the network in training, also wrapped by DistributedDataParallel or torch.compile (the bare module is
            scored) or sharded by FSDP (every rank takes part in the pass).
        layout: ``Layout`` or "RxC".
        batch_norm: what the pass does with the network's state.
            "batch": batch statistics, dropout and drop path off; running statistics, modes and RNG stay untouched.
            "running": evaluation mode. Another method: its scores agree little with "batch", and early in training
            they are degenerate on residual CIFAR networks.
            "paper": the model as it is, as the published listing has it; in training mode the composites enter the
            running statistics and dropout draws noise.
        logits: takes the logits (G, K) out of what the model returns, if that is not a tensor.
        dtype: of the pass under autocast; ``torch.float32`` turns autocast off; ``None`` does as the loop does.
        channels_last: composites in that memory format; by default they have the images'.
        compile: ``True`` or the options of ``torch.compile``, for the pass alone.
        every: score each k-th step only; between, a group's members compete with their last scores in ``ledger``.
        ledger: where each pass enters its scores by ``ids_B``; the loop then does not ``update`` it itself.
        scale: height and width of the composites beside the inputs', at most 1, for nets that take any size.
        placements: mean of the scores of so many cyclic placements of a group in its grid, at most M, in one pass.
        compose: makes the inputs of the pass in place of ``stitch``: ``compose(inputs, groups_GM)``, see ``Compose``.

    Labels are class ids (B,) or distributions over classes (B, K).

    Neutral scores (1/M) go to samples without a group, to groups whose logits are not finite numbers, and to a lone
    composite that BatchNorm cannot normalise. They are counted on the device; ``report()`` reads the counts.
    A first batch that cannot fill one group is refused with a ``ValueError``; a short last batch is neutral.
    On a GPU labels, targets and groups are looked at in the first batch only, since each look waits for the device.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        layout: Layout | str = "2x2",
        batch_norm: str = "batch",
        logits: Callable[[Any], Tensor] | None = None,
        dtype: torch.dtype | None = None,
        channels_last: bool = False,
        compile: bool | Mapping[str, Any] = False,
        every: int = 1,
        ledger: ScoreLedger | None = None,
        scale: float = 1.0,
        placements: int = 1,
        compose: Compose | None = None,
    ) -> None:
        self.model = bare_module(model)
        self.layout = Layout.parse(layout)
        if batch_norm not in BATCH_NORM_MODES:
            raise ValueError(f"batch_norm must be one of {', '.join(BATCH_NORM_MODES)}, got {batch_norm!r}")
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}: the pass is made each every-th step")
        if every > 1 and ledger is None:
            raise ValueError(f"every={every} takes the scores between two passes from a ledger: pass ledger=ScoreLedger(...)")
        if not 1 <= placements <= self.layout.group_size:
            raise ValueError(
                f"a group of {self.layout.group_size} has 1 to {self.layout.group_size} cyclic placements, got {placements}"
            )
        check_scale(scale)
        if compose is not None and (scale != 1 or channels_last):
            raise ValueError(
                "scale and channels_last are for stitched images: with compose= they have no effect, leave them out"
            )
        self.batch_norm, self.logits, self.dtype, self.channels_last = batch_norm, logits, dtype, channels_last
        self.every, self.ledger, self.scale, self.placements, self.compose = every, ledger, scale, placements, compose
        self.epoch = 0
        self._run: Callable[..., Any] = self.model
        if compile is not False:
            self._run = torch.compile(self.model, **({} if compile is True else compile))
        self._step = 0
        self._looked = False
        self._filled_a_group = False
        self._logits_dtype = torch.float32
        self._ungrouped = 0
        self._lone = 0
        # Tensors on the device once a batch was scored:
        self._invalid: Tensor | int = 0  # groups
        self._first_invalid: tuple[Tensor | int, Tensor | int] = (0, 0)  # step and group
        self._unscored: Tensor | int = 0

    def start_epoch(self, epoch: int) -> None:
        """Tell the epoch, for the ledger's column of that name."""
        self.epoch = epoch

    @torch.no_grad()
    def __call__(
        self, images_BCHW: Any, labels_B: Tensor, groups_GM: Tensor | None = None, ids_B: Tensor | None = None
    ) -> Tensor:
        """Scores, shape (B,). ``groups_GM`` lists positions in the batch; ``None`` means consecutive members."""
        if isinstance(images_BCHW, Tensor):
            labels_B = labels_B.to(images_BCHW.device, non_blocking=True)
        groups_GM = self._check(images_BCHW, labels_B, groups_GM, ids_B)
        B, group_size = labels_B.shape[0], self.layout.group_size
        score_now = self._step % self.every == 0
        self._step += 1
        self._ungrouped += B - groups_GM.numel()
        if not score_now:
            assert ids_B is not None, "checked with the ledger"
            return scatter_scores(self._last_scores(ids_B.to(labels_B.device)[groups_GM]), groups_GM, B)
        if groups_GM.shape[0] == 0:
            if needs_every_rank(self.model, self.batch_norm):
                self._forward(self._composites(images_BCHW, groups_GM))  # the other ranks wait for it
            return torch.full((B,), 1 / group_size, device=labels_B.device)
        scores_GM = self._score(images_BCHW, labels_B, groups_GM)
        if scores_GM is None:
            self._lone += 1
            return torch.full((B,), 1 / group_size, device=labels_B.device)
        if self.ledger is not None:
            assert ids_B is not None, "checked with the ledger"
            members = groups_GM.reshape(-1)
            ids = ids_B.to(labels_B.device)[members]
            self.ledger.update(ids, scores_GM.reshape(-1), hard_labels(labels_B)[members], self.epoch)
        return scatter_scores(scores_GM.nan_to_num(1 / group_size), groups_GM, B)

    def _check(self, inputs: Any, labels_B: Tensor, groups_GM: Tensor | None, ids_B: Tensor | None) -> Tensor:
        """The groups, on the device of the labels; refuses what does not fit together."""
        B = inputs.shape[0] if isinstance(inputs, Tensor) else labels_B.shape[0]
        look = labels_B.device.type == "cpu" or not self._looked
        check_targets(labels_B, B, look)
        if self.ledger is not None and (ids_B is None or ids_B.shape != (B,)):
            raise ValueError(f"a ledger keeps scores by sample id: pass ids_B, {B} of them")
        if self._filled_a_group and groups_GM is None and self.layout.group_size > B:
            groups_GM = torch.empty((0, self.layout.group_size), dtype=torch.int64)
        groups_GM = check_groups(groups_GM, labels_B, self.layout.group_size)
        if look and groups_GM.device.type != "cpu":
            check_positions(groups_GM, B)
        self._filled_a_group |= groups_GM.shape[0] > 0
        return groups_GM

    def _score(self, inputs: Any, labels_B: Tensor, groups_GM: Tensor) -> Tensor | None:
        """Scores (G, M), NaN in groups whose own logits are not finite; ``None`` for a lone composite under BatchNorm."""
        r, M = self.placements, self.layout.group_size
        shifts = [place * M // r for place in range(r)]
        placed_GM = groups_GM if r == 1 else torch.cat([groups_GM.roll(shift, 1) for shift in shifts])
        logits_GK = self._forward(self._composites(inputs, placed_GM))
        if logits_GK is None:
            return None
        targets_GM = labels_B[placed_GM]
        check_logits(logits_GK, targets_GM, labels_B.device.type == "cpu" or not self._looked)
        self._looked, self._logits_dtype = True, logits_GK.dtype
        own_GM = target_logits(logits_GK, targets_GM)
        scores_GM = torch.softmax(own_GM, dim=1)
        invalid_G = ~torch.isfinite(own_GM).all(dim=1)
        if r > 1:
            by_place = scores_GM.view(r, -1, M).unbind()
            scores_GM = torch.stack([s.roll(-shift, 1) for s, shift in zip(by_place, shifts, strict=True)]).mean(0)
            invalid_G = invalid_G.view(r, -1).any(0)
        count, group = invalid_G.sum(), invalid_G.int().argmax()
        is_first = (count > 0) & (self._invalid == 0)
        step, seen_group = self._first_invalid
        self._first_invalid = torch.where(is_first, self._step - 1, step), torch.where(is_first, group, seen_group)
        self._invalid = self._invalid + count
        return scores_GM.masked_fill(invalid_G[:, None], torch.nan)

    def _composites(self, inputs: Any, groups_GM: Tensor) -> Any:
        if self.compose is not None:
            return self.compose(inputs, groups_GM)
        composites_GCHW = stitch_checked(inputs, self.layout, groups_GM, self.scale)
        return composites_GCHW.contiguous(memory_format=torch.channels_last) if self.channels_last else composites_GCHW

    def _forward(self, composites: Any) -> Tensor | None:
        """Logits of the composites; ``None`` if BatchNorm cannot normalise a lone one."""
        args: tuple[Any, ...] = (composites,)
        kwargs: dict[str, Any] = {}
        if isinstance(composites, Mapping):
            args, kwargs = (), dict(composites)
        elif isinstance(composites, tuple):
            args = composites
        first = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        try:
            with self._autocast(first.device.type), scoring_mode(self.model, self.batch_norm):
                output = self._run(*args, **kwargs)
        except (ValueError, RuntimeError, AssertionError) as error:
            if first.shape[0] == 1 and "more than 1 value per channel" in str(error):
                return None
            if self.scale != 1 and not isinstance(error, torch.OutOfMemoryError):
                size = "x".join(map(str, first.shape[2:]))
                reason = (str(error).splitlines() or ["it gives no reason"])[0]
                raise ValueError(f"the model does not take composites of {size} pixels ({reason}): use scale=1") from error
            raise
        return output if self.logits is None else self.logits(output)

    def _autocast(self, device: str) -> torch.autocast:
        dtype, enabled = torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        if self.dtype is not None:
            enabled = self.dtype != torch.float32
            dtype = self.dtype if enabled else dtype
        # Autocast caches the weights it casts; cached here, without gradient, they would get none in the training pass.
        return torch.autocast(device, dtype, enabled=enabled, cache_enabled=False)

    def _last_scores(self, ids_GM: Tensor) -> Tensor:
        """Scores (G, M) made of the members' last ones, which sum to 1 in a group again; 1/M stands in for none."""
        assert self.ledger is not None, "checked with every"
        last_GM = self.ledger.last(ids_GM)
        unscored_GM = last_GM.isnan()
        self._unscored = self._unscored + unscored_GM.sum()
        last_GM = last_GM.masked_fill(unscored_GM, 1 / self.layout.group_size)
        return (last_GM / last_GM.sum(1, keepdim=True)).nan_to_num(1 / self.layout.group_size)

    def report(self) -> dict[str, int]:
        """Counts since the last report: groups with invalid logits, ungrouped samples, lone composites. Synchronises.

        With ``every``, also members that competed without a score so far. Invalid logits are a warning that names the first.
        """
        counts = {"invalid_groups": int(self._invalid), "ungrouped": self._ungrouped, "lone_composites": self._lone}
        if self.every > 1:
            counts["unscored"] = int(self._unscored)
        counts |= getattr(self.compose, "report", dict)()
        if counts["invalid_groups"]:
            step, group = (int(number) for number in self._first_invalid)
            half = f"; in {self._logits_dtype} they may have overflowed: score with dtype=torch.float32"
            warnings.warn(
                f"{counts['invalid_groups']} groups had logits that are not finite, first in step {step}, group {group}: "
                f"neutral scores{half if self._logits_dtype.itemsize < 4 else ''}",
                stacklevel=2,
            )
        self._invalid, self._ungrouped, self._lone, self._unscored = 0, 0, 0, 0
        return counts

    def state_dict(self) -> dict[str, int]:
        """The step, which decides where ``every`` goes on."""
        return {"step": self._step}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self._step = state["step"]
