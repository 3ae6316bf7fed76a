"""Plans that follow shards: every sample once, whole lanes for each rank, windows over several shards at once."""

import numpy as np
import pytest

from ns_data.batching import GroupingBatchSampler
from ns_data.locality import Locality
from ns_data.sampling import ClassBalancedSampler, ProgressivelyBalancedSampler, ShuffleSampler, SquareRootSampler

N = 1003
SIZES = [140] * 7 + [23]
LABELS = np.random.default_rng(0).integers(0, 9, N)
SAMPLERS = {
    "shuffle": lambda: ShuffleSampler(N),
    "cbs": lambda: ClassBalancedSampler(LABELS),
    "srs": lambda: SquareRootSampler(LABELS),
    "pbs": lambda: ProgressivelyBalancedSampler(LABELS, num_epochs=5),
}


def batches(name="shuffle", *, batch_size=32, lanes=4, window=64, layout="2x2", rank=0, world_size=1, epoch=1, **options):
    sampler = SAMPLERS[name]().local(SIZES, lanes, window=window)
    grouping = GroupingBatchSampler(
        sampler, batch_size // world_size, labels=LABELS, layout=layout, rank=rank, world_size=world_size, **options
    )
    grouping.set_epoch(epoch)
    return grouping


@pytest.mark.parametrize(("batch_size", "lanes", "layout"), [(32, 4, "2x2"), (24, 4, "1x3"), (16, 1, "2x2"), (64, 8, "1x2")])
def test_an_epoch_holds_every_sample_once(batch_size, lanes, layout):
    sampler = batches(batch_size=batch_size, lanes=lanes, layout=layout, grouping="class_mixed")
    made = list(sampler)
    assert sorted(i for batch in made for i in batch) == list(range(N))
    assert len(made) == len(sampler) == -(-N // batch_size)
    assert sampler.report.samples == N
    m = sampler.layout.group_size
    groups = np.array([batch[g : g + m] for batch in made[:-1] for g in range(0, len(batch), m)])
    repeated = sum(len(set(LABELS[group])) < m for group in groups)
    assert repeated <= sampler.report.relaxed <= 3  # what is left over at the end may have few classes


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_ids_are_those_of_the_sampler(name):
    sampler = SAMPLERS[name]()
    made = [i for batch in batches(name) for i in batch]
    assert sorted(made) == sorted(sampler.epoch_ids(1).tolist())
    if name == "cbs":  # repeats are spread: the two halves of the epoch have the same law
        halves = [np.bincount(LABELS[made[start : start + 500]], minlength=9) / 500 for start in (0, 500)]
        assert np.abs(halves[0] - halves[1]).max() < 0.1


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_execute_whole_lanes_and_give_the_same_batches(world_size):
    whole = list(batches())
    parts = [list(batches(rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert len({len(part) for part in parts}) == 1
    for number in range(31):
        assert [i for part in parts for i in part[number]] == whole[number]
        assert {len(part[number]) for part in parts} == {32 // world_size}


def test_windows_take_from_four_shards_at_once_and_read_forward():
    locality = Locality(tuple([1000] * 16), lanes=2, window=256)
    tables, tail = locality.windows(np.random.default_rng(1).permutation(16_000), [0, 0])
    tables = list(tables)
    assert tail.size == 0
    assert all(table.shape[0] == 2 and table.shape[1] <= 256 for table in tables)
    ids = np.concatenate(tables, axis=1)
    assert sorted(ids.reshape(-1).tolist()) == list(range(16_000))
    for lane in ids:
        for start in range(0, 7936, 256):
            assert 4 <= len(np.unique(lane[start : start + 256] // 1000)) <= 8
        for shard in np.unique(lane // 1000):
            mine = lane[lane // 1000 == shard]
            assert (np.diff(mine) > 0).all()  # front to back
    other = next(locality.windows(np.arange(16_000), [0, 1])[0])
    assert not np.array_equal(other, tables[0])


def test_the_arrangement_is_a_function_of_ids_seed_and_epoch():
    assert list(batches(epoch=3)) == list(batches(epoch=3))
    assert list(batches(epoch=3)) != list(batches(epoch=4))
    state = batches(epoch=3).state_dict(batches_done=5)
    resumed = batches()
    resumed.load_state_dict(state)
    assert list(resumed) == list(batches(epoch=3))[5:]
    for other in (batches(lanes=2), batches(window=32)):
        with pytest.raises(ValueError, match=r"another data set or setting: (lanes|window)"):
            other.load_state_dict(state)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="3 lanes do not divide the global batch of 32"):
        batches(lanes=3)
    with pytest.raises(ValueError, match="4 lanes do not divide"):
        batches(batch_size=24, layout="1x8", lanes=4)
    with pytest.raises(ValueError, match="surplus='drop' would drop another number"):
        batches(surplus="drop")
    with pytest.raises(ValueError, match="the shards hold 3 samples, but the sampler draws from 5"):
        ShuffleSampler(5, shards=[1, 2])
    with pytest.raises(ValueError, match="lanes need shards"):
        ShuffleSampler(5, lanes=2)
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        ShuffleSampler(5).local([5], 1, window=0)
    with pytest.raises(ValueError, match="number of samples of each shard"):
        ShuffleSampler(5, shards=[5, 0])
    assert ShuffleSampler(5, shards=[2, 3], lanes=2).locality.lanes == 2
