from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from ns_data import GroupedBatch, NSCollator
from ns_data.shards.dataset import PlannedDataset
from ns_data.shards.resident import ResidentLoader
from ns_data.training.config import Config
from ns_data.training.data import load_data
from ns_data.training.distributed import World
from ns_data.training.loaders import make_batches, make_loaders, parts_of

ALONE = World(0, 1, torch.device("cpu"))


def test_held_out_parts_stay_in_memory_and_give_the_batches_of_a_plain_loader(tmp_path):
    config = Config(batch_size=32)
    config.data.root, config.data.image_size, config.data.holdout = str(tmp_path), 8, 0.3
    config.data.augment, config.data.augment_options = "crop_flip", {"padding": 1}
    data = load_data(config.data, seed=0)
    batches = make_batches(config, data, ALONE)
    batches.set_epoch(1)
    train, test = make_loaders(config, data, batches, ALONE)
    assert isinstance(train, ResidentLoader)
    plain = DataLoader(data.train, batch_sampler=batches, collate_fn=NSCollator(batches.layout))
    for ours, theirs in zip(train, plain, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(ours, theirs, strict=True))
    images = torch.cat([batch.images for batch in test])
    assert torch.equal(images, torch.stack([data.test[i][0] for i in range(len(data.test))]))


def test_parts_hold_whole_groups_and_everybody_once():
    images = torch.arange(14.0).view(14, 1, 1, 1)
    groups = torch.tensor([[3, 1], [0, 2], [5, 4], [8, 9], [13, 12]])  # 6, 7, 10 and 11 are ungrouped
    batch = GroupedBatch(images, torch.arange(14), torch.arange(100, 114), groups, torch.tensor(2))
    parts = parts_of(batch, 3)
    assert len(parts) == 3
    rebuilt = [row for part in parts for row in part.labels[part.groups].tolist()]
    assert rebuilt == groups.tolist()
    everybody = torch.cat([part.labels for part in parts])
    assert sorted(everybody.tolist()) == list(range(14))
    for part in parts:
        assert torch.equal(part.images.reshape(-1).long(), part.labels)
        assert torch.equal(part.ids, part.labels + 100)
    assert parts[-1].labels[-4:].tolist() == [6, 7, 10, 11]
    assert sum(int(part.skipped) for part in parts) == 2
    assert parts_of(batch, 1) == [batch]
    assert len(parts_of(batch, 99)) == 5


def test_a_batch_without_groups_is_one_part():
    groups = torch.empty((0, 4), dtype=torch.int64)
    batch = GroupedBatch(torch.zeros(3, 1, 1, 1), torch.arange(3), None, groups, torch.tensor(0))
    (part,) = parts_of(batch, 2)
    assert part.labels.tolist() == [0, 1, 2]
    assert part.groups.shape == (0, 4)


class Numbers(PlannedDataset):
    """Sample i is the number i."""

    def __init__(self, count):
        super().__init__(None)
        self.labels = np.arange(count) % 3

    def read(self, index):
        return torch.tensor([index])


@pytest.mark.parametrize("samples", [1, 5, 64, 101])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
def test_every_test_sample_is_evaluated_once_by_any_number_of_processes(samples, size):
    config = Config(batch_size=96, eval_batch_size=10)
    data = SimpleNamespace(train=Numbers(96), test=Numbers(samples))
    seen = []
    for rank in range(size):
        world = World(rank, size, torch.device("cpu"))
        _, test_loader = make_loaders(config, data, make_batches(config, data, world), world)
        batches = [ids.tolist() for _, _, ids in test_loader]
        assert all(1 <= len(ids) <= 10 for ids in batches)
        seen += [i for ids in batches for i in ids]
    assert sorted(seen) == list(range(samples))
