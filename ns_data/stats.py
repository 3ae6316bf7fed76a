"""ClassStats: how many samples each class has, and what follows from it. Everything else asks here; nobody recounts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


def as_labels(labels: Any, num_classes: int | None = None) -> np.ndarray:
    """One non-negative integer class id per sample, as a 1-D array of the smallest dtype that holds them.

    Takes lists, numpy arrays, tensors, pandas and Arrow columns, and Hugging Face columns.
    Raises ``ValueError`` for anything that is not one non-negative integer a sample, or reaches ``num_classes``.
    """
    array = _to_numpy(labels)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"labels must be a non-empty 1-D sequence, one class id a sample, got shape {array.shape}")
    if array.dtype.kind not in "iub":
        example = array[0]
        raise ValueError(f"labels must be integer class ids, got {array.dtype} such as {example!r}: map them to 0..K-1 first")
    lowest, highest = int(array.min()), int(array.max())
    if lowest < 0:
        raise ValueError(f"labels must not be negative, got {lowest}: leave unlabelled samples out first")
    if highest >= 1 << 31:
        raise ValueError(f"label {highest} is too large for a class id: map the labels to 0..K-1 first")
    if num_classes is not None and highest >= num_classes:
        raise ValueError(f"label {highest} does not fit num_classes={num_classes}: classes are 0..{num_classes - 1}")
    return array.astype(label_dtype(highest), copy=False)


def label_dtype(highest: int) -> np.dtype:
    """Smallest signed dtype up to 32 bits for class ids 0..highest; numpy sorts 16-bit keys by radix."""
    return np.dtype(np.int16 if highest < 1 << 15 else np.int32)


def _to_numpy(labels: Any) -> np.ndarray:
    if type(labels).__module__.partition(".")[0] == "datasets":
        labels = labels[:]  # a Hugging Face column: its slice is decoded at once, iteration item by item
    if hasattr(labels, "to_numpy"):  # pandas and Arrow columns
        return np.asarray(labels.to_numpy())
    if hasattr(labels, "detach"):  # tensors
        return labels.detach().cpu().numpy()
    try:
        return np.asarray(labels)
    except ValueError:  # ragged rows
        raise ValueError("labels must be one class id a sample, got rows of different lengths") from None


@dataclass(frozen=True, eq=False)
class ClassStats:
    """Class counts n_k.

    >>> stats = ClassStats.from_labels([0, 0, 0, 2], num_classes=4)
    >>> stats.counts.tolist(), stats.total, stats.imbalance_factor, stats.empty_classes.tolist()
    ([3, 0, 1, 0], 4, 3.0, [1, 3])
    """

    counts: np.ndarray

    @classmethod
    def from_labels(cls, labels: Any, num_classes: int | None = None) -> ClassStats:
        """Count ``labels`` (anything ``as_labels`` takes); ``num_classes`` adds empty classes at the end."""
        if isinstance(labels, ClassStats):
            return labels
        return cls(np.bincount(as_labels(labels, num_classes), minlength=num_classes or 0))

    @property
    def num_classes(self) -> int:
        return int(self.counts.size)

    @property
    def total(self) -> int:
        """Number of samples."""
        return int(self.counts.sum())

    @property
    def empty_classes(self) -> np.ndarray:
        """Ids of classes without a sample: they get no draws."""
        return np.flatnonzero(self.counts == 0)

    @property
    def imbalance_factor(self) -> float:
        """Samples of the largest class over those of the smallest class that has any."""
        present = self.counts[self.counts > 0]
        return float(present.max() / present.min())

    @property
    def frequent_half(self) -> np.ndarray:
        """True for the ceil(K/2) classes with the most samples (ties: the lower class id)."""
        frequent = np.zeros(self.num_classes, bool)
        frequent[np.argsort(-self.counts, kind="stable")[: (self.num_classes + 1) // 2]] = True
        return frequent

    def share_of_groups_with_ties(self, group_size: int) -> float:
        """Probability that a group of ``group_size`` random samples has two members of one class.

        One minus the m-th elementary symmetric polynomial of the class shares times m! (drawn with replacement).
        """
        shares = self.counts / self.total
        distinct = np.zeros(group_size + 1)
        distinct[0] = 1.0
        for share in shares:  # distinct[j]: j-subsets of the classes so far
            distinct[1:] += share * distinct[:-1]
        factorial = float(np.prod(np.arange(1, group_size + 1, dtype=np.float64)))
        return float(max(0.0, 1.0 - factorial * distinct[group_size]))
