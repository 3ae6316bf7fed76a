import pickle
import subprocess
import sys
import tracemalloc
import warnings
from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset, DistributedSampler, RandomSampler, SequentialSampler

from ns_data import (
    GROUPINGS,
    ClassBalancedSampler,
    GroupingBatchSampler,
    NSCollator,
    PlannedBatch,
    ProgressivelyBalancedSampler,
    ShuffleSampler,
    SquareRootSampler,
    rivals,
)

LABELS = np.random.default_rng(0).integers(0, 10, 203)


def make(sampler=None, batch_size=16, drop_last=False, *, labels=LABELS, layout="2x2", **options):
    sampler = ShuffleSampler(labels, seed=3) if sampler is None else sampler
    return GroupingBatchSampler(sampler, batch_size, drop_last, labels=labels, layout=layout, **options)


@settings(max_examples=60, deadline=None)
@given(
    num=st.integers(1, 300),
    layout=st.sampled_from(["1x2", "2x2", "3x3", "1x1"]),
    groups=st.integers(1, 5),
    world=st.sampled_from([1, 2, 3, 4]),
    grouping=st.sampled_from(sorted(GROUPINGS)),
    drop_last=st.booleans(),
)
def test_every_sample_once_and_ranks_share_the_single_process_batches(num, layout, groups, world, grouping, drop_last):
    labels = np.random.default_rng(num).integers(0, 7, num)
    m = make(labels=labels, layout=layout, batch_size=100 * 9 * 4).layout.group_size
    options = {"labels": labels, "layout": layout, "grouping": grouping, "drop_last": drop_last}
    single = make(batch_size=m * groups * world, **options)
    batches = [list(batch) for batch in single]
    ranks = [make(batch_size=m * groups, rank=rank, world_size=world, **options) for rank in range(world)]
    slices = [[list(batch) for batch in sampler] for sampler in ranks]
    lengths = {len(of_rank) for of_rank in slices}
    assert lengths == {len(ranks[0])}
    for number, parts in enumerate(zip(*slices, strict=True)):
        assert list(chain(*parts)) == batches[number]
        assert all(len(part) % m == 0 for part in parts[:-1])
    seen = Counter(i for batch in batches for i in batch)
    assert set(seen.values()) <= {1}
    report = single.report
    assert len(seen) == report.samples
    assert report.samples + report.dropped == num
    assert report.ungrouped < m
    if not drop_last:
        assert report.dropped == 0
        if len(slices[0]) < len(batches):  # the only batch that ranks may leave out: fewer groups than ranks
            assert len(batches) - len(slices[0]) <= 1
            assert len(batches[-1]) // m < world
            assert ranks[0].report.dropped == len(batches[-1])


@pytest.mark.parametrize("grouping", sorted(GROUPINGS))
def test_groups_stand_in_rows_of_the_batch(grouping):
    sampler = make(grouping=grouping, batch_size=16)
    rows = np.array([batch for batch in sampler if len(batch) == 16]).reshape(-1, 4)
    labels = LABELS[rows]
    ties = np.array([len(set(row)) < 4 for row in labels])
    if grouping == "class_mixed":
        assert not ties.any()
        assert sampler.report.relaxed == 0
    if grouping == "same_class":
        assert np.mean([len(set(row)) == 1 for row in labels]) > 0.8
        assert sampler.report.relaxed > 0


def test_drop_leaves_out_what_the_rule_cannot_place_and_counts_it():
    labels = np.repeat([0, 1, 2, 3], [100, 10, 10, 10])  # at most 10 groups of 4 different classes
    sampler = make(labels=labels, grouping="class_mixed", surplus="drop", batch_size=8)
    batches = list(sampler)
    assert sum(map(len, batches)) == 40
    assert len(sampler) == len(batches) == 5
    assert sampler.report.dropped == 90


