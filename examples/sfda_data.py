"""Domains of a source-free adaptation: their shards, their classes, the plan of an epoch and its loader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sfda_config import SfdaConfig
from torch import Tensor
from torch.utils.data import DataLoader

from ns_data import ClassStats, GroupingBatchSampler, Layout, NSCollator, ShardDataset, ShuffleSampler
from ns_data.augment import AUGMENTS, Fit, Stretch, normalize
from ns_data.choose import construct
from ns_data.shards.resident import ResidentLoader
from ns_data.shards.sources import prepare
from ns_data.training.loaders import is_resident

EVALUATIONS: dict[str, Callable[..., Any]] = {"fit": Fit, "stretch": Stretch}


def open_domain(config: SfdaConfig, domain: str, *, training: bool) -> ShardDataset:
    """All samples of a domain, whatever its splits, under the transform of training or of evaluation."""
    data = config.data
    if training:
        transform: Any = construct(AUGMENTS, data.augment, "augment", {"size": data.image_size, **data.augment_options})
    else:
        transform = construct(EVALUATIONS, data.evaluate, "evaluate", {"size": data.image_size, **data.evaluate_options})
    if data.path is None and data.source is None:
        raise ValueError("no data: set data.source or data.path")
    if data.path is None:
        folder = prepare(str(data.source), {**data.options, "domain": domain}, data.root)
    else:
        folder = Path(data.path) / domain
        if not (folder / "dataset.json").is_file():
            raise ValueError(
                f"there are no shards of domain {domain} in {folder}: write them, for Office-Home by "
                f"ns-data shards officehome path=FOLDER domain={domain} out={folder}"
            )
    return ShardDataset(folder, None, transform, seed=config.seed)


def classes_of(dataset: ShardDataset, domain: str) -> list[str]:
    """The class names of a domain; ``ValueError`` for a class without samples."""
    empty = ClassStats.from_labels(dataset.labels, len(dataset.classes)).empty_classes
    if empty.size:
        raise ValueError(
            f"domain {domain} has no sample of the class {dataset.classes[empty[0]]!r} ({empty.size} such classes): source and "
            "target need samples of the same classes, so leave it out of both"
        )
    return dataset.classes


def check_same_classes(source: list[str], target: list[str], config: SfdaConfig) -> None:
    """Refuse domains of different classes: SHOT's closed set."""
    for has, lacks, names in (
        (config.source, config.target, sorted(set(source) - set(target))),
        (config.target, config.source, sorted(set(target) - set(source))),
    ):
        if names:
            raise ValueError(
                f"domain {lacks} lacks the class {names[0]!r} that {has} has ({len(names)} such classes): source and target "
                "need the same classes, so leave it out of both"
            )
    if source != target:
        raise ValueError(f"{config.source} and {config.target} number their classes differently: write both from one list")


def make_plan(config: SfdaConfig, labels_N: Tensor) -> GroupingBatchSampler:
    """The batches of an epoch on its pseudo-labels: who competes with whom."""
    ns = config.ns
    return GroupingBatchSampler(
        ShuffleSampler(len(labels_N), seed=config.seed),
        config.batch_size,
        labels=labels_N,
        layout=Layout.parse(ns.layout, ns.order),
        grouping=ns.grouping,
        surplus=ns.surplus,
        seed=config.seed,
    )


def make_loader(config: SfdaConfig, dataset: Any, batches: Any, device: torch.device) -> Any:
    """Batches of a plan as ``GroupedBatch``, or of lists of ids as (images, labels, ids); from memory where that is set."""
    if is_resident(config.data, dataset):
        return ResidentLoader(dataset, batches, device=device)
    layout = getattr(batches, "layout", None)
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=None if layout is None else NSCollator(layout),
        num_workers=config.data.workers,
        pin_memory=device.type == "cuda",
        generator=torch.Generator().manual_seed(config.seed),  # leaves the generator that dropout uses alone
    )


def to_input(config: SfdaConfig, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Moves a batch of images to the device and normalises it."""
    return lambda images: normalize(images.to(device, non_blocking=True), config.data.mean, config.data.std)


def in_order(size: int, batch_size: int) -> list[list[int]]:
    """All ids once, in order, in batches."""
    return [list(range(first, min(first + batch_size, size))) for first in range(0, size, batch_size)]
