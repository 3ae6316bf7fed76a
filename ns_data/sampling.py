"""Sampling: which samples an epoch holds. Class laws and their samplers.

With n_k samples in class k of K, a law gives class k the probability p_k and draws uniformly inside the class:

    instance-balanced     p_k = n_k / N             (every sample once: `ShuffleSampler`)
    class-balanced   CBS  p_k = 1 / K
    square-root      SRS  p_k = n_k^(1/2) / sum_j n_j^(1/2)
    power                 p_k = n_k^q / sum_j n_j^q
    effective number      p_k ~ n_k / E_k,  E_k = (1 - beta^n_k) / (1 - beta)
    progressively    PBS  p_k = (1 - t) n_k / N + t / K,  t rising from 0 to 1 over the training

Sources: "Decoupling Representation and Classifier for Long-Tailed Recognition", Kang et al., 2020; for the effective number
"Class-Balanced Loss Based on Effective Number of Samples", Cui et al., 2019. Draws are independent, a class first and a
member second, so their cost depends neither on K nor on N; ``cycle=True`` deals the members of a class in turn instead. The
stream of an epoch is cut in chunks with a generator each, from (seed, epoch, chunk).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from ns_data.choose import choose
from ns_data.drawing import AliasTable, Members, Turns
from ns_data.locality import Locality
from ns_data.stats import ClassStats, as_labels, position_dtype

_CHUNK = 1 << 14


class EpochSampler(Sampler[int], ABC):
    """A sampler whose epoch is a pure function of (seed, epoch). Call ``set_epoch`` before each epoch."""

    def __init__(self, population: int, num_samples: int, seed: int) -> None:
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}")
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

    def lane_windows(self, epoch: int) -> tuple[Iterator[np.ndarray], np.ndarray]:
        """The ids of an epoch as tables of shape (lanes, window), and the fewer than ``lanes`` ids that fill no table."""
        assert self.locality is not None, "only asked for after local()"
        return self.locality.windows(self.epoch_ids(epoch), [self.seed, epoch, 1])

    @abstractmethod
    def chunks(self, epoch: int) -> Iterator[np.ndarray]:
        """The ids of an epoch, in order, as arrays."""

    def windows(self, epoch: int) -> Iterator[np.ndarray]:
        """The same ids as the arrays that are dealt into groups, one after the other; the order inside an array is free."""
        return self.chunks(epoch)

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
            for start in range(0, chunk.size, _CHUNK):
                yield from chunk[start : start + _CHUNK].tolist()

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

    def _everybody(self) -> np.ndarray:
        return np.arange(self.population, dtype=position_dtype(self.population))

    def chunks(self, epoch: int) -> Iterator[np.ndarray]:
        ids = self._everybody()
        np.random.default_rng([self.seed, epoch]).shuffle(ids)
        yield ids

    def windows(self, epoch: int) -> Iterator[np.ndarray]:
        yield self._everybody()  # the grouping shuffles: once is enough


class ClassLawSampler(EpochSampler):
    """Independent draws: a class with probability proportional to its weight, then one of its members.

    ``weights`` gives classes their weights from their counts n_k > 0; a class without samples is never drawn. With
    ``cycle=True`` the members of a class are taken in random order without repeats until all have been drawn, then in a
    new order; the cycles start anew with each epoch. ``num_samples`` draws make an epoch, by default one for each label.
    """

    def __init__(
        self,
        labels: Any,
        weights: Callable[[np.ndarray], np.ndarray],
        *,
        num_samples: int | None = None,
        seed: int = 0,
        cycle: bool = False,
    ) -> None:
        codes = as_labels(labels)
        super().__init__(codes.size, codes.size if num_samples is None else num_samples, seed)
        self.stats = ClassStats.from_labels(codes)
        self.cycle = cycle
        self._present = np.flatnonzero(self.stats.counts)
        self._law = _normalized(weights(self.stats.counts[self._present].astype(np.float64)))
        self._classes = AliasTable(self._law)
        self._members = Members(codes, self.stats.counts)

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "cycle": self.cycle}

    def class_probabilities(self, epoch: int = 0) -> np.ndarray:
        """p_k of all K classes in ``epoch`` (at its start, if the law moves inside it)."""
        probabilities = np.zeros(self.stats.num_classes)
        probabilities[self._present] = self._law
        return probabilities

    def expected_share_seen(self, epoch: int = 0) -> float:
        """Share of the data set that an epoch of independent draws is expected to hold: mean of 1 - (1 - p_k/n_k)^draws."""
        counts = self.stats.counts
        each = self.class_probabilities(epoch) / np.maximum(counts, 1)
        return float(counts @ (1 - (1 - each) ** self.num_samples) / self.population)

    def chunks(self, epoch: int) -> Iterator[np.ndarray]:
        turns = Turns(self._members) if self.cycle else None
        for number, start in enumerate(range(0, self.num_samples, _CHUNK)):
            rng = np.random.Generator(np.random.SFC64([self.seed, epoch, number]))
            size = min(_CHUNK, self.num_samples - start)
            classes = self._draw_classes(_CHUNK, rng, epoch, start)[:size]
            yield self._members.draw(classes, rng) if turns is None else turns.take(classes, rng)

    def _draw_classes(self, size: int, rng: np.random.Generator, epoch: int, start: int) -> np.ndarray:
        """``size`` classes, the first for draw number ``start`` of the epoch."""
        return self._present.take(self._classes.draw(size, rng))


def _normalized(weights: np.ndarray) -> np.ndarray:
    total = weights.sum()
    if not (np.isfinite(weights).all() and (weights >= 0).all() and total > 0):
        raise ValueError(f"a law must weigh classes by finite numbers, not negative and not all zero, got {weights[:8]}")
    return weights / total


class ClassBalancedSampler(ClassLawSampler):
    """CBS: every class that has samples is drawn with the same probability."""

    def __init__(self, labels: Any, *, num_samples: int | None = None, seed: int = 0, cycle: bool = False) -> None:
        super().__init__(labels, np.ones_like, num_samples=num_samples, seed=seed, cycle=cycle)

    def _draw_classes(self, size: int, rng: np.random.Generator, epoch: int, start: int) -> np.ndarray:
        return self._present.take(rng.integers(self._present.size, size=size))


class SquareRootSampler(ClassLawSampler):
    """SRS: a class is drawn with probability proportional to the square root of its size."""

    def __init__(self, labels: Any, *, num_samples: int | None = None, seed: int = 0, cycle: bool = False) -> None:
        super().__init__(labels, np.sqrt, num_samples=num_samples, seed=seed, cycle=cycle)


class PowerSampler(ClassLawSampler):
    """A class is drawn with probability proportional to n_k^q.

    q = 1 is instance-balanced (independent draws), 1/2 SRS, 0 CBS; below 0 rare classes come more often than frequent ones.
    """

    def __init__(
        self, labels: Any, *, q: float = 0.5, num_samples: int | None = None, seed: int = 0, cycle: bool = False
    ) -> None:
        if not np.isfinite(q):
            raise ValueError(f"the power q must be a finite number, got {q}")
        self.q = float(q)
        super().__init__(labels, self._weights, num_samples=num_samples, seed=seed, cycle=cycle)

    def _weights(self, counts: np.ndarray) -> np.ndarray:
        logs = self.q * np.log(counts)
        return np.exp(logs - logs.max())  # never overflows

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "q": self.q}


class EffectiveNumberSampler(ClassLawSampler):
    """A sample weighs 1 / E_k, E_k = (1 - beta^n_k) / (1 - beta) the effective number of its class (Cui et al., Eq. 2).

    beta = 0 is instance-balanced, beta near 1 class-balanced.
    """

    def __init__(
        self,
        labels: Any,
        *,
        beta: float = 0.9999,
        num_samples: int | None = None,
        seed: int = 0,
        cycle: bool = False,
    ) -> None:
        if not 0 <= beta < 1:
            raise ValueError(f"beta must be in [0, 1), got {beta}: 0 is instance-balanced, near 1 class-balanced")
        self.beta = float(beta)
        super().__init__(labels, self._weights, num_samples=num_samples, seed=seed, cycle=cycle)

    def _weights(self, counts: np.ndarray) -> np.ndarray:
        effective = -np.expm1(counts * np.log(self.beta)) / (1 - self.beta) if self.beta else np.ones_like(counts)
        return counts / effective

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "beta": self.beta}


# How far PBS has moved from instance-balanced (0) to class-balanced (1) at draw j of n in epoch e of T.
_PBS_SCHEDULES: dict[str, Callable[[int, Any, int], Any]] = {
    "epoch": lambda e, share, T: min(1.0, e / (T - 1)) if T > 1 else 0.0,
    "epoch_of_total": lambda e, share, T: min(1.0, e / T),
    "step": lambda e, share, T: np.minimum(1.0, (e + share) / T),
}


class ProgressivelyBalancedSampler(ClassLawSampler):
    """PBS: moves from instance-balanced to class-balanced sampling over ``num_epochs`` epochs.

    ``schedule`` is "epoch" (t = e / (T - 1), as in the authors' code; 0 if T is 1), "epoch_of_total" (t = e / T, as in the
    paper's formula) or "step" (t = (e + j/n) / T, moving with every draw). A draw is class-balanced with probability t, so
    that no table depends on t.
    """

    def __init__(
        self,
        labels: Any,
        *,
        num_epochs: int,
        num_samples: int | None = None,
        seed: int = 0,
        schedule: str = "epoch",
        cycle: bool = False,
    ) -> None:
        if num_epochs < 1:
            raise ValueError(f"num_epochs must be at least 1, got {num_epochs}")
        super().__init__(labels, np.array, num_samples=num_samples, seed=seed, cycle=cycle)
        self.num_epochs, self.schedule = num_epochs, schedule
        self._progress = choose(_PBS_SCHEDULES, schedule, "PBS schedule")

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "num_epochs": self.num_epochs, "schedule": self.schedule}

    def class_probabilities(self, epoch: int = 0) -> np.ndarray:
        t = float(self._progress(epoch, 0.0, self.num_epochs))
        return (1 - t) * super().class_probabilities() + t * (self.stats.counts > 0) / self._present.size

    def _draw_classes(self, size: int, rng: np.random.Generator, epoch: int, start: int) -> np.ndarray:
        drawn = self._classes.draw(size, rng)
        share = (start + np.arange(size)) / self.num_samples if self.schedule == "step" else 0.0
        progress = self._progress(epoch, share, self.num_epochs)
        balanced = np.flatnonzero(rng.random(size) < progress)
        drawn[balanced] = rng.integers(self._present.size, size=balanced.size)
        return self._present.take(drawn)


# Samplers by the names that configs use: sampler(labels, num_epochs=..., seed=..., **options).
SAMPLINGS: dict[str, Callable[..., EpochSampler]] = {
    "instance": lambda labels, *, num_epochs, seed: ShuffleSampler(labels, seed=seed),
    "cbs": lambda labels, *, num_epochs, seed, num_samples=None, cycle=False: ClassBalancedSampler(
        labels, num_samples=num_samples, seed=seed, cycle=cycle
    ),
    "srs": lambda labels, *, num_epochs, seed, num_samples=None, cycle=False: SquareRootSampler(
        labels, num_samples=num_samples, seed=seed, cycle=cycle
    ),
    "power": lambda labels, *, num_epochs, seed, q=0.5, num_samples=None, cycle=False: PowerSampler(
        labels, q=q, num_samples=num_samples, seed=seed, cycle=cycle
    ),
    "effective_number": lambda labels, *, num_epochs, seed, beta=0.9999, num_samples=None, cycle=False: EffectiveNumberSampler(
        labels, beta=beta, num_samples=num_samples, seed=seed, cycle=cycle
    ),
    "pbs": ProgressivelyBalancedSampler,
}
