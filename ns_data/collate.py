"""NSCollator: samples in the order of the plan become a GroupedBatch, which says who competes with whom."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import default_collate

from ns_data.layout import Layout


class GroupedBatch(NamedTuple):
    """A batch and its groups. DataLoader pins it and ``to`` moves it, like any tuple of tensors."""

    images: Tensor  # B C H W
    labels: Tensor  # B
    ids: Tensor | None  # B; None if the data set gives none
    groups: Tensor  # G M: row g lists the positions of group g's members in the batch, in cell order
    skipped: Tensor  # scalar: samples that could not be read and are missing here

    def to(self, device: torch.device | str, non_blocking: bool = False) -> GroupedBatch:
        """All tensors on ``device``."""
        moved = {name: t.to(device, non_blocking=non_blocking) for name, t in self._asdict().items() if t is not None}
        return self._replace(**moved)


class NSCollator:
    """Collate ``(image, label)`` or ``(image, label, id)`` samples and attach the groups: M samples in a row each.

    A sample that is ``None`` was skipped by the data set: its group is dissolved and its fellow members stay ungrouped,
    as do the last samples of a batch that is not a multiple of M. ``collate_fn`` (default: torch's) joins the samples.
    """

    def __init__(self, layout: Layout | str, collate_fn: Callable[[list[Any]], Sequence[Any]] | None = None) -> None:
        self.layout = Layout.parse(layout)
        self.collate_fn = default_collate if collate_fn is None else collate_fn

    def __call__(self, samples: Sequence[Any]) -> GroupedBatch:
        present = torch.tensor([sample is not None for sample in samples])
        if not present.any():
            raise ValueError(f"all {len(samples)} samples of a batch were skipped: nothing is left to train on")
        images, labels, *ids = self.collate_fn([sample for sample in samples if sample is not None])
        group_size = self.layout.group_size
        num_groups = len(samples) // group_size
        slots = torch.arange(num_groups * group_size).view(num_groups, group_size)
        position = torch.cumsum(present, 0) - 1  # of each slot among the present ones
        groups = position[slots[present[slots].all(dim=1)]]
        return GroupedBatch(images, labels, ids[0] if ids else None, groups, (~present).sum())