def test_relax_counts_the_repeats():
    labels = np.repeat([0, 1, 2, 3], [40, 10, 10, 10])
    sampler = make(labels=labels, grouping="class_mixed", batch_size=8)
    batches = list(sampler)
    assert sum(map(len, batches)) == 70
    assert sampler.report.relaxed == 40 - 17 - 2  # 17 groups; the two ungrouped samples are of the large class too
    assert sampler.report.ungrouped == 2
    assert labels[batches[-1][-2:]].tolist() == [0, 0]


SAMPLERS = {
    "shuffle": lambda: ShuffleSampler(LABELS),
    "cbs": lambda: ClassBalancedSampler(LABELS, num_samples=40_000),
    "srs": lambda: SquareRootSampler(LABELS),
    "pbs": lambda: ProgressivelyBalancedSampler(LABELS, num_epochs=3),
}


@pytest.mark.parametrize("kind", SAMPLERS)
@pytest.mark.parametrize("done", [0, 1, 7])
def test_resume_goes_on_with_the_same_batches(kind, done):
    sampler = make(SAMPLERS[kind](), grouping="class_mixed")
    sampler.set_epoch(1)
    undisturbed = list(sampler)
    sampler = make(SAMPLERS[kind](), grouping="class_mixed")
    sampler.set_epoch(1)
    batches = iter(sampler)
    for _ in range(done):
        next(batches)
    state = sampler.state_dict()
    resumed = make(SAMPLERS[kind](), grouping="class_mixed")
    resumed.load_state_dict(pickle.loads(pickle.dumps(state)))
    assert list(resumed) == undisturbed[done:]
    resumed.set_epoch(2)
    assert len(list(resumed)) == len(resumed) == len(undisturbed)


def test_state_is_small_and_does_not_grow_with_the_data():
    large = make(labels=np.zeros(100_000, int))
    assert len(pickle.dumps(large.state_dict())) < 1000
    state = large.state_dict()
    state["settings"]["seed"] = 99
    assert large.state_dict()["settings"]["seed"] == 0  # a copy


def test_end_of_epoch_state_means_the_start_of_the_next():
    sampler = make()
    num_batches = len(list(sampler))
    assert sampler.state_dict()["epoch"] == 1
    assert sampler.state_dict()["batches"] == 0
    assert sampler.state_dict(batches_done=num_batches - 1)["batches"] == num_batches - 1
    other = make()
    other.load_state_dict(sampler.state_dict())
    assert other.epoch == 1
    assert len(list(other)) == num_batches


def test_a_state_continues_under_another_world_size_with_the_same_global_batch():
    state = make(batch_size=16).state_dict(batches_done=2)
    ranks = [make(batch_size=8, rank=rank, world_size=2) for rank in (0, 1)]
    for sampler in ranks:
        sampler.load_state_dict(state)
    expected = list(make(batch_size=16))[2:]
    assert [a + b for a, b in zip(*ranks, strict=True)] == [list(batch) for batch in expected[: len(ranks[0]) - 2]]


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"labels": np.roll(LABELS, 1)}, "labels"),
        ({"batch_size": 32}, "global_batch_size"),
        ({"grouping": "class_mixed"}, "grouping"),
        ({"seed": 5}, "seed"),
        ({"layout": "1x2"}, "group_size"),
        ({"sampler": ShuffleSampler(LABELS, seed=4)}, "sampler_seed"),
    ],
)
def test_the_state_of_another_run_is_refused_naming_what_differs(other, named):
    with pytest.raises(ValueError, match=f"another data set or setting: .*{named}"):
        make(**other).load_state_dict(make().state_dict())


def test_a_foreign_state_is_refused():
    with pytest.raises(ValueError, match="not the state of a plan"):
        make().load_state_dict({"yielded": 3})


