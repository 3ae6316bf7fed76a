"""Plan: the global batches of an epoch, decided on labels alone. Pure NumPy; any loader carries it out.

An epoch is a function of (seed, epoch, labels, settings). Ids come from a sampler in chunks, a grouping rule deals each
window of them into groups, and groups in a row make global batches. A rank takes a slice of whole groups, so ranks are
disjoint and every world size that divides the global batch sees the same ids.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ns_data.grouping import Rule, deal
from ns_data.stats import ClassStats, gather


class GlobalBatch(NamedTuple):
    """Ids of one global batch: ``num_groups`` whole groups in a row, then ungrouped ids (only in an epoch's last batch)."""

    number: int
    ids: np.ndarray
    num_groups: int


@dataclass
class EpochReport:
    """What a plan did with the ids of an epoch, as far as it has been read."""

    population: int = 0  # samples of the data set
    empty_classes: int = 0  # class ids below the highest one without a sample: they get no draws
    samples: int = 0  # in the batches
    groups: int = 0
    relaxed: int = 0  # sit in a group against the grouping rule
    ungrouped: int = 0  # take part without a group
    dropped: int = 0  # left out, by surplus="drop" or with an incomplete last batch
    seen: np.ndarray | None = field(default=None, repr=False)  # of each sample, unless the sampler draws everybody once

    def counts(self) -> dict[str, Any]:
        """All counts, and the share seen, by name."""
        names = ("samples", "groups", "relaxed", "ungrouped", "dropped", "empty_classes")
        return {**{name: getattr(self, name) for name in names}, "share_seen": self.share_seen}

    @property
    def share_seen(self) -> float:
        """Share of the data set that is in the batches dealt so far."""
        distinct = self.samples if self.seen is None else int(np.count_nonzero(self.seen))
        return distinct / max(1, self.population)


@dataclass(frozen=True)
class Plan:
    """Everything that decides an epoch's batches, except which ids the sampler draws.

    ``batch_size`` is the global batch, ``world_size`` only decides whether the last, short batch has a group for every rank.
    """

    labels: np.ndarray
    stats: ClassStats
    rule: Rule
    surplus: str
    group_size: int
    batch_size: int
    world_size: int
    drop_last: bool
    seeds: tuple[int, ...]  # of the grouping; a sampler that leaves the order to the grouping adds its own

    def num_batches(self, num_ids: int, num_dropped: int = 0) -> int:
        """Global batches in an epoch of ``num_ids`` ids, ``num_dropped`` of which the grouping rule drops."""
        full, rest = divmod(num_ids - num_dropped, self.batch_size)
        return full + int(self._keeps_last(rest))

    def _keeps_last(self, num_ids: int) -> bool:
        """Whether a last batch of fewer than ``batch_size`` ids is used."""
        enough = num_ids // self.group_size >= self.world_size or self.world_size == 1
        return num_ids > 0 and enough and not self.drop_last

    def report(self, each_once: bool) -> EpochReport:
        """An empty report; it marks the samples seen unless the ids of an epoch are ``each_once`` anyway."""
        population = self.stats.total
        seen = None if each_once else np.zeros(population, bool)
        return EpochReport(population, self.stats.empty_classes.size, seen=seen)

    def batches(self, windows: Iterable[np.ndarray], epoch: int, report: EpochReport) -> Iterator[GlobalBatch]:
        """Deal ``windows`` of ids into global batches, counting in ``report`` as they are made."""
        number = 0
        pending = left = np.empty(0, np.int32)  # dealt and waiting for a full batch; carried to the next window
        for window, (ids, last) in enumerate(_until_last(windows)):
            if left.size:
                ids = np.concatenate([left, ids])
            rng = np.random.Generator(np.random.SFC64([*self.seeds, epoch, window]))
            table, left, dropped, relaxed = deal(
                self.rule, self.surplus, ids, gather(self.labels, ids), self.group_size, rng, self.stats, last
            )
            report.relaxed += relaxed
            report.dropped += dropped
            ids = table.reshape(-1)
            pending = np.concatenate([pending, ids]) if pending.size else ids
            del table, ids
            end = pending.size // self.batch_size * self.batch_size
            if report.seen is not None:
                report.seen[pending[:end]] = True
            num_groups = self.batch_size // self.group_size
            for start in range(0, end, self.batch_size):
                report.samples += self.batch_size
                report.groups += num_groups
                yield GlobalBatch(number, pending[start : start + self.batch_size], num_groups)
                number += 1
            pending = pending[end:]
        rest = np.concatenate([pending, left])
        for start in range(0, rest.size, self.batch_size):  # ungrouped ids may spill into one more batch
            ids = rest[start : start + self.batch_size]
            groups = min(ids.size, max(0, pending.size - start)) // self.group_size
            if ids.size < self.batch_size and not self._keeps_last(ids.size):
                report.dropped += ids.size
                continue
            yield self._count(GlobalBatch(number, ids, groups), report)
            number += 1

    def lane_batches(
        self, windows: Iterable[np.ndarray], tail: np.ndarray, epoch: int, report: EpochReport
    ) -> Iterator[GlobalBatch]:
        """Deal ``windows`` of shape (lanes, W) into global batches of the same number of ids from each lane, lane after lane.

        Groups are formed inside a lane and window. What fills no row of groups in all lanes makes the last batch with ``tail``.
        """
        m, number = self.group_size, 0
        pending = rest = np.empty((0, 0), np.int64)  # grouped ids that wait for a batch, ids that wait for a group
        for window, table in enumerate(windows):
            lanes = len(table)
            size = self.batch_size // lanes
            if not pending.size:
                pending = np.empty((lanes, 0), np.int64)
            joined = np.concatenate([rest, table], axis=1) if rest.size else table
            whole = joined.shape[1] // m * m
            rest = joined[:, whole:]
            dealt = []
            for lane in range(lanes if whole else 0):
                ids, rng = joined[lane, :whole], np.random.default_rng([*self.seeds, epoch, window, lane])
                deal_of_lane = deal(self.rule, self.surplus, ids, self.labels[ids], m, rng, self.stats)
                report.relaxed += deal_of_lane.relaxed
                dealt.append(deal_of_lane.table_GM.reshape(-1))
            pending = np.concatenate([pending, np.stack(dealt)], axis=1) if dealt else pending
            full = pending.shape[1] // size
            for part in range(full):
                ids = pending[:, part * size : (part + 1) * size].reshape(-1)
                yield self._count(GlobalBatch(number, ids, self.batch_size // m), report)
                number += 1
            pending = pending[:, full * size :]
        ids = np.concatenate([rest.reshape(-1), tail])
        rng = np.random.default_rng([*self.seeds, epoch, 1 << 31])
        table, left, _, relaxed = deal(self.rule, self.surplus, ids, self.labels[ids], m, rng, self.stats)
        report.relaxed += relaxed
        grouped = np.concatenate([pending.reshape(-1), table.reshape(-1)])
        ids = np.concatenate([grouped, left])
        if self._keeps_last(ids.size):
            yield self._count(GlobalBatch(number, ids, grouped.size // m), report)
        else:
            report.dropped += ids.size

    def _count(self, batch: GlobalBatch, report: EpochReport) -> GlobalBatch:
        report.samples += batch.ids.size
        report.groups += batch.num_groups
        report.ungrouped += batch.ids.size - batch.num_groups * self.group_size
        if report.seen is not None:
            report.seen[batch.ids] = True
        return batch

    def digest(self) -> str:
        """Fingerprint of the labels, the same whatever integer type holds them."""
        digest = hashlib.sha256()
        for start in range(0, self.labels.size, 1 << 20):
            digest.update(np.ascontiguousarray(self.labels[start : start + (1 << 20)], np.int32).data)
        return digest.hexdigest()[:16]


def _until_last(windows: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, bool]]:
    """Each window and whether it is the last one, for which the next is fetched ahead."""
    ahead = iter(windows)
    window = next(ahead, None)
    while window is not None:
        following = next(ahead, None)
        yield window, following is None
        window = following


def slice_of_rank(batch: GlobalBatch, group_size: int, rank: int, world_size: int) -> tuple[int, int]:
    """(start, stop) of a rank's whole groups in a global batch; the last rank also takes the ungrouped ids."""
    first = batch.num_groups * rank // world_size * group_size
    last = batch.num_groups * (rank + 1) // world_size * group_size
    return first, batch.ids.size if rank == world_size - 1 else last


STATE_VERSION = 2


def plan_state(epoch: int, batches: int, settings: dict[str, Any]) -> dict[str, Any]:
    """The whole position of a run in its plan: a new, small dict, whatever the size of the data set."""
    versions = {"plan": STATE_VERSION, "numpy": np.__version__}
    return {"epoch": epoch, "batches": batches, "settings": dict(settings), "versions": versions}


def check_plan_state(state: dict[str, Any], settings: dict[str, Any]) -> tuple[int, int]:
    """(epoch, batches) of a state made for the same labels and settings; ``ValueError`` names what differs."""
    if not isinstance(state, dict) or not {"epoch", "batches", "settings", "versions"} <= state.keys():
        raise ValueError(f"this is not the state of a plan: {str(state)[:80]}")
    if state["versions"].get("plan") != STATE_VERSION:
        raise ValueError(
            f"the state was made by plan version {state['versions'].get('plan')}, this is version {STATE_VERSION}: "
            "start the epoch anew"
        )
    saved = state["settings"]
    different = [key for key in sorted(saved.keys() | settings.keys()) if saved.get(key) != settings.get(key)]
    if different:
        changes = ", ".join(f"{key} (then {saved.get(key)!r}, now {settings.get(key)!r})" for key in different)
        raise ValueError(f"the state belongs to another data set or setting: {changes}")
    return int(state["epoch"]), int(state["batches"])
