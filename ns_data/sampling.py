"""Sampling: which samples an epoch holds. Class laws and their samplers.

With n_k samples in class k of K, a law gives class k the probability p_k and draws uniformly inside the class:

    instance-balanced     p_k = n_k / N             (every sample once: `ShuffleSampler`)
    class-balanced   CBS  p_k = 1 / K
    square-root      SRS  p_k = sqrt(n_k) / sum_j sqrt(n_j)
    progressively    PBS  p_k = (1 - t) n_k / N + t / K,  t rising from 0 to 1 over the training

Source: "Decoupling Representation and Classifier for Long-Tailed Recognition", Kang et al., 2020. Draws are independent,
a class first and a member second, so their cost depends neither on K nor on N. The stream of an epoch is cut in chunks
with a generator each, from (seed, epoch, chunk).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from ns_data.choose import choose
from ns_data.locality import Locality
from ns_data.stats import ClassStats, as_labels

_CHUNK = 1 << 14


class EpochSampler(Sampler[int], ABC):
    """A sampler whose epoch is a pure function of (seed, epoch). Call ``set_epoch`` before each epoch."""

    def __init__(self, population: int, num_samples: int, seed: int) -> None:
        self.population = population  # samples of the set that ids refer to
        self.num_samples = num_samples
        self.seed = seed
        self.epoch = 0
        self.locality: Locality | None = None  # None: any order

    def local(self, shards: Any, lanes: int | None = None, **options: Any) -> EpochSampler:
        """Arrange the ids by shards (samples of each, in the order of their ids), for ``PlannedStream``; returns itself."""
        sizes = tuple(int(size) for size in shards)
        if sum(sizes) != self.population:
            raise ValueError(f"the shards hold {sum(sizes)} samples, but the sampler draws from {self.population}")
        passes = {} if isinstance(self, ShuffleSampler) else {"passes": 8}
        self.locality = Locality(sizes, 4 if lanes is None else lanes, **{**passes, **options})
        return self

    def windows(self, epoch: int) -> tuple[Iterator[np.ndarray], np.ndarray]:
        """The ids of an epoch as tables of shape (lanes, window), and the fewer than ``lanes`` ids that fill no table."""
        assert self.locality is not None, "only asked for after local()"
        return self.locality.windows(self.epoch_ids(epoch), [self.seed, epoch, 1])

    @abstractmethod
    def chunks(self, epoch: int) -> Iterator[np.ndarray]:
        """The ids of an epoch, in order, as arrays."""

    def settings(self) -> dict[str, Any]:
        """What decides the ids beside labels and epoch, for the state of a run."""
        local = {} if self.locality is None else self.locality.settings()
        return {"sampler": type(self).__name__, "num_samples": self.num_samples, "sampler_seed": self.seed, **local}

    def epoch_ids(self, epoch: int) -> np.ndarray:
        """All ids of an epoch, shape ``(num_samples,)``."""
        return np.concatenate(list(self.chunks(epoch)))

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        for chunk in self.chunks(self.epoch):
            yield from chunk.tolist()

    def __len__(self) -> int:
        return self.num_samples


class ShuffleSampler(EpochSampler):
    """Every sample once an epoch, in random order: instance-balanced sampling.

    >>> sorted(ShuffleSampler(5).epoch_ids(0).tolist())
    [0, 1, 2, 3, 4]
    """

    def __init__(self, labels_or_length: Any, *, seed: int = 0, shards: Any = None, lanes: int | None = None) -> None:
        length = labels_or_length if isinstance(labels_or_length, (int, np.integer)) else len(labels_or_length)
        if length < 1:
            raise ValueError(f"cannot sample from {length} samples: at least one is needed")
        super().__init__(int(length), int(length), seed)
        if shards is not None:
            self.local(shards, lanes)
        elif lanes is not None:
            raise ValueError("lanes need shards: give the number of samples of each shard")

    def chunks(self, epoch: int) -> Iterator[np.ndarray]:
        ids = np.arange(self.population, dtype=np.int32 if self.population < 1 << 31 else np.int64)
        yield np.random.default_rng([self.seed, epoch]).permutation(ids)


class _ClassLawSampler(EpochSampler):
    """Independent draws: a class by the law, then one of its members."""

    def __init__(self, labels: Any, num_samples: int | None, seed: int) -> None:
        codes = as_labels(labels)
        self.stats = ClassStats.from_labels(codes)
        super().__init__(codes.size, codes.size if num_samples is None else num_samples, seed)
        if self.num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}")
        # Members of class k are _members[_first[k] : _first[k] + n_k].
        self._members = np.argsort(codes, kind="stable").astype(np.int32 if codes.size < 1 << 31 else np.int64)
        self._first = np.concatenate([[0], np.cumsum(self.stats.counts)[:-1]])
        self._present = np.flatnonzero(self.stats.counts)

    def chunks(self, epoch: int) -> Iterator[np.ndarray]:
        for number, start in enumerate(range(0, self.num_samples, _CHUNK)):
            rng = np.random.Generator(np.random.SFC64([self.seed, epoch, number]))
            size = min(_CHUNK, self.num_samples - start)
            yield self._draw(_CHUNK, rng, epoch, start)[:size]

    @abstractmethod
    def _draw(self, size: int, rng: np.random.Generator, epoch: int, start: int) -> np.ndarray:
        """``size`` ids, the first of which is draw number ``start`` of the epoch."""

    def _members_of(self, classes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        places = (rng.random(classes.size) * self.stats.counts[classes]).astype(np.int64)
        return self._members[self._first[classes] + places]

    def _members_of_uniform_classes(self, size: int, rng: np.random.Generator) -> np.ndarray:
        return self._members_of(self._present[rng.integers(self._present.size, size=size, dtype=np.int32)], rng)


class ClassBalancedSampler(_ClassLawSampler):
    """CBS: every class that has samples is drawn with the same probability."""

    def __init__(self, labels: Any, *, num_samples: int | None = None, seed: int = 0) -> None:
        super().__init__(labels, num_samples, seed)

    def class_probabilities(self, epoch: int = 0) -> np.ndarray:
        return (self.stats.counts > 0) / self._present.size

    def _draw(self, size: int, rng: np.random.Generator, epoch: int, start: int) -> np.ndarray:
        return self._members_of_uniform_classes(size, rng)


class SquareRootSampler(_ClassLawSampler):
    """SRS: a class is drawn with probability proportional to the square root of its size."""

    def __init__(self, labels: Any, *, num_samples: int | None = None, seed: int = 0) -> None:
        super().__init__(labels, num_samples, seed)
        self._threshold, self._alias = _alias_table(self.class_probabilities())

    def class_probabilities(self, epoch: int = 0) -> np.ndarray:
        roots = np.sqrt(self.stats.counts)
        return roots / roots.sum()

    def _draw(self, size: int, rng: np.random.Generator, epoch: int, start: int) -> np.ndarray:
        column = rng.random(size) * self._threshold.size
        classes = column.astype(np.int32)
        keep = column - classes < self._threshold[classes]
        return self._members_of(np.where(keep, classes, self._alias[classes]), rng)


def _alias_table(probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Walker's alias method: a uniform column k stands for k below its threshold and for alias[k] above it."""
    threshold = probabilities * probabilities.size
    alias = np.arange(probabilities.size, dtype=np.int32)
    small, large = np.flatnonzero(threshold < 1).tolist(), np.flatnonzero(threshold >= 1).tolist()
    while small and large:
        needy, donor = small.pop(), large[-1]
        alias[needy] = donor
        threshold[donor] -= 1 - threshold[needy]
        if threshold[donor] < 1:
            small.append(large.pop())
    threshold[small] = 1.0  # what rounding left over
    return threshold, alias


