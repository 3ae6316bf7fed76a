import pickle
import warnings
from collections import Counter
from itertools import chain

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
