"""ShardDataset: random access to indexed shards, with draws seeded by the plan. PlannedDataset does the same for other data."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ns_data.augment import draw_keys, seeded, uniforms
from ns_data.batching import PlannedBatch, swallowed_plan
from ns_data.shards.index import Shard, check_row, check_unchanged, load_index
from ns_data.shards.skips import Skips
from ns_data.shards.tar import BLOCK, ShardError, short_name

Sample = tuple[Any, int, int]  # image, label, id


class PlannedDataset(Dataset["Sample | None"], ABC):
    """A map-style data set of ``(image, label, id)`` whose random draws follow the plan.

    Under a ``PlannedBatch`` every draw is seeded by (seed, epoch, batch number, slot). Otherwise it uses the process's
    generators, as usual with torch. Subclasses say how to ``read`` one image.
    """

    labels: np.ndarray

    def __init__(self, transform: Callable[..., Any] | None = None, *, seed: int = 0) -> None:
        self.transform, self.seed = transform, seed

    @abstractmethod
    def read(self, index: int) -> Any:
        """The image of sample ``index``, before the transform."""

    def read_ahead(self, indices: Sequence[int]) -> None:
        """Called with a batch's ids before they are read one by one."""

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample | None:
        if getattr(self.transform, "num_draws", self.transform is not None) and swallowed_plan() is not None:
            raise self._lost_plan()
        return self._sample(index, None)

    def __getitems__(self, indices: Sequence[int]) -> list[Sample | None]:
        if not isinstance(indices, PlannedBatch):
            if swallowed_plan() is not None:
                raise self._lost_plan()
            self.read_ahead(indices)
            return [self._sample(index, None) for index in indices]
        self.read_ahead(indices)
        slots = indices.offset + np.arange(len(indices))
        keys = draw_keys(self.seed, indices.epoch, indices.number, slots)
        return [self._sample(index, keys[slot : slot + 1]) for slot, index in enumerate(indices)]

    def _lost_plan(self) -> ValueError:
        return ValueError(
            "a wrapper such as Subset takes the planned batch apart, so that draws lose their place in the plan: pass the "
            f"batch on in the wrapper's __getitems__, or select samples before this {type(self).__name__} is made"
        )

    def _sample(self, index: int, key: np.ndarray | None) -> Sample | None:
        """Sample ``index``, its draws seeded by ``key``, shape (1,), or by torch's generator for ``None``."""
        index = int(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} is not among the {len(self)} samples")
        index %= len(self)
        transform = self.transform
        if transform is not None and hasattr(transform, "num_draws"):
            count = transform.num_draws
            draws = torch.rand(count, dtype=torch.float64).numpy() if key is None else uniforms(key, count)[0]
            image = transform(self.read(index), draws)
        elif key is None:
            image = self._transformed(index)
        else:
            with seeded(int(key[0])):
                image = self._transformed(index)
        return image, int(self.labels[index]), index

    def _transformed(self, index: int) -> Any:
        image = self.read(index)
        return image if self.transform is None else self.transform(image)


