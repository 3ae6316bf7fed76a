"""GroupingBatchSampler: a plan as a torch ``BatchSampler``, and PlannedBatch, the list of ids that it yields.

The signature and the epoch's way through ``.sampler`` follow what Lightning, accelerate and torchdata expect of a batch
sampler. Batches are global, the same on every rank, unless ``world_size`` is given.
"""

from __future__ import annotations

import operator
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from itertools import islice
from typing import Any, SupportsIndex, overload

import numpy as np
from torch.utils.data import BatchSampler, DistributedSampler, Sampler

from ns_data.choose import choose
from ns_data.grouping import GROUPINGS, Rule, class_mixed
from ns_data.layout import Layout
from ns_data.plan import EpochReport, GlobalBatch, Plan, check_plan_state, plan_state, slice_of_rank
from ns_data.sampling import EpochSampler, ShuffleSampler
from ns_data.stats import ClassStats, as_labels


class PlannedBatch(list[int]):
    """Ids of one batch that know their place in the plan, so that a dataset can seed each draw by it.

    ``epoch``, ``number`` (of the global batch in its epoch) and ``offset`` (of this slice in the global batch) make the
    slot of position j ``(epoch, number, offset + j)``: the same for every number of ranks and workers.
    """

    def __init__(self, ids: Iterable[int], *, epoch: int, number: int, offset: int = 0) -> None:
        super().__init__(ids)
        self.epoch, self.number, self.offset = epoch, number, offset

    @overload
    def __getitem__(self, index: SupportsIndex) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: Any) -> Any:
        item = super().__getitem__(index)
        if isinstance(index, slice) and index.step in (None, 1):  # a slice of a batch, as accelerate takes it
            start = index.indices(len(self))[0]
            return PlannedBatch(item, epoch=self.epoch, number=self.number, offset=self.offset + start)
        return item


