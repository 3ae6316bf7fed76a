from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ns_data import ClassStats
from ns_data.stats import as_labels, count_labels, gather, members_by_class


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


def arrow(values):
    return pytest.importorskip("pyarrow").chunked_array([values[:2], values[2:]])


def hugging_face(values):
    datasets = pytest.importorskip("datasets")
    return datasets.Dataset.from_dict({"label": [7, *values]}).select(range(1, len(values) + 1))["label"]


def hugging_face_as_numpy(values):
    return pytest.importorskip("datasets").Dataset.from_dict({"label": values}).with_format("numpy")["label"]


def image_folder_targets(values):
    from torchvision.datasets import FakeData

    folder = FakeData(size=len(values))
    folder.targets = list(values)
    return folder.targets


@pytest.mark.parametrize(
    "make",
    [
        lambda v: pytest.importorskip("pandas").Series(v),
        lambda v: pytest.importorskip("pandas").Series(v, dtype="Int64"),
        lambda v: pytest.importorskip("pandas").Series(v, dtype="category"),
        arrow,
        lambda v: pytest.importorskip("pyarrow").array(v),
        hugging_face,
        hugging_face_as_numpy,
        image_folder_targets,
    ],
)
def test_labels_from_tables_and_data_sets(make):
    stats = ClassStats.from_labels(make([2, 0, 1, 2, 2]))
    assert stats.counts.tolist() == [1, 1, 3]


def test_a_long_hugging_face_column_is_read_in_slices():
    values = np.random.default_rng(0).integers(0, 9, 150_000)
    assert np.array_equal(as_labels(hugging_face(values.tolist())), values)


def test_missing_labels_are_named():
    pandas, pyarrow = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    with pytest.raises(ValueError, match="such as nan"):
        as_labels(pandas.Series([1, None, 2]))
    with pytest.raises(ValueError, match="such as nan"):
        as_labels(pandas.Series([1, None, 2], dtype="Int64"))
    with pytest.raises(ValueError, match="1 nulls"):
        as_labels(pyarrow.array([1, None, 2]))


def test_a_data_set_is_not_its_labels():
    class Endless(torch.utils.data.Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, i):
            raise AssertionError("nobody may read samples to find labels")

    with pytest.raises(ValueError, match=r"got a Endless: pass its column of labels, such as dataset\.targets"):
        as_labels(Endless())


@pytest.mark.parametrize("counts", [[], [0, 0], [3, -1], [1.5], [[1]]])
def test_counts_that_are_none_are_refused(counts):
    with pytest.raises(ValueError, match="class counts must be"):
        ClassStats(np.array(counts))


def test_blocks_make_no_difference():
    labels = np.random.default_rng(0).integers(0, 1000, 300_000).astype(np.int16)
    labels[-1] = 1200
    counts = count_labels(labels)
    assert np.array_equal(counts, np.bincount(labels))
    assert np.array_equal(members_by_class(labels, counts), np.argsort(labels, kind="stable"))
    positions = np.random.default_rng(1).integers(0, labels.size, (100_000, 4)).astype(np.int32)
    assert np.array_equal(gather(labels, positions), labels[positions])