# How far PBS has moved from instance-balanced (0) to class-balanced (1) at draw j of n in epoch e of T.
_PBS_SCHEDULES: dict[str, Callable[[int, np.ndarray, int], np.ndarray]] = {
    "epoch": lambda e, share, T: np.full(share.shape, min(1.0, e / (T - 1)) if T > 1 else 0.0),
    "epoch_of_total": lambda e, share, T: np.full(share.shape, min(1.0, e / T)),
    "step": lambda e, share, T: np.minimum(1.0, (e + share) / T),
}


class ProgressivelyBalancedSampler(_ClassLawSampler):
    """PBS: moves from instance-balanced to class-balanced sampling over ``num_epochs`` epochs.

    ``schedule`` is "epoch" (t = e / (T - 1), as in the authors' code; 0 if T is 1), "epoch_of_total" (t = e / T, as in the
    paper's formula) or "step" (t = (e + j/n) / T, moving with every draw).
    """

    def __init__(
        self, labels: Any, *, num_epochs: int, num_samples: int | None = None, seed: int = 0, schedule: str = "epoch"
    ) -> None:
        if num_epochs < 1:
            raise ValueError(f"num_epochs must be at least 1, got {num_epochs}")
        super().__init__(labels, num_samples, seed)
        self.num_epochs, self.schedule = num_epochs, schedule
        self._progress = choose(_PBS_SCHEDULES, schedule, "PBS schedule")

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "num_epochs": self.num_epochs, "schedule": self.schedule}

    def class_probabilities(self, epoch: int = 0) -> np.ndarray:
        t = float(self._progress(epoch, np.zeros(1), self.num_epochs)[0])
        return (1 - t) * self.stats.counts / self.stats.total + t * (self.stats.counts > 0) / self._present.size

    def _draw(self, size: int, rng: np.random.Generator, epoch: int, start: int) -> np.ndarray:
        ids = rng.integers(self.population, size=size, dtype=self._members.dtype)
        progress = self._progress(epoch, (start + np.arange(size)) / self.num_samples, self.num_epochs)
        balanced = np.flatnonzero(rng.random(size) < progress)
        ids[balanced] = self._members_of_uniform_classes(balanced.size, rng)
        return ids


# Samplers by the names that configs use: sampler(labels, num_epochs=..., seed=..., **options).
SAMPLINGS: dict[str, Callable[..., EpochSampler]] = {
    "instance": lambda labels, *, num_epochs, seed: ShuffleSampler(labels, seed=seed),
    "cbs": lambda labels, *, num_epochs, seed, num_samples=None: ClassBalancedSampler(
        labels, num_samples=num_samples, seed=seed
    ),
    "srs": lambda labels, *, num_epochs, seed, num_samples=None: SquareRootSampler(labels, num_samples=num_samples, seed=seed),
    "pbs": ProgressivelyBalancedSampler,
}