class Draws(Dataset):
    """Gives back the slots that it was asked for."""

    def __len__(self):
        return len(LABELS)

    def __getitems__(self, batch):
        assert isinstance(batch, PlannedBatch)
        return [(torch.zeros(1), 0, (i, batch.epoch, batch.number, batch.offset + j)) for j, i in enumerate(batch)]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_place_in_the_plan_reaches_the_dataset(num_workers):
    sampler = make(rank=1, world_size=2, batch_size=8)
    sampler.set_epoch(4)
    loader = DataLoader(Draws(), batch_sampler=sampler, num_workers=num_workers, collate_fn=lambda samples: samples)
    for number, samples in enumerate(loader):
        slots = [slot for _, _, (_, *slot) in samples]
        first = 8 if len(samples) == 8 else slots[0][2]
        assert slots == [[4, number, first + j] for j in range(len(samples))]


def test_slices_of_a_planned_batch_keep_their_place():
    batch = PlannedBatch([7, 8, 9, 10], epoch=1, number=2, offset=4)
    half = batch[2:]
    assert half == [9, 10]
    assert (half.epoch, half.number, half.offset) == (1, 2, 6)
    assert type(batch[::2]) is list
    copy = pickle.loads(pickle.dumps(batch))
    assert copy == batch
    assert (copy.epoch, copy.number, copy.offset) == (1, 2, 4)


def test_lists_are_fresh():
    sampler = make()
    kept = list(sampler)
    first = list(kept[0])
    kept[0] += [0, 1, 2]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert list(next(iter(sampler))) == first


@pytest.mark.parametrize("base", [SequentialSampler(LABELS), RandomSampler(LABELS), DistributedSampler(LABELS, 2, 0)])
def test_any_other_sampler_is_consumed_in_windows(base):
    sampler = make(base, grouping="class_mixed", batch_size=8)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    assert sum(map(len, batches)) == len(base)
    if not isinstance(base, DistributedSampler):
        assert sorted(chain(*batches)) == list(range(len(LABELS)))


def test_the_epoch_travels_through_the_sampler():
    sampler, other = make(), make()
    sampler.sampler.set_epoch(5)
    other.set_epoch(5)
    assert list(sampler) == list(other)


def test_a_forgotten_set_epoch_warns_once():
    sampler = make()
    list(sampler)
    with pytest.warns(UserWarning, match="call set_epoch"):
        list(sampler)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(sampler)
        sampler.set_epoch(1)
        list(sampler)


def test_a_loader_with_workers_asks_twice_and_is_not_warned():
    loader = DataLoader(LABELS, batch_sampler=make(), num_workers=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(loader)) == len(loader)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 2}, "batch_size 2 cannot hold one group of layout 2x2"),
        ({"batch_size": 10}, "batch_size 10 is not a multiple of the group size 4 .* use 8 or 12"),
        ({"batch_size": 10, "drop_last": True}, "not a multiple of the group size"),
        ({"rank": 2, "world_size": 2}, "rank 2 is not in a world of 2"),
        ({"surplus": "relaxed"}, "'relax' or 'drop', got 'relaxed'"),
        ({"grouping": "class_mix"}, "did you mean 'class_mixed'"),
        ({"layout": "2by2"}, "'RxC'"),
        ({"sampler": DistributedSampler(LABELS, 2, 0), "world_size": 2}, "one rank's share already"),
        ({"sampler": ShuffleSampler(10)}, "draws from 10 samples, but there are 203 labels"),
        ({"sampler": ClassBalancedSampler(LABELS), "surplus": "drop"}, "needs a ShuffleSampler, got ClassBalancedSampler"),
        ({"labels": [0, 1] * 20, "surplus": "drop", "grouping": "class_mixed"}, "4 different classes from 2 classes"),
        ({"labels": [0.5] * 10}, "integer class ids"),
        ({"window": 3}, "window 3 cannot hold one group of 4"),
    ],
)
def test_bad_settings_are_refused_in_one_sentence(options, message):
    with pytest.raises(ValueError, match=message) as error:
        make(**options)
    assert "\n" not in str(error.value)


def test_labels_and_layout_are_required_keywords():
    with pytest.raises(TypeError):
        GroupingBatchSampler(ShuffleSampler(8), 4, False)


