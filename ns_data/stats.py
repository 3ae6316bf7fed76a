"""ClassStats: how many samples each class has, and what follows from it. Everything else asks here; nobody recounts."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

# Samples taken at a time, so that no pass over the labels needs memory for all of them.
_BLOCK = 1 << 17
_SLICE = 1 << 16  # of a Hugging Face column, which comes as a Python list


def as_labels(labels: Any, num_classes: int | None = None) -> np.ndarray:
    """One non-negative integer class id per sample, as a 1-D array of the smallest dtype that holds them.

    Takes lists, numpy arrays (memory-mapped ones stay so if their dtype fits), tensors, pandas and Arrow columns, Hugging
    Face columns and the ``targets`` of a torchvision data set.
    Raises ``ValueError`` for anything that is not one non-negative integer a sample, or reaches ``num_classes``.
    """
    array = _to_numpy(labels)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"labels must be a non-empty 1-D sequence, one class id a sample, got shape {array.shape}")
    if array.dtype.kind not in "iub":
        example = _first_that_is_no_class_id(array)
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


def position_dtype(size: int) -> np.dtype:
    """Smallest signed dtype of at least 32 bits for positions 0..size-1."""
    return np.dtype(np.int32 if size <= 1 << 31 else np.int64)


def _to_numpy(labels: Any) -> np.ndarray:
    kinds = {(kind.__module__.partition(".")[0], kind.__name__) for kind in type(labels).__mro__}
    if kinds & {("torch", "Dataset"), ("datasets", "Dataset")}:
        raise ValueError(
            f"labels must be the class ids themselves, got a {type(labels).__name__}: pass its column of labels, such as "
            "dataset.targets or dataset['label']"
        )
    if ("datasets", "Column") in kinds:  # item by item it takes seconds a million; slices are decoded at once
        parts = [np.asarray(labels[start : start + _SLICE]) for start in range(0, len(labels), _SLICE)]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)
    if ("pyarrow", "_PandasConvertible") in kinds:
        if labels.null_count:
            raise ValueError(f"labels must be integer class ids, got {labels.null_count} nulls: leave unlabelled samples out")
        return np.asarray(labels.to_numpy(zero_copy_only=False))
    if hasattr(labels, "to_numpy"):  # pandas
        return np.asarray(labels.to_numpy())
    if hasattr(labels, "detach"):  # tensors
        return labels.detach().cpu().numpy()
    try:
        return np.asarray(labels)
    except ValueError:  # ragged rows
        raise ValueError("labels must be one class id a sample, got rows of different lengths") from None


def _first_that_is_no_class_id(array: np.ndarray) -> Any:
    """The value to show: a NaN or a text among numbers tells more than the first number."""
    example = next((value for value in array if not (isinstance(value, Real) and value == value // 1)), array[0])
    return example.item() if isinstance(example, np.generic) else example


def count_labels(labels: np.ndarray, num_classes: int = 0) -> np.ndarray:
    """Samples of each class. In blocks, since ``np.bincount`` widens what it counts to 64 bits."""
    counts = np.zeros(num_classes, np.int64)
    for start in range(0, labels.size, _BLOCK):
        block = np.bincount(labels[start : start + _BLOCK], minlength=counts.size)
        block[: counts.size] += counts
        counts = block
    return counts


def gather(values: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """``values[positions]``, in blocks of rows, since NumPy widens all positions to 64 bits first."""
    gathered = np.empty(positions.shape, values.dtype)
    rows = max(1, _BLOCK * len(positions) // max(1, positions.size))
    for start in range(0, len(positions), rows):
        gathered[start : start + rows] = values.take(positions[start : start + rows])
    return gathered


def members_by_class(labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Positions sorted by class: those of class k follow ``sum(counts[:k])``. In blocks: 4 bytes a sample and no more."""
    members = np.empty(labels.size, position_dtype(labels.size))
    filled = np.cumsum(counts) - counts
    for start in range(0, labels.size, _BLOCK):
        block = labels[start : start + _BLOCK]
        order = np.argsort(block, kind="stable")
        in_block = np.bincount(block, minlength=counts.size)
        members[np.repeat(filled, in_block) + place_in_run(in_block)] = start + order
        filled += in_block
    return members


def place_in_run(lengths: np.ndarray) -> np.ndarray:
    """0, 1, 2... for each of the runs of these ``lengths``.

    >>> place_in_run(np.array([2, 0, 3])).tolist()
    [0, 1, 0, 1, 2]
    """
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)


@dataclass(frozen=True, eq=False)
class ClassStats:
    """Class counts n_k.

    >>> stats = ClassStats.from_labels([0, 0, 0, 2], num_classes=4)
    >>> stats.counts.tolist(), stats.total, stats.imbalance_factor, stats.empty_classes.tolist()
    ([3, 0, 1, 0], 4, 3.0, [1, 3])
    """

    counts: np.ndarray

    def __post_init__(self) -> None:
        counts = np.asarray(self.counts)
        if counts.ndim != 1 or counts.dtype.kind not in "iu" or counts.sum() < 1 or counts.min() < 0:
            raise ValueError(f"class counts must be non-negative integers, not all zero, got {np.array2string(counts)[:60]}")
        object.__setattr__(self, "counts", counts.astype(np.int64))

    @classmethod
    def from_labels(cls, labels: Any, num_classes: int | None = None) -> ClassStats:
        """Count ``labels`` (anything ``as_labels`` takes); ``num_classes`` adds empty classes at the end."""
        if isinstance(labels, ClassStats):
            return labels
        return cls(count_labels(as_labels(labels, num_classes), num_classes or 0))

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
