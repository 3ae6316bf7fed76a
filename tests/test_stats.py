from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ns_data import ClassStats
from ns_data.stats import as_labels


@given(st.lists(st.integers(0, 9), min_size=1, max_size=50))
def test_counts_equal_numpys_unique(labels):
    stats = ClassStats.from_labels(labels, num_classes=12)
    classes, counts = np.unique(labels, return_counts=True)
    assert stats.num_classes == 12
    assert stats.total == len(labels)
    assert stats.counts[classes].tolist() == counts.tolist()
    assert stats.counts.sum() == len(labels)
    assert set(stats.empty_classes) == set(range(12)) - set(classes.tolist())
    assert stats.imbalance_factor == counts.max() / counts.min()


@pytest.mark.parametrize("make", [list, np.asarray, torch.tensor, tuple, lambda x: np.asarray(x, np.uint8)])
def test_labels_of_many_kinds(make):
    assert as_labels(make([2, 0, 1])).tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0.0, 1.0], "integer class ids, got float64"),
        ([0.5, float("nan")], "integer class ids"),
        (["cat", "dog"], "integer class ids"),
        ([0, -1], "negative, got -1"),
        ([], "non-empty"),
        ([[0, 1], [1, 0]], r"shape \(2, 2\)"),
        ([[0], [1, 0]], "different lengths"),
        ([1 << 40], "too large"),
    ],
)
def test_other_labels_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        ClassStats.from_labels(labels)


def test_labels_beyond_num_classes_are_refused():
    with pytest.raises(ValueError, match="label 3 does not fit num_classes=3"):
        ClassStats.from_labels([0, 3], num_classes=3)


def test_frequent_half():
    assert ClassStats.from_labels([0, 1, 1, 2, 2, 2, 4, 4, 4, 4], 5).frequent_half.tolist() == [False, True, True, False, True]


@pytest.mark.parametrize("group_size", [1, 2, 3])
def test_share_of_groups_with_ties_equals_enumeration(group_size):
    labels = [0, 0, 0, 1, 1, 2]
    draws = list(product(labels, repeat=group_size))
    share = sum(len(set(draw)) < group_size for draw in draws) / len(draws)
    assert ClassStats.from_labels(labels).share_of_groups_with_ties(group_size) == pytest.approx(share)