class ShardDataset(PlannedDataset):
    """The samples of an indexed folder of shards: ``dataset[i] -> (image, label, id)``.

    Args:
        folder: a folder that ``write_shards`` or ``index_shards`` made.
        split: "train", "test"...; ``None`` takes all splits, one after the other.
        transform: of ``ns_data.augment``, or any callable on uint8 images of shape (3, H, W); of texts, on strings.
        seed: of the planned draws.
        index_dir: where the index lies, if not in ``folder``.
        decoder: a name in ``ns_data.shards.decode.DECODERS``; by default the fastest that is installed.
        on_error: "raise", or "skip": a sample that cannot be read becomes ``None``, which ``NSCollator`` counts and leaves
            out of its group, so that every rank keeps its number of batches.
        max_skipped: refuse to go on when more samples than this cannot be read.

    ``labels``, ``classes`` and ``description`` say what is there, ``skipped()`` what could not be read. Raises
    ``ShardError`` (a ``ValueError``) for a missing or changed shard, and naming shard and member for an image that cannot
    be read.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        split: str | None = None,
        transform: Callable[..., Any] | None = None,
        *,
        seed: int = 0,
        index_dir: str | os.PathLike[str] | None = None,
        decoder: str = "auto",
        on_error: str = "raise",
        max_skipped: int = 100,
    ) -> None:
        super().__init__(transform, seed=seed)
        self.folder, self.split, self.decoder = Path(folder), split, decoder
        self.index_dir = self.folder if index_dir is None else Path(index_dir)
        index, self.description = load_index(self.index_dir)
        splits = self.description["splits"]
        if split is not None and split not in splits:
            raise ValueError(f"{self.folder} has no split {split!r}: it has {', '.join(splits)}")
        first = 0 if split is None else splits[split]["first"]
        self._index = index[first:] if split is None else index[first : first + splits[split]["samples"]]
        self.labels = np.ascontiguousarray(self._index["label"])
        self.classes: list[str] = self.description["classes"]
        if self.labels.min() < 0 or self.labels.max() >= len(self.classes):
            raise ShardError(f"the index of {self.folder} holds labels beyond its {len(self.classes)} classes: make it anew")
        self._shards = [Shard(**shard) for shard in self.description["shards"]]
        self._starts = np.concatenate([[0], np.cumsum([shard.samples for shard in self._shards])])
        self._offsets = index["offset"]
        self._files: dict[int, int] = {}  # open shards of this process
        self._pid = os.getpid()
        self._skips = Skips.by_policy(on_error, len(self), max_skipped)

    @property
    def shard_sizes(self) -> list[int]:
        """Samples in each shard of the split, for ``ShuffleSampler(..., shards=...)``."""
        return np.unique(self._index["shard"], return_counts=True)[1].tolist()

    def shard_paths(self) -> list[Path]:
        """The shards of the split, in the order of its samples; ``ShardError`` for one that is missing or changed."""
        numbers = np.unique(self._index["shard"]).tolist()
        for number in numbers:
            self._open(number)
        return [self.folder / self._shards[number].name for number in numbers]

    def read_bytes(self, index: int) -> bytes:
        """The encoded image (or text) of sample ``index``."""
        number, offset, size = check_row(self._index[index], self._shards)
        data = os.pread(self._open(number), size, offset)
        if len(data) != size:
            raise ShardError(f"{self._name(index)} is cut: {len(data)} of {size} bytes")
        return data

    def read(self, index: int) -> Tensor | str:
        data = self.read_bytes(index)
        try:
            if self.description["kind"] == "text":
                return data.decode()
            from ns_data.shards.decode import decode_image  # torchvision and PIL are needed only to decode

            return decode_image(data, self.decoder)
        except ValueError as error:
            raise ShardError(f"{self._name(index)}: {error}") from None

    def read_ahead(self, indices: Sequence[int]) -> None:
        """Ask the system to fetch these samples, so that the disk works while the first ones are decoded."""
        for index in indices if len(indices) > 1 else ():
            if -len(self) <= index < len(self):
                try:
                    number, offset, size = check_row(self._index[index], self._shards)
                    os.posix_fadvise(self._open(number), offset, size, os.POSIX_FADV_WILLNEED)
                except (ShardError, OSError, AttributeError):  # the read itself says what is wrong; macOS has no fadvise
                    return

    def sizes(self) -> np.ndarray:
        """Bytes of each encoded sample."""
        return np.ascontiguousarray(self._index["size"])

    def fingerprint(self) -> str:
        """What decides the images, as far as the index knows it."""
        return f"{self.split} {[(shard.name, shard.size, shard.headers, shard.sha256) for shard in self._shards]}"

    def skipped(self) -> list[str]:
        """Shard and member of every sample that could not be read so far, by any worker."""
        return [] if self._skips is None else [self._name(index) for index in self._skips.ids()]

    def _sample(self, index: int, key: np.ndarray | None) -> Sample | None:
        try:
            return super()._sample(index, key)
        except ShardError as error:
            if self._skips is None:
                raise
            self._skips.add(int(index), error)
            return None

    def _open(self, number: int) -> int:
        if self._pid != os.getpid():  # a forked worker opens its own files
            self._files, self._pid = {}, os.getpid()
        if number not in self._files:
            path = self.folder / self._shards[number].name
            check_unchanged(path, self._shards[number], self._offsets[self._starts[number] : self._starts[number + 1]])
            self._files[number] = os.open(path, os.O_RDONLY)
        return self._files[number]

    def _name(self, index: int) -> str:
        """Where sample ``index`` lies, as well as it can be told."""
        number, offset, _ = check_row(self._index[index], self._shards)
        path = self.folder / self._shards[number].name
        try:
            name = short_name(os.pread(self._open(number), BLOCK, offset - BLOCK)).decode(errors="replace")
        except (ShardError, OSError):
            name = f"at byte {offset}"
        return f"{path}, member {name}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}


class PartDataset(PlannedDataset):
    """The samples ``rows`` of a data set, numbered anew."""

    def __init__(self, whole: Any, rows: np.ndarray) -> None:
        super().__init__(whole.transform, seed=whole.seed)
        self.whole, self.rows = whole, rows
        self.labels = whole.labels[rows]
        self.classes: list[str] = whole.classes

    def read(self, index: int) -> Any:
        return self.whole.read(int(self.rows[index]))

    def _sample(self, index: int, key: np.ndarray | None) -> Any:
        sample = self.whole._sample(int(self.rows[index]), key)  # which may skip a damaged one
        return sample and (*sample[:2], int(index) % len(self))
