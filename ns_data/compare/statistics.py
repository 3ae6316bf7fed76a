"""Statistics of a comparison, on one figure per run: mean and deviation, paired differences, exact p-values, Holm's correction.

Runs of two methods with the same seed saw the same data in the same order, so their difference is taken seed by seed. Under
the hypothesis that the method makes no difference, each difference is as likely with the other sign: the sign-flip test
looks at all 2^n patterns of signs. With n seeds no p-value can be below 2 / 2^n, whatever the data.

Sources: "The Design of Experiments", Fisher, 1935 (sign flips); "Bootstrap Methods: Another Look at the Jackknife", Efron,
1979; "A Simple Sequentially Rejective Multiple Test Procedure", Holm, 1979.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

Seed = TypeVar("Seed", bound=Hashable)

MAX_PAIRS = 40  # the test then counts pairs of 2^20 sums


class MeanStd(NamedTuple):
    """Mean and sample standard deviation of n values; the deviation of a single one is NaN."""

    mean: float
    std: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.std:.2f} ({self.n})" if self.n > 1 else f"{self.mean:.2f} (1)"


def mean_std(values: Sequence[float] | np.ndarray) -> MeanStd:
    """Mean and deviation (with n - 1) of some runs' values.

    >>> print(mean_std([1.0, 2.0, 3.0]))
    2.00 ± 1.00 (3)
    """
    array = _finite(values)
    return MeanStd(float(array.mean()), float(array.std(ddof=1)) if array.size > 1 else math.nan, array.size)


class Paired(NamedTuple):
    """A method against another: mean of the differences seed by seed, its interval, p-value, and the seeds that were used."""

    differences: np.ndarray
    mean: float
    low: float
    high: float
    p: float
    seeds: list[Any]
    unpaired: list[Any]


def compare_paired(
    ours: Mapping[Seed, float], theirs: Mapping[Seed, float], *, level: float = 0.95, resamples: int = 10_000, rng_seed: int = 0
) -> Paired:
    """``ours`` minus ``theirs``, both a value by seed, over the seeds that both have; the others are named in ``unpaired``."""
    seeds = [seed for seed in ours if seed in theirs]
    unpaired = [seed for seed in [*ours, *theirs] if (seed in ours) != (seed in theirs)]
    if not seeds:
        raise ValueError(f"no seed is in both methods ({list(ours)} and {list(theirs)}): nothing can be paired")
    differences = _finite([ours[seed] for seed in seeds]) - _finite([theirs[seed] for seed in seeds])
    low, high = bootstrap_interval(differences, level=level, resamples=resamples, rng_seed=rng_seed)
    return Paired(differences, float(differences.mean()), low, high, sign_flip_p(differences), seeds, unpaired)


def bootstrap_interval(
    differences: Sequence[float] | np.ndarray, *, level: float = 0.95, resamples: int = 10_000, rng_seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean over ``resamples`` draws of n differences with replacement; NaN for a single one.

    It is too narrow for few values: below about ten it covers less often than ``level`` says.
    """
    array = _finite(differences)
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level!r}")
    if array.size < 2:
        return math.nan, math.nan
    draws = np.random.default_rng(rng_seed).integers(array.size, size=(resamples, array.size))
    low, high = np.quantile(array[draws].mean(1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def sign_flip_p(differences: Sequence[float] | np.ndarray) -> float:
    """Two-sided p-value: the share of all 2^n patterns of signs whose sum is at least as far from 0 as the observed one.

    Exact: the 2^(n/2) sums of either half are enumerated and their pairs counted by bisection.

    >>> sign_flip_p([1.0, 2.0, 4.0])
    0.25
    """
    array = _finite(differences)
    if array.size > MAX_PAIRS:
        raise ValueError(f"the exact test takes up to {MAX_PAIRS} pairs, got {array.size}: use a t-test for that many")
    half = array.size // 2
    first, second = _signed_sums(array[:half]), np.sort(_signed_sums(array[half:]))
    # sums that are equal on paper may differ in the last digits: count them as equal
    least = abs(array.sum()) - 1e-9 * np.abs(array).sum()
    above = second.size - np.searchsorted(second, least - first)
    below = np.searchsorted(second, -least - first, side="right")
    return min(1.0, float((above + below).sum()) / 2**array.size)  # all of them twice if the observed sum is 0


def _signed_sums(values: np.ndarray) -> np.ndarray:
    """The sums of all patterns of signs, shape (2^n,)."""
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums + value, sums - value])
    return sums


def smallest_p(pairs: int, comparisons: int = 1) -> float:
    """The least p-value that ``pairs`` differences can give, 2 / 2^n, times the number of comparisons that Holm corrects for.

    >>> smallest_p(3), smallest_p(6), smallest_p(6, comparisons=4)
    (0.25, 0.03125, 0.125)
    """
    if pairs < 1 or comparisons < 1:
        raise ValueError(f"a test needs at least one pair and one comparison, got {pairs} and {comparisons}")
    return min(1.0, comparisons * 2.0 ** (1 - pairs))


def smallest_p_in_words(pairs: int, comparisons: int = 1, level: float = 0.05) -> str:
    """The sentence for a report: what p the seeds allow, and how many seeds could reach ``level``.

    >>> smallest_p_in_words(3)
    'With 3 paired seeds no p-value can be below 0.25: no difference can reach 0.05, which takes 6 seeds.'
    """
    least = smallest_p(pairs, comparisons)
    corrected = f" after correction for {comparisons} comparisons" if comparisons > 1 else ""
    sentence = f"With {pairs} paired seed{'s' * (pairs > 1)} no p-value{corrected} can be below {least:.2g}"
    if least <= level:
        return f"{sentence}: {level:g} can be reached."
    needed = next(n for n in range(pairs, 1000) if smallest_p(n, comparisons) <= level)
    return f"{sentence}: no difference can reach {level:g}, which takes {needed} seeds."


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Holm's adjusted p-values, in the given order: the k-th smallest of m times m - k + 1, never below a smaller one's.

    NaN (no test was possible) stays NaN and does not count.

    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    array = np.asarray(p_values, dtype=np.float64)
    tested = np.flatnonzero(~np.isnan(array))
    outside = [p for p in array[tested] if not 0 <= p <= 1]
    if outside:
        raise ValueError(f"a p-value lies between 0 and 1, got {outside[0]:g}")
    order = tested[np.argsort(array[tested], kind="stable")]
    adjusted = np.full(array.shape, np.nan)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(array[order] * np.arange(order.size, 0, -1)))
    return adjusted


def _finite(values: Sequence[float] | np.ndarray) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"statistics need at least one value per method in a flat list, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"a run's value is {array[~np.isfinite(array)][0]}: leave that run out by name, or repeat it")
    return array
