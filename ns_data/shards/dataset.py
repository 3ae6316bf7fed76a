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
from ns_data.shards.index import BLOCK, Shard, ShardError, check_unchanged, load_index

Sample = tuple[Any, int, int]  # image, label, id


class PlannedDataset(Dataset[Sample], ABC):
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

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        if getattr(self.transform, "num_draws", self.transform is not None) and swallowed_plan() is not None:
            raise self._lost_plan()
        return self._sample(index, None)

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        if not isinstance(indices, PlannedBatch):
            if swallowed_plan() is not None:
                raise self._lost_plan()
            return [self._sample(index, None) for index in indices]
        slots = indices.offset + np.arange(len(indices))
        keys = draw_keys(self.seed, indices.epoch, indices.number, slots)
        return [self._sample(index, keys[slot : slot + 1]) for slot, index in enumerate(indices)]

    def _lost_plan(self) -> ValueError:
        return ValueError(
            "a wrapper such as Subset takes the planned batch apart, so that draws lose their place in the plan: pass the "
            f"batch on in the wrapper's __getitems__, or select samples before this {type(self).__name__} is made"
        )

    def _sample(self, index: int, key: np.ndarray | None) -> Sample:
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
        transform: of ``ns_data.augment``, or any callable on uint8 images of shape (3, H, W).
        seed: of the planned draws.
        index_dir: where the index lies, if not in ``folder``.

    ``labels``, ``classes`` and ``description`` say what is there. Raises ``ShardError`` (a ``ValueError``) for a missing or
    changed shard and ``ValueError`` naming shard and member for an image that cannot be read.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        split: str | None = None,
        transform: Callable[..., Any] | None = None,
        *,
        seed: int = 0,
        index_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(transform, seed=seed)
        self.folder = Path(folder)
        index, self.description = load_index(self.folder if index_dir is None else index_dir)
        splits = self.description["splits"]
        if split is not None and split not in splits:
            raise ValueError(f"{self.folder} has no split {split!r}: it has {', '.join(splits)}")
        first = 0 if split is None else splits[split]["first"]
        self._index = index[first:] if split is None else index[first : first + splits[split]["samples"]]
        self.labels = np.ascontiguousarray(self._index["label"])
        self.classes: list[str] = self.description["classes"]
        self._shards = [Shard(**shard) for shard in self.description["shards"]]
        self._starts = np.concatenate([[0], np.cumsum([shard.samples for shard in self._shards])])
        self._offsets = index["offset"]
        self._files: dict[int, int] = {}  # open shards of this process
        self._pid = os.getpid()

    def read_bytes(self, index: int) -> bytes:
        """The encoded image of sample ``index``."""
        row = self._index[index]
        size = int(row["size"])
        data = os.pread(self._open(int(row["shard"])), size, int(row["offset"]))
        if len(data) != size:
            raise ShardError(f"{self._name(index)} is cut: {len(data)} of {size} bytes")
        return data

    def read(self, index: int) -> Tensor:
        from ns_data.shards.decode import decode_image  # torchvision and PIL are needed only to decode

        try:
            return decode_image(self.read_bytes(index))
        except ShardError:
            raise
        except ValueError as error:
            raise ValueError(f"{self._name(index)}: {error}") from None

    def _open(self, number: int) -> int:
        if self._pid != os.getpid():  # a forked worker opens its own files
            self._files, self._pid = {}, os.getpid()
        if number not in self._files:
            path = self.folder / self._shards[number].name
            check_unchanged(path, self._shards[number], self._offsets[self._starts[number] : self._starts[number + 1]])
            self._files[number] = os.open(path, os.O_RDONLY)
        return self._files[number]

    def _name(self, index: int) -> str:
        row = self._index[index]
        number = int(row["shard"])
        header = os.pread(self._open(number), BLOCK, int(row["offset"]) - BLOCK)
        name = header[:100].split(b"\0")[0].decode(errors="replace")
        return f"{self.folder / self._shards[number].name}, member {name}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}
