"""Locality: an epoch's ids in an order that reads shards from front to back, for data that is far away.

The ids are arranged in *lanes* of equal length. A lane keeps several shards open and takes from all of them at once, in
*windows* of at most W ids; groups are formed inside a window, and a global batch is the same number of ids from every lane.
Lanes and windows depend on the plan alone: ranks and workers only choose which lanes they execute.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Locality:
    """How ids are arranged: ``sizes`` of the shards in the order of their ids, ``lanes``, and ids in a ``window`` of a lane.

    ``passes`` is how often an epoch visits each shard: 1 if every sample occurs once, more to spread repeats.
    """

    sizes: tuple[int, ...]
    lanes: int
    window: int = 1024
    open_shards: int = 4
    passes: int = 1

    def __post_init__(self) -> None:
        for name in ("lanes", "window", "open_shards", "passes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.sizes or min(self.sizes) < 1:
            raise ValueError(f"shards must be the number of samples of each shard, got {list(self.sizes)[:5]}")

    def settings(self) -> dict[str, Any]:
        """What decides the arrangement, for the state of a run."""
        sizes = f"{len(self.sizes)}x{hash(self.sizes) & 0xFFFFFFFF:08x}"  # hashes of integers are the same in every process
        return {"shards": sizes, "lanes": self.lanes, "window": self.window, "passes": self.passes}

    def windows(self, ids: np.ndarray, seed: Sequence[int]) -> tuple[Iterator[np.ndarray], np.ndarray]:
        """Tables of shape (lanes, up to ``window``), and the fewer than ``lanes`` ids at the end that fill no table."""
        usable = ids.size // self.lanes * self.lanes
        return self._tables(ids[:usable], seed), ids[usable:]

    def _tables(self, ids: np.ndarray, seed: Sequence[int]) -> Iterator[np.ndarray]:
        ends = np.cumsum(self.sizes)
        rows = ids.size // self.lanes
        cuts = [rows * part // self.passes * self.lanes for part in range(self.passes + 1)]
        for part, (first, last) in enumerate(pairwise(cuts)):
            if first == last:
                continue
            visited = self._visit(ids[first:last], ends, np.random.default_rng([*seed, part]))
            lanes = visited.reshape(self.lanes, -1)
            for start in range(0, lanes.shape[1], self.window):
                yield lanes[:, start : start + self.window]

    def _visit(self, ids: np.ndarray, ends: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """``ids`` lane after lane, each by blocks of ``open_shards`` shards that advance together from front to back."""
        rank = rng.permutation(ends.size)  # the order in which shards are visited
        shard = np.searchsorted(ends, ids, side="right")
        order = np.lexsort((ids, rank[shard]))
        ids, shard = ids[order], shard[order]
        lane = np.arange(ids.size) // (ids.size // self.lanes)
        # Runs: a shard's ids in one lane. A lane's runs are numbered, and `open_shards` in a row make a block.
        starts = np.concatenate([[True], (shard[1:] != shard[:-1]) | (lane[1:] != lane[:-1])])
        run = np.cumsum(starts) - 1
        first = np.flatnonzero(starts)
        length = np.diff(np.concatenate([first, [ids.size]]))
        first_run_of_lane = run[np.searchsorted(lane, np.arange(self.lanes))]
        block = (run - first_run_of_lane[lane]) // self.open_shards
        progress = (np.arange(ids.size) - first[run]) / length[run]
        return ids[np.lexsort((run, progress, block, lane))]
