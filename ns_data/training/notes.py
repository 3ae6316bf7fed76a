"""Notes: what a run writes down of its steps: sums over an epoch, and the score ledger."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ns_data.collate import GroupedBatch
from ns_data.training.distributed import World
from ns_data.training.run import RunFolder
from ns_data.training.weigher import Weigher


class Notes:
    """Entered in every step; read at the end of an epoch, by all processes together."""

    def __init__(self, config: Any, weigher: Weigher, world: World) -> None:
        self.config, self.weigher, self.world = config, weigher, world
        self.sums = EpochSums(world)
        self.epoch, self.first_bad_step = 0, torch.tensor(torch.inf, device=world.device)

    def enter(self, batch: GroupedBatch, weights: Tensor, scores: Tensor, losses: Tensor, epoch: int, number: int) -> None:
        """The outcome of one batch, all of shape (B,). Nothing here waits for the device."""
        if self.weigher.scorer.ledger is None and batch.ids is not None:  # else the scorer enters what it scored
            self.weigher.ledger.update(batch.ids, scores, batch.labels, epoch, losses=losses)
        labels_GM = batch.labels[batch.groups].sort(dim=1).values
        ties = (labels_GM[:, 1:] == labels_GM[:, :-1]).any(dim=1).sum()
        sums = {"loss": losses.sum(), "weight": weights.sum(), "tied_groups": ties, "skipped": batch.skipped}
        self.sums.add(samples=len(losses), **sums)
        step = torch.where(torch.isfinite(losses).all(), torch.inf, number + 1)
        self.epoch = epoch
        self.first_bad_step = torch.minimum(self.first_bad_step, step)

    def mean_loss(self) -> float:
        """Of this process's samples of the epoch so far; waits for the device."""
        return float(self.sums.values["loss"]) / float(self.sums.values["samples"])

    def numbers(self) -> dict[str, Any]:
        """Means and counts of the epoch over all processes; the next one starts from zero."""
        self._check_finite()
        self._count_scorer()
        totals = self.sums.totals()
        self.sums = EpochSums(self.world)
        samples = totals.pop("samples")
        means = {"loss": totals.pop("loss") / samples, "mean_weight": totals.pop("weight") / samples}
        counts = {name: round(count) for name, count in totals.items()}
        return {**means, **counts, "scoring_seconds": self.weigher.time.read()}

    def _check_finite(self) -> None:
        """Stop a run that has diverged: its losses since the last reading, and the weights that would be saved."""
        step = min(float(step) for step in self.world.gather(self.first_bad_step))
        if step < torch.inf:
            raise self._diverged(f"the loss was not a finite number in step {step:.0f} of epoch {self.epoch + 1}")
        parameters = dict(self.weigher.scorer.model.named_parameters())
        finite = torch.stack([p.detach().isfinite().all() for p in parameters.values()]).tolist()
        if not all(finite):
            name = list(parameters)[finite.index(False)]
            raise self._diverged(f"a weight of {name} was not a finite number after a step of epoch {self.epoch + 1}")

    def _diverged(self, what: str) -> ValueError:
        return ValueError(
            f"{what}: lower optimizer.lr (now {self.config.optimizer.lr:g}) or set clip_grad; "
            f"{RunFolder(str(self.config.run_dir)).checkpoints()}"
        )

    def _count_scorer(self) -> None:
        self.sums.add(**self.weigher.scorer.report())

    def state_dict(self) -> dict[str, Any]:
        self._check_finite()
        self._count_scorer()
        self.weigher.ledger.merge()
        return {"ledger": self.weigher.ledger.state_dict(), "sums": self.sums.totals()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.weigher.ledger.load_state_dict(state["ledger"])
        self.sums.load_totals(state["sums"])


class EpochSums:
    """Sums over the steps of an epoch, kept on the device, so that a step never waits for it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.dtype = torch.float32 if world.device.type == "mps" else torch.float64  # mps has no float64
        self.values: dict[str, Tensor | float] = {}

    def add(self, **sums: Tensor | float) -> None:
        """Add scalars of this process."""
        for name, value in sums.items():
            if isinstance(value, Tensor):
                value = value.detach().to(self.world.device, self.dtype)
            self.values[name] = self.values.get(name, 0.0) + value

    def totals(self) -> dict[str, float]:
        """The sums over all processes, all of which must call this."""
        names = sorted(self.values)
        own = [torch.as_tensor(self.values[name], dtype=self.dtype, device=self.world.device) for name in names]
        return dict(zip(names, self.world.sum(torch.stack(own)).tolist(), strict=True))

    def load_totals(self, totals: dict[str, float]) -> None:
        """Go on from saved totals, which the main process takes over."""
        share = 1.0 if self.world.is_main else 0.0
        self.values = {name: share * total for name, total in totals.items()}
