"""Loaders of a run: the plan of its training batches, the loader that carries it out, and one for the test set."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch.utils.data import DataLoader, Subset

from ns_data.batching import GroupingBatchSampler
from ns_data.choose import construct
from ns_data.collate import GroupedBatch, NSCollator
from ns_data.layout import Layout
from ns_data.sampling import SAMPLINGS
from ns_data.training.config import Config
from ns_data.training.data import Data
from ns_data.training.distributed import World


def make_batches(config: Config, data: Data, world: World) -> GroupingBatchSampler:
    """The plan: which samples an epoch holds, and who competes with whom."""
    if config.batch_size % world.size:
        raise ValueError(f"batch_size {config.batch_size} cannot be shared by {world.size} processes: choose a multiple")
    facts = {"labels": data.train.labels, "num_epochs": config.epochs, "seed": config.seed}
    return GroupingBatchSampler(
        construct(SAMPLINGS, config.sampling.name, "sampling", {**facts, **config.sampling.options}),
        config.batch_size // world.size,
        config.drop_last,
        labels=data.train.labels,
        layout=Layout.parse(config.ns.layout, config.ns.order),
        grouping=config.ns.grouping,
        surplus=config.ns.surplus,
        rank=world.rank,
        world_size=world.size,
        seed=config.seed,
    )


def make_loaders(
    config: Config, data: Data, batches: GroupingBatchSampler, world: World
) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """(training loader, loader of this process's share of the test set)."""
    options: dict[str, Any] = {
        "num_workers": config.data.workers,
        "pin_memory": world.device.type == "cuda",
        "generator": torch.Generator().manual_seed(config.seed),  # leaves the generator that dropout uses alone
    }
    train = DataLoader(data.train, batch_sampler=batches, collate_fn=NSCollator(batches.layout), **options)
    share = Subset(data.test, range(world.rank, len(data.test), world.size))
    return train, DataLoader(share, config.eval_batch_size, **options)


def first_batch(data: Data, batches: GroupingBatchSampler, epoch: int) -> GroupedBatch:
    """The first batch of an epoch, read without a loader."""
    batches.set_epoch(epoch)
    return NSCollator(batches.layout)(data.train.__getitems__(next(iter(batches))))


def parts_of(batch: GroupedBatch, count: int) -> list[GroupedBatch]:
    """Cut a batch into up to ``count`` parts of whole groups, in order; the last one takes the ungrouped samples."""
    if count == 1:
        return [batch]
    num_groups, group_size = batch.groups.shape
    cuts = [num_groups * part // count for part in range(count + 1)]
    parts: list[GroupedBatch] = []
    for first, last in pairwise(cuts):
        members = batch.groups[first:last].reshape(-1)
        if last == num_groups:
            ungrouped = torch.ones(len(batch.labels), dtype=torch.bool, device=batch.labels.device)
            ungrouped[batch.groups.reshape(-1)] = False
            members = torch.cat([members, ungrouped.nonzero()[:, 0]])
        if members.numel():
            groups = torch.arange((last - first) * group_size, device=members.device).view(-1, group_size)
            ids = None if batch.ids is None else batch.ids[members]
            skipped = batch.skipped if not parts else torch.zeros_like(batch.skipped)
            parts.append(GroupedBatch(batch.images[members], batch.labels[members], ids, groups, skipped))
    return parts