def test_collator_puts_groups_in_place():
    samples = [(torch.full((1, 2, 2), float(i)), i % 3, i) for i in range(10)]
    batch = NSCollator("2x2")(samples)
    assert batch.groups.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert batch.ids.tolist() == list(range(10))
    assert batch.labels.tolist() == [i % 3 for i in range(10)]
    assert batch.skipped == 0
    assert NSCollator("2x2")([sample[:2] for sample in samples]).ids is None
    assert NSCollator("2x2")(samples[:3]).groups.shape == (0, 4)


def test_collator_dissolves_the_group_of_a_skipped_sample():
    samples = [(torch.full((1,), float(i)), 0, i) for i in range(12)]
    samples[5] = None
    batch = NSCollator("2x2")(samples)
    assert batch.skipped == 1
    assert len(batch.images) == 11
    assert batch.ids[batch.groups].tolist() == [[0, 1, 2, 3], [8, 9, 10, 11]]
    with pytest.raises(ValueError, match="all 2 samples"):
        NSCollator("1x2")([None, None])


def test_collator_uses_the_given_collate_fn_and_batches_move():
    def doubled(samples):
        images, labels = torch.utils.data.default_collate(samples)
        return images * 2, labels

    batch = NSCollator("1x2", doubled)([(torch.ones(1), 0), (torch.ones(1), 1)])
    assert batch.images.tolist() == [[2.0], [2.0]]
    moved = batch.to("meta")
    assert moved.images.device.type == "meta"
    assert moved.ids is None


class Stream:
    """A user's sampler without a length that counts what was taken from it."""

    def __init__(self, ids):
        self.ids, self.taken = ids, 0

    def __iter__(self):
        for i in self.ids:
            self.taken += 1
            yield i


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(lambda counts: sum(counts) > 0),
    m=st.integers(1, 4),
    groups=st.integers(1, 4),
    window=st.integers(4, 60),
    world=st.integers(1, 3),
    grouping=st.sampled_from(sorted(GROUPINGS)),
    seed=st.integers(0, 99),
)
def test_windows_of_any_sampler_hold_everybody_once(counts, m, groups, window, world, grouping, seed):
    labels = np.repeat(np.arange(len(counts)), counts)
    order = np.random.default_rng(seed).permutation(labels.size).tolist()
    options = {"labels": labels, "layout": f"1x{m}", "grouping": grouping, "window": window}
    single = make(Stream(order), m * groups * world, **options)
    batches = [list(batch) for batch in single]
    assert sorted(chain(*batches)) == list(range(labels.size))
    assert all(len(batch) == m * groups * world for batch in batches[:-1])
    assert single.report.ungrouped < m
    assert single.report.share_seen == 1
    ranks = [make(Stream(order), m * groups, rank=r, world_size=world, **options) for r in range(world)]
    for number, parts in enumerate(zip(*ranks, strict=True)):
        assert list(chain(*parts)) == batches[number]


def test_a_sampler_of_somebody_else_is_read_lazily():
    stream = Stream(iter(np.random.default_rng(0).integers(0, len(LABELS), 10_000).tolist()))
    batches = iter(make(stream, window=100, grouping="class_mixed"))
    assert len(next(batches)) == 16
    assert stream.taken <= 200  # one window, and the next one fetched ahead


def test_groups_that_no_window_could_hold_form_across_windows():
    """Runs of 30 of a class: a window of 64 ends in the middle of one, and what it leaves over finds its own in the next."""
    labels = np.repeat(np.tile(np.arange(8), 4), 30)
    sampler = make(SequentialSampler(labels), 32, labels=labels, layout="1x4", grouping="same_class", window=64)
    rows = np.array(list(sampler)).reshape(-1, 4)
    assert all(len(set(row)) == 1 for row in labels[rows].tolist())
    assert sampler.report.relaxed == 0


