"""Writer: samples become shuffled, reproducible WebDataset tars, indexed and ready for ``ShardDataset``.

A shard appears under its final name only when it is whole and on disk, and a file ``SPLIT.writing`` tells what is being
written: the same call after an interruption keeps the whole shards and writes the missing ones.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ns_data.shards.encode import Encoding, members_of
from ns_data.shards.index import index_shards, load_index
from ns_data.shards.tar import ShardError


def write_shards(
    samples: Iterable[Any],
    out_dir: str | os.PathLike[str],
    *,
    split: str = "train",
    classes: Sequence[str] | None = None,
    seed: int | None = 0,
    samples_per_shard: int = 1000,
    max_side: int | None = None,
    quality: int | None = None,
    workers: int = 0,
    made_by: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Write one split of a data set and index the folder; return what ``dataset.json`` says.

    Args:
        samples: ``(image, label)`` or ``(image, label, extra)``, or WebDataset dictionaries such as
            ``{"jpg": bytes, "cls": 3}``. An image is encoded bytes (passed through untouched) or a uint8 array of shape
            (H, W) or (H, W, 3), stored as PNG, or a text; ``extra`` is stored as JSON. A sequence is read in shuffled order
            and sample by sample; with a ``names`` attribute (a name for each sample) an interrupted run can go on.
        out_dir: shards become ``SPLIT-000000.tar`` and so on. Line i of ``SPLIT.list`` names the sample behind id i of
            the split, as JSON.
        split: "train", "test"... A folder may hold several.
        classes: class names.
        seed: of the global shuffle; ``None`` keeps the order, which class-sorted data should not.
        samples_per_shard: the last shard may have fewer.
        max_side: scale images down so that the longer side has at most this many pixels; others pass untouched.
        quality: encode all images anew as JPEG of this quality (1 to 95); with ``max_side`` the scaled ones, by default 90.
        workers: processes that write shards at the same time; 0 writes in this one.
        made_by: how the samples came about, kept in ``dataset.json``.
        progress: show a progress bar.

    The same samples, seed and options give identical bytes. Raises ``ValueError`` for a sample that is none of these and
    ``OSError`` when the disk is full; run it again to go on.
    """
    if samples_per_shard < 1:
        raise ValueError(f"samples_per_shard must be at least 1, got {samples_per_shard}")
    encoding = Encoding(max_side, quality)
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    rows = samples if isinstance(samples, Sequence) else list(samples)
    if not rows:
        raise ValueError(f"there are no samples to write for split {split!r}")
    order = np.arange(len(rows)) if seed is None else np.random.default_rng([seed, len(rows)]).permutation(len(rows))
    note = {**(made_by or {}), "shuffle_seed": seed, **encoding.note()}
    names = getattr(rows, "names", None)
    written = _fingerprint(rows, order, samples_per_shard, note, classes) if names is not None else None
    done = _finished(out_dir, split, written)
    if done is not None:
        return done
    _clean(out_dir, split, written)
    job = _Job(rows, order, out_dir, split, samples_per_shard, encoding)
    digests = dict(_write_all(job, workers, progress))
    listed = "".join(json.dumps(row if names is None else names[row]) + "\n" for row in order.tolist()).encode()
    list_name = f"{split}.list"
    (out_dir / list_name).write_bytes(listed)
    lists = {list_name: hashlib.sha256(listed).hexdigest()}
    notes = {split: {**note, "fingerprint": written}}
    description = index_shards(out_dir, classes=classes, digests=digests, lists=lists, made_by=notes)
    (out_dir / f"{split}.writing").unlink()
    return description


def _fingerprint(rows: Any, order: np.ndarray, size: int, note: Mapping[str, Any], classes: Sequence[str] | None) -> str:
    """What decides the shards, as far as it can be known without reading the samples: names and labels, order and options."""
    labels = np.asarray(rows.labels).tolist()
    what = json.dumps([list(rows.names), labels, size, note, list(classes or ())], sort_keys=True, default=str)
    return hashlib.sha256(what.encode() + order.tobytes()).hexdigest()


def _finished(out_dir: Path, split: str, fingerprint: str | None) -> dict[str, Any] | None:
    """The description of a folder that holds just this split already."""
    try:
        _, description = load_index(out_dir)
    except ShardError:
        return None
    same = fingerprint is not None and description["made_by"].get(split, {}).get("fingerprint") == fingerprint
    shards = [shard for shard in description["shards"] if shard["name"].startswith(f"{split}-")]
    there = all(_size(out_dir / shard["name"]) == shard["size"] for shard in shards)
    return description if same and there and not (out_dir / f"{split}.writing").exists() else None


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _clean(out_dir: Path, split: str, fingerprint: str | None) -> None:
    """Remove what does not belong to this run, and leave the whole shards of an interrupted one."""
    mark = out_dir / f"{split}.writing"
    goes_on = fingerprint is not None and mark.is_file() and mark.read_text() == fingerprint
    for old in out_dir.glob(f"{split}-*.tar{'.partial' if goes_on else '*'}"):
        old.unlink()
    mark.write_text(fingerprint or "")


@dataclass(frozen=True)
class _Job:
    """All that a process must know to write any of the shards."""

    rows: Sequence[Any]
    order: np.ndarray
    out_dir: Path
    split: str
    samples_per_shard: int
    encoding: Encoding

    def path(self, number: int) -> Path:
        return self.out_dir / f"{self.split}-{number:06d}.tar"

    def size(self, number: int) -> int:
        return min(self.samples_per_shard, len(self.order) - number * self.samples_per_shard)


def _write_all(job: _Job, workers: int, progress: bool) -> Iterator[tuple[str, str]]:
    """Write the shards that are missing; (name, SHA-256) of each."""
    numbers = range(-(-len(job.order) // job.samples_per_shard))
    missing = [number for number in numbers if not job.path(number).is_file()]
    bar = tqdm(total=len(job.order), desc=f"writing {job.split}", unit="sample", disable=None if progress else True)
    with ExitStack() as stack:
        stack.enter_context(bar)
        for number in sorted(set(numbers) - set(missing)):
            yield job.path(number).name, _digest_of_written(job.path(number))
            bar.update(job.size(number))
        if workers == 0:
            for number in missing:
                yield job.path(number).name, _write_shard(job, number, bar.update)
            return
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(workers, context, initializer=_set_job, initargs=(job,))
        stack.callback(pool.shutdown, cancel_futures=True)
        for future in as_completed([pool.submit(_write_shard_of_job, number) for number in missing]):
            number, digest = future.result()
            yield job.path(number).name, digest
            bar.update(job.size(number))


_job: _Job  # of this worker process


def _set_job(job: _Job) -> None:
    global _job
    _job = job


def _write_shard_of_job(number: int) -> tuple[int, str]:
    return number, _write_shard(_job, number, lambda count: None)


def _write_shard(job: _Job, number: int, tell: Callable[[int], Any]) -> str:
    """Write one shard to a temporary name, bring it to disk and rename it; its SHA-256."""
    from webdataset import TarWriter

    path = job.path(number)
    partial = path.with_name(path.name + ".partial")
    first = number * job.samples_per_shard
    try:
        with partial.open("wb") as file:
            with TarWriter(file, mtime=0) as tar:
                for position in range(first, first + job.size(number)):
                    row = int(job.order[position])
                    tar.write({"__key__": f"{position:09d}", **members_of(job.rows[row], job.encoding, f"sample {row}")})
                    tell(1)
            file.flush()
            os.fsync(file.fileno())
        digest = _digest_of_written(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return digest


def _digest_of_written(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
