from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ns_data import GroupedBatch
from ns_data.shards.dataset import PlannedDataset
from ns_data.training.config import Config
from ns_data.training.distributed import World
from ns_data.training.loaders import make_batches, make_loaders, parts_of


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
