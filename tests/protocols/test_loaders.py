"""torchdata's StatefulDataLoader and accelerate's sharding in one process, against the plan's own batches."""

import json
import warnings
from itertools import chain

import pytest
import torch
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler

from ns_data import ClassBalancedSampler, GroupingBatchSampler, NSCollator, ShuffleSampler
from tests.protocols.jobs.common import LABELS, OPTIONS, Ids

stateful = pytest.importorskip("torchdata.stateful_dataloader")
accelerate = pytest.importorskip("accelerate.data_loader")

BASES = {
    "shuffle": lambda: ShuffleSampler(LABELS, seed=1),
    "cbs": lambda: ClassBalancedSampler(LABELS, seed=1, num_samples=40_000),
}


def make(base="shuffle", **options):
    return GroupingBatchSampler(BASES[base](), options.pop("batch_size", 16), **{**OPTIONS, **options})


def planned(epoch, base="shuffle", **options):
    sampler = make(base, **options)
    sampler.set_epoch(epoch)
    return [list(batch) for batch in sampler]


def loader_of(sampler, num_workers):
    return stateful.StatefulDataLoader(
        Ids(), batch_sampler=sampler, num_workers=num_workers, collate_fn=lambda samples: [i for _, _, i in samples]
    )


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(("base", "batch_size", "done"), [("shuffle", 16, 4), ("shuffle", 16, 0), ("cbs", 2000, 9)])
def test_stateful_loader_goes_on_in_the_middle_of_an_epoch(num_workers, base, batch_size, done):
    sampler = make(base, batch_size=batch_size)
    loader = loader_of(sampler, num_workers)
    sampler.set_epoch(3)
    batches = iter(loader)
    for _ in range(done):
        next(batches)
    state = json.loads(json.dumps(loader.state_dict(), default=str)) if num_workers == 0 else loader.state_dict()
    del batches
    resumed = loader_of(make(base, batch_size=batch_size), num_workers)
    resumed.load_state_dict(state)
    expected = planned(3, base, batch_size=batch_size)
    assert list(resumed) == expected[done:]
    resumed.batch_sampler.set_epoch(4)
    assert list(resumed) == planned(4, base, batch_size=batch_size)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_stateful_loader_begins_the_next_epoch_after_a_finished_one(num_workers):
    sampler = make()
    loader = loader_of(sampler, num_workers)
    assert list(loader) == planned(0)
    resumed = loader_of(make(), num_workers)
    resumed.load_state_dict(loader.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # the loader makes its iterator anew, which is no forgotten set_epoch
        warnings.filterwarnings("ignore", ".*set_vital")
        assert list(resumed) == planned(1)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("world", [2, 3])
def test_accelerate_shares_the_batches_out(split, drop_last, world):
    """Ranks together hold the plan's batches; ``even_batches`` adds samples of the epoch's start until all are equal."""
    options = {"drop_last": drop_last, "batch_size": 8 * world}
    ranks = []
    for rank in range(world):
        loader = DataLoader(Ids(), batch_sampler=make(**options), collate_fn=lambda samples: [i for _, _, i in samples])
        prepared = accelerate.prepare_data_loader(
            loader, num_processes=world, process_index=rank, split_batches=split, even_batches=True
        )
        prepared.set_epoch(2)
        ranks.append(list(prepared.batch_sampler))
    assert len({len(batches) for batches in ranks}) == 1
    batches = planned(2, **options)
    rounds = list(zip(*ranks, strict=True))
    whole = [list(chain(*parts)) for parts in rounds] if split else list(chain(*rounds))
    for batch, expected in zip(whole, batches, strict=False):
        assert batch[: len(expected)] == expected
    if drop_last:
        assert len(whole) == (len(batches) if split else len(batches) // world * world)
    else:
        assert set(chain(*whole)) == set(range(len(LABELS)))
        assert {len(batch) for parts in rounds for batch in parts} == {8 if split else 8 * world}
    assert planned(2, **options) == batches  # what accelerate did to our lists stays there


def test_accelerate_replaces_a_random_sampler_inside():
    sampler = GroupingBatchSampler(RandomSampler(LABELS), 16, **OPTIONS)
    loader = DataLoader(Ids(), batch_sampler=sampler, collate_fn=NSCollator("2x2"))
    prepared = accelerate.prepare_data_loader(loader, num_processes=1, process_index=0, use_seedable_sampler=True)
    assert type(sampler.sampler).__name__ == "SeedableRandomSampler"
    assert sorted(chain(*(batch.ids.tolist() for batch in prepared))) == list(range(len(LABELS)))


def test_a_batch_as_lightning_finds_it():
    """The words by which Lightning makes a batch sampler anew: positional sampler, batch size and drop_last by keyword."""
    sampler = make(drop_last=True)
    assert isinstance(sampler, torch.utils.data.BatchSampler)
    assert (sampler.batch_size, sampler.drop_last) == (16, True)
    again = type(sampler)(SequentialSampler(LABELS), batch_size=16, drop_last=True, **OPTIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sum(map(len, again)) == 160
    with pytest.raises(TypeError, match="'labels' and 'layout'"):
        type(sampler)(SequentialSampler(LABELS), batch_size=16, drop_last=True)