def swallowed_plan() -> PlannedBatch | None:
    """The PlannedBatch that torch's fetcher is fetching, for a dataset that was asked for plain ids.

    A wrapper such as ``torch.utils.data.Subset`` takes the batch apart and hands plain ids on; only the fetcher's frame,
    a few calls up, still knows of it. ``None`` outside a DataLoader, or if its sampler makes no plan.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_globals.get("__name__") == "torch.utils.data._utils.fetch":
            batch = frame.f_locals.get("possibly_batched_index")
            return batch if isinstance(batch, PlannedBatch) else None
    return None


def _name_of(rule: Rule) -> str:
    """What a state calls a rule that was given as a callable."""
    return str(getattr(rule, "name", None) or getattr(rule, "__name__", type(rule).__name__))


class GroupingBatchSampler(BatchSampler):
    """Batches of whole competition groups, for ``DataLoader(dataset, batch_sampler=...)``.

    Args:
        sampler: which samples an epoch holds. The samplers of this package are exact under resume, as is one of your own
            with an ``epoch_ids(epoch)`` that returns an array; any other iterable of ids is consumed lazily, ``window`` ids
            at a time, and promises no exact resume.
        batch_size: samples of a batch and rank, a multiple of the group size; the global batch is ``batch_size * world_size``.
        drop_last: leave out a last batch of fewer samples.
        labels: class id of every sample of the data set (anything ``ClassStats.from_labels`` takes).
        layout: ``Layout`` or "RxC"; its group size is M.
        grouping: a name in ``GROUPINGS`` or a rule of the same signature.
        surplus: what a rule cannot place is dealt in groups that break it ("relax") or left out ("drop"); both are counted.
        rank, world_size: this process among those that share the global batch.
        seed: of the grouping; the sampler's own seed decides which samples are drawn.
        window: ids that are dealt into groups at a time, from a sampler that is not ours.

    Raises:
        ValueError: with the offending value and the way out.

    After (and during) an epoch, ``report`` counts its samples, groups, relaxed, ungrouped and dropped ids, and knows the
    share of the data set that it has seen.

    >>> batches = GroupingBatchSampler(ShuffleSampler(8), 4, labels=[0, 1, 2, 3] * 2, layout="2x2", grouping="class_mixed")
    >>> [sorted(i % 4 for i in batch) for batch in batches]
    [[0, 1, 2, 3], [0, 1, 2, 3]]
    """

    def __init__(
        self,
        sampler: Sampler[int] | Iterable[int],
        batch_size: int,
        drop_last: bool = False,
        *,
        labels: Any,
        layout: Layout | str,
        grouping: str | Rule = "random",
        surplus: str = "relax",
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        window: int = 1 << 14,
    ) -> None:
        batch_size = operator.index(batch_size)  # torch refuses NumPy's integers
        super().__init__(sampler, batch_size, drop_last)
        self.layout, self.window = Layout.parse(layout), window
        codes = as_labels(labels)
        stats = ClassStats.from_labels(codes)
        rule = grouping if callable(grouping) else choose(GROUPINGS, grouping, "grouping")
        self.rank, self.world_size, self.seed = rank, world_size, seed
        self.grouping, self.surplus = grouping, surplus
        self._check(stats, rule)
        seeds = (seed, sampler.seed) if isinstance(sampler, EpochSampler) else (seed,)
        self._plan = Plan(
            codes, stats, rule, surplus, self.layout.group_size, batch_size * world_size, world_size, bool(drop_last), seeds
        )
        self.report: EpochReport = self._plan.report(each_once=True)
        self._epoch = 0  # counts passes over a sampler that has no epoch of its own
        self._resume: tuple[int, int] | None = None
        self._position = (0, 0)  # epoch and batches handed out
        self._started: int | None = None  # epoch of the last pass that began at its start
        self._restored: int | None = None  # epoch of a loaded state, which torchdata may begin twice
        self._warned = False

    def _check(self, stats: ClassStats, rule: Rule) -> None:
        group_size, sampler = self.layout.group_size, self.sampler
        if self.batch_size < group_size:
            raise ValueError(
                f"batch_size {self.batch_size} cannot hold one group of layout {self.layout} ({group_size} samples): "
                "use a larger batch or a smaller layout"
            )
        if self.batch_size % group_size:
            lower = self.batch_size // group_size * group_size
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of the group size {group_size} of layout {self.layout}: "
                f"use {lower} or {lower + group_size}"
            )
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank {self.rank} is not in a world of {self.world_size}: it must be 0..{self.world_size - 1}")
        if self.window < group_size:
            raise ValueError(f"window {self.window} cannot hold one group of {group_size}: use a few thousand ids")
        if self.surplus not in ("relax", "drop"):
            raise ValueError(f"surplus must be 'relax' or 'drop', got {self.surplus!r}")
        if isinstance(sampler, DistributedSampler) and self.world_size > 1:
            raise ValueError(
                f"a DistributedSampler yields one rank's share already, so world_size={self.world_size} would divide it "
                "twice: pass ShuffleSampler, or leave rank and world_size at their defaults"
            )
        if isinstance(sampler, EpochSampler) and sampler.population != stats.total:
            raise ValueError(f"the sampler draws from {sampler.population} samples, but there are {stats.total} labels")
        locality = sampler.locality if isinstance(sampler, EpochSampler) else None
        if locality is not None:
            lanes, global_size = locality.lanes, self.batch_size * self.world_size
            if global_size % (lanes * group_size) or lanes % self.world_size:
                raise ValueError(
                    f"{lanes} lanes do not divide the global batch of {global_size} into whole groups of {group_size} for "
                    f"{self.world_size} ranks: choose lanes as a multiple of the ranks that divides {global_size // group_size}"
                )
            if self.surplus == "drop":
                raise ValueError("surplus='drop' would drop another number in every window of a lane: use surplus='relax'")
        if self.surplus == "drop":
            if not isinstance(sampler, ShuffleSampler):
                raise ValueError(
                    f"surplus='drop' needs a ShuffleSampler, got {type(sampler).__name__}: with other samplers the number "
                    "of dropped samples would change from epoch to epoch; use surplus='relax'"
                )
            num_present = stats.num_classes - stats.empty_classes.size
            if rule is class_mixed and num_present < group_size:
                raise ValueError(
                    f"surplus='drop' cannot form groups of {group_size} different classes from {num_present} classes: use "
                    "surplus='relax' or a smaller layout"
                )

    @cached_property
    def _num_batches(self) -> int:
        num_ids, num_dropped = len(self.sampler), 0  # type: ignore[arg-type]
        if self.surplus == "drop":  # a rule drops the same number of samples in every epoch: deal one to know it
            report = self._plan.report(each_once=True)
            for _ in self._plan.batches(self._windows(0), 0, report):
                pass
            num_dropped = num_ids - report.samples
        return self._plan.num_batches(num_ids, num_dropped)

    def __len__(self) -> int:
        return self._num_batches

    @property
    def epoch(self) -> int:
        """The epoch that the next pass makes: the sampler's, if it has one."""
        return int(getattr(self.sampler, "epoch", self._epoch))

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass. Trainers that reach only ``.sampler`` may call its ``set_epoch`` instead."""
        self._epoch = epoch
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)

    def _windows(self, epoch: int) -> Iterator[np.ndarray]:
        if isinstance(self.sampler, EpochSampler):
            yield from self.sampler.windows(epoch)
        elif hasattr(self.sampler, "epoch_ids"):
            yield np.asarray(self.sampler.epoch_ids(epoch))
        else:
            ids = iter(self.sampler)
            while (window := np.fromiter(islice(ids, self.window), np.int64)).size:
                yield window

    def global_batches(self, epoch: int, report: EpochReport) -> Iterator[GlobalBatch]:
        """The global batches of an epoch, the same on every rank."""
        if isinstance(self.sampler, EpochSampler) and self.sampler.locality is not None:
            windows, tail = self.sampler.lane_windows(epoch)
            return self._plan.lane_batches(windows, tail, epoch, report)
        return self._plan.batches(self._windows(epoch), epoch, report)

    def __iter__(self) -> Iterator[list[int]]:
        epoch, group_size = self.epoch, self.layout.group_size
        start = self._resume[1] if self._resume is not None and self._resume[0] == epoch else 0
        self._resume = None
        self._warn_if_repeated(epoch, start)
        self.report = report = self._plan.report(each_once=isinstance(self.sampler, ShuffleSampler))
        self._position = (epoch, start)
        for batch in self.global_batches(epoch, report):
            if batch.number < start:
                continue
            first, last = slice_of_rank(batch, group_size, self.rank, self.world_size)
            self._position = (epoch, batch.number + 1)
            yield PlannedBatch(batch.ids[first:last].tolist(), epoch=epoch, number=batch.number, offset=first)
        if not hasattr(self.sampler, "epoch"):
            self._epoch += 1

    def _warn_if_repeated(self, epoch: int, start: int) -> None:
        if start == 0 and self._started == epoch != self._restored and not self._warned:
            self._warned = True
            warnings.warn(
                f"epoch {epoch} is made a second time, with the same batches: call set_epoch(epoch) before each epoch",
                stacklevel=3,
            )
        if start == 0:
            self._started = epoch

    @property
    def labels(self) -> np.ndarray:
        """Class id of each sample."""
        return self._plan.labels

    def settings(self) -> dict[str, Any]:
        """What decides the batches beside the epoch; two samplers with equal settings make equal global batches."""
        sampler = self.sampler
        return {
            "labels": self._labels_digest,
            **(sampler.settings() if isinstance(sampler, EpochSampler) else {"sampler": type(sampler).__name__}),
            "grouping": self.grouping if isinstance(self.grouping, str) else _name_of(self.grouping),
            "surplus": self.surplus,
            "group_size": self.layout.group_size,
            "global_batch_size": self.batch_size * self.world_size,
            "drop_last": bool(self.drop_last),
            "seed": self.seed,
        }

    @cached_property
    def _labels_digest(self) -> str:
        return self._plan.digest()

    def state_dict(self, batches_done: int | None = None) -> dict[str, Any]:
        """Position in the plan, as a new small dict. An end-of-epoch state means the start of the next epoch.

        A DataLoader with workers asks for batches ahead of time: pass ``batches_done``, the loop's own count of this epoch.
        """
        epoch, batches = self._resume or self._position
        if epoch != self.epoch:  # set_epoch was called since
            epoch, batches = self.epoch, 0
        if batches_done is not None:
            batches = batches_done
        if batches and batches >= len(self):
            epoch, batches = epoch + 1, 0
        return plan_state(epoch, batches, self.settings())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state`` at the next pass; refuses the state of another data set or setting, naming what differs."""
        epoch, batches = check_plan_state(dict(state), self.settings())
        self.set_epoch(epoch)
        self._resume = (epoch, batches)
        self._started, self._restored = None, epoch
