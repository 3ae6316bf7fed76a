"""Resident: a set of small images decoded once into one uint8 tensor, and a loader that cuts whole batches from it.

The same samples, groups and pixels as ``DataLoader(dataset, batch_sampler=..., collate_fn=NSCollator(...))``, without any
Python per sample: for sets that fit in memory, such as CIFAR and the digits.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ns_data.augment import draw_keys, uniforms
from ns_data.batching import PlannedBatch
from ns_data.collate import GroupedBatch
from ns_data.layout import Layout
from ns_data.shards.dataset import PartDataset, PlannedDataset, ShardDataset
from ns_data.shards.tar import ShardError

_CACHE = "resident"


class ResidentLoader:
    """Batches of a resident data set, in the order of a batch sampler.

    Args:
        dataset: its transform must offer ``prepare`` and ``batch`` ("none" and "crop_flip" of ``ns_data.augment`` do).
        batch_sampler: a ``GroupingBatchSampler``, or any iterable of lists of ids (their draws use torch's generator).
        layout: the groups to mark; by default the batch sampler's, or none.
        device: where the images are kept and the batches are made.
        cache: keep the decoded images of a ``ShardDataset`` beside its shards and map them into memory.

    Images come as uint8, as from the dataset; normalise on the device. Raises ``ValueError`` for another transform.
    """

    def __init__(
        self,
        dataset: PlannedDataset,
        batch_sampler: Iterable[list[int]],
        *,
        layout: Layout | str | None = None,
        device: torch.device | str = "cpu",
        cache: bool = True,
    ) -> None:
        transform: Any = dataset.transform
        if not hasattr(transform, "prepare") or not hasattr(transform, "batch"):
            raise ValueError(f"a resident set needs a transform such as Fit or CropFlip, got {type(transform).__name__}")
        self.dataset, self.batch_sampler, self.transform = dataset, batch_sampler, transform
        chosen = getattr(batch_sampler, "layout", None) if layout is None else layout
        self.group_size = None if chosen is None else Layout.parse(chosen).group_size
        self.images_NCHW = torch.from_numpy(_images(dataset, cache)).to(device)
        self.labels_N = torch.from_numpy(np.asarray(dataset.labels, np.int64))

    def __len__(self) -> int:
        return len(self.batch_sampler)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[GroupedBatch]:
        for ids in self.batch_sampler:
            yield self.batch(ids)

    def batch(self, ids: list[int]) -> GroupedBatch:
        """The batch of these ids."""
        count = len(ids)
        rows = np.array(ids, np.int64)
        images_BCHW = self.transform.batch(self.images_NCHW, rows, self._uniforms(ids))
        group_size = self.group_size or count + 1
        num_groups = count // group_size
        groups_GM = torch.arange(num_groups * group_size).view(num_groups, group_size)
        ids_B = torch.from_numpy(rows)
        labels_B = self.labels_N[ids_B]
        batch = GroupedBatch(images_BCHW, labels_B, ids_B, groups_GM, torch.tensor(0))
        return batch if self.images_NCHW.device.type == "cpu" else batch.to(self.images_NCHW.device, non_blocking=True)

    def _uniforms(self, ids: list[int]) -> np.ndarray:
        count = self.transform.num_draws
        if not isinstance(ids, PlannedBatch):
            return torch.rand(len(ids), count, dtype=torch.float64).numpy()
        slots = ids.offset + np.arange(len(ids))
        return uniforms(draw_keys(self.dataset.seed, ids.epoch, ids.number, slots), count)


def _images(dataset: PlannedDataset, cache: bool) -> np.ndarray:
    if isinstance(dataset, PartDataset):
        return _images(dataset.whole, cache)[dataset.rows]
    return _cached_images(dataset) if cache and isinstance(dataset, ShardDataset) else _prepared_images(dataset)


def _prepared_images(dataset: PlannedDataset) -> np.ndarray:
    """All images after the part of the transform that draws nothing (scaled, padded), shape (N, 3, H, W)."""
    images: np.ndarray | None = None
    for index in range(len(dataset)):
        image = dataset.transform.prepare(dataset.read(index))  # type: ignore[union-attr]
        if images is None:
            images = np.empty((len(dataset), *image.shape), np.uint8)
        images[index] = image.numpy()
    assert images is not None, "labels are never empty"
    return images


def _cached_images(dataset: ShardDataset) -> np.ndarray:
    """The prepared images from their cache, written on first use. Its name tells shards, split and size."""
    what = [dataset.fingerprint(), type(dataset.transform).__name__, str(vars(dataset.transform))]
    name = hashlib.sha256("\n".join(what).encode()).hexdigest()[:16]
    path = Path(dataset.index_dir) / f"{_CACHE}-{name}.npy"
    if not path.is_file():
        images = _prepared_images(dataset)
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        try:
            with partial.open("wb") as file:
                np.save(file, images, allow_pickle=False)
        except OSError:  # a read-only folder or a full disk: the images are here anyway
            partial.unlink(missing_ok=True)
            return images
        partial.replace(path)
    try:
        images = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ShardError(f"{path} cannot be read ({error}): delete it, it is only a cache") from None
    if images.dtype != np.uint8 or images.ndim != 4 or len(images) != len(dataset):
        raise ShardError(f"{path} does not hold the images of this set: delete it, it is only a cache")
    return images
