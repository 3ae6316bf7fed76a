"""PlannedStream: the same plan as random access, carried out over remote shards with long reads from front to back.

    sampler = ShuffleSampler(labels, shards=sizes, lanes=8)     # labels and sizes: ns_data.shards.remote.RemoteShards(url)
    batches = GroupingBatchSampler(sampler, 256, labels=labels, layout="2x2")
    loader = DataLoader(PlannedStream(url, batches, transform), batch_size=None, num_workers=2)

Batches, groups and pixels are those of ``ShardDataset`` under the same batch sampler; ranks come from the batch sampler.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from ns_data.augment import draw_keys, seeded, uniforms
from ns_data.batching import GroupingBatchSampler
from ns_data.collate import GroupedBatch, NSCollator
from ns_data.plan import EpochReport, check_plan_state, slice_of_rank
from ns_data.sampling import EpochSampler
from ns_data.shards.remote import RemoteShards
from ns_data.shards.skips import Skips
from ns_data.shards.tar import ShardError

_Part = tuple[Future[list[bytes]], int]


class PlannedStream(IterableDataset[GroupedBatch]):
    """The batches of a plan from remote shards, for ``DataLoader(stream, batch_size=None, num_workers=...)``.

    Args:
        url: of the folder of shards, or a ``RemoteShards``.
        batch_sampler: whose sampler is ``local`` (``ShuffleSampler(..., shards=..., lanes=...)``); its rank and world size
            decide which lanes this process executes.
        transform, seed, decoder, on_error, max_skipped: as for ``ShardDataset``.
        collate_fn: of a batch's samples; by default an ``NSCollator`` of the batch sampler's layout.

    Call ``set_epoch`` before each epoch. Memory is bounded by two windows of the rank's lanes, divided by the workers.
    Raises ``ValueError`` for another labelling than the batch sampler's and under accelerate's ``prepare``, which would take
    the batches apart.
    """

    def __init__(
        self,
        url: str | os.PathLike[str] | RemoteShards,
        batch_sampler: GroupingBatchSampler,
        transform: Callable[..., Any] | None = None,
        *,
        split: str | None = None,
        seed: int = 0,
        decoder: str = "auto",
        on_error: str = "raise",
        max_skipped: int = 100,
        collate_fn: Callable[[list[Any]], Any] | None = None,
    ) -> None:
        self.shards = url if isinstance(url, RemoteShards) else RemoteShards(url, split)
        sampler = batch_sampler.sampler
        if not isinstance(sampler, EpochSampler) or sampler.locality is None:
            raise ValueError(
                "a stream needs a plan that follows the shards: make the sampler with shards= and lanes=, or call its local()"
            )
        if not np.array_equal(batch_sampler.labels, self.shards.labels):
            raise ValueError(f"the batch sampler was made for other labels than those of {self.shards.url}")
        if list(sampler.locality.sizes) != self.shards.shard_sizes:
            raise ValueError(f"the sampler was made for other shards than those of {self.shards.url}: give their sizes")
        self.batch_sampler, self.transform, self.seed, self.decoder = batch_sampler, transform, seed, decoder
        self.collate_fn = NSCollator(batch_sampler.layout) if collate_fn is None else collate_fn
        self._skips = Skips.by_policy(on_error, len(self.shards.labels), max_skipped)
        # Epoch and first batch of the next pass, seen by workers that live on from epoch to epoch.
        self._position = torch.zeros(2, dtype=torch.int64).share_memory_()
        self._position[0] = batch_sampler.epoch

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass; it begins at its start, unless a state of this epoch was loaded."""
        self.batch_sampler.set_epoch(epoch)
        if int(self._position[0]) != epoch:
            self._position[:] = torch.tensor([epoch, 0])

    def state_dict(self, batches_done: int) -> dict[str, Any]:
        """Position in the plan after ``batches_done`` batches of this epoch, counted by the loop."""
        return self.batch_sampler.state_dict(batches_done)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state`` at the next pass, with any number of ranks and workers."""
        epoch, batches = check_plan_state(dict(state), self.batch_sampler.settings())
        self.batch_sampler.set_epoch(epoch)
        self._position[:] = torch.tensor([epoch, batches])

    def skipped(self) -> list[str]:
        """Place of every sample that could not be read so far, by any worker."""
        return [] if self._skips is None else [self.shards.name(index) for index in self._skips.ids()]

    def __iter__(self) -> Iterator[Any]:
        _refuse_accelerate()
        info = get_worker_info()
        worker, num_workers = (0, 1) if info is None else (info.id, info.num_workers)
        epoch, start = self._position.tolist()
        chunks = self._chunks(epoch, start, worker, num_workers)
        pool = ThreadPoolExecutor(self.shards.threads)
        try:
            ahead = self._start(next(chunks, []), pool)
            while ahead:
                current, ahead = ahead, self._start(next(chunks, []), pool)
                while current:
                    number, offset, ids, parts = current.pop(0)
                    keys = draw_keys(self.seed, epoch, number, offset + np.arange(len(ids)))
                    yield self.collate_fn([self._sample(i, *part, key) for i, part, key in zip(ids, parts, keys, strict=True)])
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _chunks(self, epoch: int, start: int, worker: int, num_workers: int) -> Iterator[list[tuple[int, int, list[int]]]]:
        """This worker's share, (number, offset, ids) of every ``num_workers``-th batch, as many at a time as a window makes."""
        sampler = self.batch_sampler
        locality = sampler.sampler.locality  # type: ignore[union-attr]
        in_a_window = max(1, locality.window * locality.lanes // (sampler.batch_size * sampler.world_size))
        batches = sampler.global_batches(epoch, EpochReport())
        for _ in islice(batches, start // in_a_window * in_a_window):  # whole windows that were done already
            pass
        while some := list(islice(batches, in_a_window)):
            mine = []
            for batch in some:
                if batch.number >= start and (batch.number - start) % num_workers == worker:
                    first, last = slice_of_rank(batch, sampler.layout.group_size, sampler.rank, sampler.world_size)
                    mine.append((batch.number, first, batch.ids[first:last].tolist()))
            if mine:
                yield mine

    def _start(
        self, chunk: list[tuple[int, int, list[int]]], pool: ThreadPoolExecutor
    ) -> list[tuple[int, int, list[int], list[_Part]]]:
        """Start reading a chunk; the requests of each batch's samples."""
        parts = iter(self.shards.fetch([index for *_, ids in chunk for index in ids], pool))
        return [(number, offset, ids, list(islice(parts, len(ids)))) for number, offset, ids in chunk]

    def _sample(self, index: int, request: Future[list[bytes]], place: int, key: np.uint64) -> Any:
        try:
            image = self._decode(index, request.result()[place])
        except ShardError as error:
            if self._skips is None:
                raise
            self._skips.add(index, error)
            return None
        return self._transformed(image, key), int(self.shards.labels[index]), index

    def _decode(self, index: int, data: bytes) -> Any:
        try:
            if self.shards.description["kind"] == "text":
                return data.decode()
            from ns_data.shards.decode import decode_image

            return decode_image(data, self.decoder)
        except ValueError as error:
            raise ShardError(f"{self.shards.name(index)}: {error}") from None

    def _transformed(self, image: Any, key: np.uint64) -> Any:
        if self.transform is None:
            return image
        if hasattr(self.transform, "num_draws"):
            return self.transform(image, uniforms(np.array([key]), self.transform.num_draws)[0])
        with seeded(int(key)):
            return self.transform(image)


def _refuse_accelerate() -> None:
    """Raise when accelerate iterates: it deals the batches of an iterable data set to processes once more."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        owner = type(frame.f_locals.get("self"))
        if owner.__module__ == "accelerate.data_loader" and owner.__name__ in ("IterableDatasetShard", "DataLoaderDispatcher"):
            raise ValueError(
                "accelerate's prepare would deal the batches of a PlannedStream to processes a second time: give rank and "
                "world_size to the batch sampler and do not pass this loader to prepare"
            )