class Rotating:
    """A user's sampler that hands over whole epochs."""

    epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def epoch_ids(self, epoch):
        return np.roll(np.arange(len(LABELS)), epoch)

    def __iter__(self):
        raise AssertionError("epoch_ids spares the Python integers")

    def __len__(self):
        return len(LABELS)


def test_a_sampler_with_epoch_ids_hands_over_whole_epochs():
    sampler = make(Rotating(), grouping="class_mixed")
    sampler.set_epoch(2)
    state = sampler.state_dict(batches_done=5)
    batches = list(sampler)
    assert sorted(chain(*batches)) == list(range(len(LABELS)))
    resumed = make(Rotating(), grouping="class_mixed")
    resumed.load_state_dict(state)
    assert list(resumed) == batches[5:]


def test_both_seeds_change_the_batches_of_a_shuffled_epoch():
    def first(seed, sampler_seed):
        return next(iter(make(ShuffleSampler(LABELS, seed=sampler_seed), seed=seed)))

    assert len({tuple(first(*seeds)) for seeds in [(0, 0), (0, 1), (1, 0), (1, 1)]}) == 4


def test_the_report_knows_the_share_of_the_data_seen_and_the_empty_classes():
    sampler = make(ClassBalancedSampler([0, 3, 3, 3], num_samples=400), 8, labels=[0, 3, 3, 3])
    list(sampler)
    assert (sampler.report.share_seen, sampler.report.empty_classes) == (1.0, 2)
    few = make(ClassBalancedSampler(LABELS, num_samples=64), 16)
    ids = set(chain(*few))
    assert few.report.share_seen == len(ids) / len(LABELS)


def test_other_strengths_are_another_setting():
    strength = np.arange(len(LABELS), dtype=float)
    state = make(grouping=rivals(strength, 0.1)).state_dict()
    make(grouping=rivals(strength.copy(), 0.1)).load_state_dict(state)
    for other in (rivals(strength + 1, 0.1), rivals(strength, 0.2), rivals(None, 0.1)):
        with pytest.raises(ValueError, match="another data set or setting: grouping"):
            make(grouping=other).load_state_dict(state)


@pytest.mark.parametrize("grouping", ["class_mixed", "random"])
def test_an_epoch_holds_twelve_bytes_a_sample_and_needs_sixteen(grouping):
    """Measured on the allocations themselves: a Python list of all ids would add 8 bytes a sample and 32 for its integers."""
    num = 1_500_000
    labels = (np.arange(num) * 7919 % 1000).astype(np.int16)
    tracemalloc.start()
    try:
        batches = iter(make(ShuffleSampler(num), 256, labels=labels, grouping=grouping))
        next(batches)
        assert tracemalloc.get_traced_memory()[0] / num < 12
        assert tracemalloc.get_traced_memory()[1] / num < 16
    finally:
        tracemalloc.stop()


WORKER_MEMORY = """
from pathlib import Path
import numpy as np
from torch.utils.data import DataLoader, Dataset
from ns_data import GroupingBatchSampler, ShuffleSampler

class Memory(Dataset):
    # Tells how many bytes the process that fetches has for itself alone.
    def __init__(self, sampler):
        self.sampler = sampler
    def __getitem__(self, i):
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")) * 1024

labels = (np.arange(1_281_167) % 1000).astype(np.int16)
sampler = GroupingBatchSampler(ShuffleSampler(labels.size), 4, labels=labels, layout="2x2", grouping="class_mixed")
loader = DataLoader(Memory(sampler), batch_sampler=sampler, num_workers=1, multiprocessing_context="fork")
memory = [int(batch[-1]) for batch, _ in zip(loader, range(40))]
print(memory[-1] - memory[2])
"""


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's account of private memory")
def test_forked_workers_do_not_grow():
    """In a process of its own: what else the tests have loaded would be copied when a worker touches it."""
    result = subprocess.run([sys.executable, "-c", WORKER_MEMORY], capture_output=True, text=True, check=True)
    assert int(result.stdout) < 2 << 20
