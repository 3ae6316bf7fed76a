import torch

from ns_data import GroupedBatch
from ns_data.training.loaders import parts_of


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
