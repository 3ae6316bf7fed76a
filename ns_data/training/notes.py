"""Notes: what a run writes down of its steps: sums over an epoch, the score ledger, time spent on scoring."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ns_data.collate import GroupedBatch
from ns_data.scoring.ledger import ScoreLedger
from ns_data.scoring.scorer import NSScorer
from ns_data.training.config import Config
from ns_data.training.distributed import World
from ns_data.training.run import RunFolder


class Notes:
    """Entered in every step; read at the end of an epoch, by all processes together."""

    def __init__(self, config: Config, ledger: ScoreLedger, scorer: NSScorer, world: World) -> None:
        self.config, self.ledger, self.scorer, self.world = config, ledger, scorer, world
        self.sums, self.scoring_time = EpochSums(world), Stopwatch(world.device)
        self.epoch, self.first_bad_step = 0, torch.tensor(torch.inf, device=world.device)

    def enter(self, batch: GroupedBatch, weights: Tensor, scores: Tensor, losses: Tensor, epoch: int, number: int) -> None:
        """The outcome of one batch, all of shape (B,). Nothing here waits for the device."""
        if self.scorer.ledger is None and batch.ids is not None:  # else the scorer enters what it scored
            self.ledger.update(batch.ids, scores, batch.labels, epoch, losses=losses)
        labels_GM = batch.labels[batch.groups].sort(dim=1).values
        ties = (labels_GM[:, 1:] == labels_GM[:, :-1]).any(dim=1).sum()
        sums = {"loss": losses.sum(), "weight": weights.sum(), "tied_groups": ties, "skipped": batch.skipped}
        self.sums.add(samples=len(losses), **sums)
        step = torch.where(torch.isfinite(losses).all(), torch.inf, number + 1)
        self.epoch = epoch
        self.first_bad_step = torch.minimum(self.first_bad_step, step)

    def numbers(self) -> dict[str, Any]:
        """Means and counts of the epoch over all processes; the next one starts from zero."""
        self._check_finite()
        self._count_scorer()
        totals = self.sums.totals()
        self.sums = EpochSums(self.world)
        samples = totals.pop("samples")
        means = {"loss": totals.pop("loss") / samples, "mean_weight": totals.pop("weight") / samples}
        counts = {name: round(count) for name, count in totals.items()}
        return {**means, **counts, "scoring_seconds": self.scoring_time.read()}

    def _check_finite(self) -> None:
        """Stop a run that has diverged: its losses since the last reading, and the weights that would be saved."""
        step = min(float(step) for step in self.world.gather(self.first_bad_step))
        if step < torch.inf:
            raise self._diverged(f"the loss was not a finite number in step {step:.0f} of epoch {self.epoch + 1}")
        parameters = dict(self.scorer.model.named_parameters())
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
        self.sums.add(**self.scorer.report())

    def state_dict(self) -> dict[str, Any]:
        self._check_finite()
        self._count_scorer()
        self.ledger.merge()
        return {"ledger": self.ledger.state_dict(), "sums": self.sums.totals()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.ledger.load_state_dict(state["ledger"])
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


class Stopwatch:
    """Seconds spent in a part of the step: by events on a GPU, which it does not hold up, by the clock elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self._events: list[Any] | None = [] if device.type == "cuda" else None
        self._seconds = 0.0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        if self._events is None:
            start = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - start
        else:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self._events.append((begin, end))

    def read(self) -> float:
        """Seconds since the last reading."""
        if self._events:
            torch.cuda.synchronize()
            self._seconds += sum(begin.elapsed_time(end) for begin, end in self._events) / 1000
            self._events.clear()
        seconds, self._seconds = self._seconds, 0.0
        return seconds
