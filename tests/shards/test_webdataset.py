"""Beside the webdataset library: the compose stage in its pipelines, and the traps that made us read shards ourselves."""

import pickle
import warnings
from collections import Counter

import numpy as np
import pytest

from ns_data.collate import NSCollator
from ns_data.shards.compose import GroupStage
from ns_data.shards.index import ShardError, index_shards
from ns_data.shards.writer import write_shards
from tests.shards.helpers import header_positions, members, picture, tar_bytes

wds = pytest.importorskip("webdataset")


def pairs(labels):
    return [(f"sample{i}", int(label)) for i, label in enumerate(labels)]


@pytest.mark.parametrize("m", [2, 4])
@pytest.mark.parametrize("buffer", [16, 256])
def test_groups_have_different_labels_and_nothing_is_lost(m, buffer):
    labels = np.random.default_rng(0).integers(0, 20, 1003)
    stage = GroupStage(f"1x{m}", buffer=buffer)
    made = list(stage(iter(pairs(labels))))
    assert Counter(made) == Counter(pairs(labels))
    groups = [made[start : start + m] for start in range(0, 1003 // m * m, m)]
    repeats = sum(m - len({label for _, label in group}) for group in groups)
    assert repeats == stage.relaxed == 0


def test_a_large_class_is_taken_in_time():
    """Half of the samples are of one class: possible in pairs, if each of them has one."""
    labels = np.random.default_rng(1).permutation([0] * 200 + list(range(1, 201)))
    stage = GroupStage("1x2", buffer=400)
    made = list(stage(pairs(labels)))
    assert all((made[i][1] == 0) != (made[i + 1][1] == 0) for i in range(0, 400, 2))


def test_class_sorted_data_is_told_about():
    stage = GroupStage("2x2", buffer=32)
    with pytest.warns(UserWarning, match="1 classes wait in a buffer of 32 samples, too few for groups of 4"):
        made = list(stage(pairs([0] * 100 + [1] * 100)))
    assert len(made) == 200
    assert stage.relaxed > 100
    with pytest.raises(ValueError, match="a buffer of 3 samples"):
        GroupStage("2x2", buffer=3)


def test_passes_differ_and_a_fresh_stage_repeats():
    data = pairs(np.arange(64) % 8)
    stage = GroupStage("2x2", buffer=32, seed=1)
    first, second = list(stage(data)), list(stage(data))
    assert first != second
    assert list(GroupStage("2x2", buffer=32, seed=1)(data)) == first
    keyed = GroupStage("2x2", buffer=32, seed=1, label="cls")
    assert [(d["x"], d["cls"]) for d in keyed([{"x": x, "cls": y} for x, y in data])] == first


@pytest.mark.parametrize("workers", [0, 2])
def test_in_a_pipeline(tmp_path, workers):
    write_shards([(picture(i), i % 6) for i in range(48)], tmp_path, samples_per_shard=12, progress=False)
    urls = [str(path) for path in sorted(tmp_path.glob("*.tar"))]
    stage = pickle.loads(pickle.dumps(GroupStage("1x2", buffer=16)))
    dataset = wds.WebDataset(urls, shardshuffle=False).to_tuple("jpg", "cls").map_tuple(len, int)
    dataset = dataset.compose(stage).batched(8, collation_fn=NSCollator("1x2"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves shards open
        batches = list(wds.WebLoader(dataset, batch_size=None, num_workers=workers))
    assert sum(len(batch.labels) for batch in batches) == 48
    labels = [batch.labels[batch.groups] for batch in batches]
    assert all((pair[:, 0] != pair[:, 1]).all() for pair in labels)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_traps_of_the_library(tmp_path):
    """If one of these fails, the library has changed and docs/shards.md must follow."""
    good, half = tar_bytes(members(0, 10)), tar_bytes(members(10, 10))
    (tmp_path / "a-0.tar").write_bytes(good)
    (tmp_path / "a-1.tar").write_bytes(half[: header_positions(half)["000015.jpg"]])
    urls = [str(tmp_path / f"a-{i}.tar") for i in (0, 1)]
    assert len(list(wds.WebDataset(urls, shardshuffle=False))) == 15  # five samples are gone without a word
    with pytest.raises(ShardError, match="it was cut between members"):
        index_shards(tmp_path)
    (tmp_path / "dots.tar").write_bytes(tar_bytes([("img.1.jpg", b"x"), ("img.2.jpg", b"y")]))
    assert [row["__key__"] for row in wds.WebDataset(str(tmp_path / "dots.tar"), shardshuffle=False)] == ["img"]
    shards = []
    for i in range(8):
        path = tmp_path / f"s-{i}.tar"
        path.write_bytes(tar_bytes([(f"{i}.txt", b"x")]))
        shards.append(str(path))
    dataset = wds.WebDataset(shards, shardshuffle=100)
    epochs = [[row["__key__"] for row in dataset] for _ in range(2)]
    assert epochs[0] == epochs[1]  # "shuffled", the same way in every epoch
