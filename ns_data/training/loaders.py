"""Loaders of a run: the plan of its training batches, the loader that carries it out, and one for the test set."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import torch
from torch.utils.data import DataLoader

from ns_data.batching import GroupingBatchSampler
from ns_data.choose import construct
from ns_data.collate import GroupedBatch, NSCollator
from ns_data.layout import Layout
from ns_data.sampling import SAMPLINGS
from ns_data.shards.dataset import PartDataset, PlannedDataset, ShardDataset
from ns_data.shards.resident import ResidentLoader
from ns_data.training.config import Config, DataConfig
from ns_data.training.data import Data
from ns_data.training.distributed import World

RESIDENT_BYTES = 1 << 30


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
) -> tuple[Iterable[GroupedBatch], Iterable[Any]]:
    """(training batches of an epoch, batches of this process's share of the test set: images, labels and more)."""
    share = range(world.rank, len(data.test), world.size)
    test_batches = [list(share[i : i + config.eval_batch_size]) for i in range(0, len(share), config.eval_batch_size)]
    if is_resident(config.data, data.train):
        train_loader = ResidentLoader(data.train, batches, device=world.device)
        return train_loader, ResidentLoader(data.test, test_batches, device=world.device)
    options: dict[str, Any] = {
        "num_workers": config.data.workers,
        "pin_memory": world.device.type == "cuda",
        "generator": torch.Generator().manual_seed(config.seed),  # leaves the generator that dropout uses alone
    }
    train = DataLoader(data.train, batch_sampler=batches, collate_fn=NSCollator(batches.layout), **options)
    return train, DataLoader(data.test, batch_sampler=test_batches, **options)


def is_resident(config: DataConfig, dataset: PlannedDataset) -> bool:
    """Whether the images stay decoded in memory: as the config says, or for shards of at most ``RESIDENT_BYTES`` of pixels."""
    if config.resident is not None or config.image_size is None:
        return bool(config.resident)
    whole = dataset.whole if isinstance(dataset, PartDataset) else dataset
    fits = len(whole) * 3 * config.image_size**2 <= RESIDENT_BYTES
    return fits and isinstance(whole, ShardDataset) and hasattr(dataset.transform, "batch") and config.on_error == "raise"


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
    for part, (first, last) in enumerate(pairwise(cuts), 1):
        members = batch.groups[first:last].reshape(-1)
        if part == count:
            ungrouped = torch.ones(len(batch.labels), dtype=torch.bool, device=batch.labels.device)
            ungrouped[batch.groups.reshape(-1)] = False
            members = torch.cat([members, ungrouped.nonzero()[:, 0]])
        if members.numel():
            groups = torch.arange((last - first) * group_size, device=members.device).view(-1, group_size)
            ids = None if batch.ids is None else batch.ids[members]
            skipped = batch.skipped if not parts else torch.zeros_like(batch.skipped)
            parts.append(GroupedBatch(batch.images[members], batch.labels[members], ids, groups, skipped))
    return parts
