"""Remote: indexed shards behind a URL, read in ranges through fsspec, with retries that give up loudly."""

from __future__ import annotations

import io
import json
import os
import re
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ns_data.shards.index import DATASET_FILE, INDEX_FILE, Shard, check_index, check_row
from ns_data.shards.tar import BLOCK, ShardError, read_header

# What a URL may start with; none of these runs a command or follows another URL inside.
SCHEMES = ("file", "http", "https", "s3", "gs", "gcs", "az", "abfs", "abfss", "hf", "memory")
_MAX_DESCRIPTION = 1 << 28


class RemoteShards:
    """The index of a folder of shards behind a URL, and its samples' bytes.

    Args:
        url: a path or URL of the folder: file, http, https, or an object store that fsspec knows.
        split: as for ``ShardDataset``.
        retries: attempts after the first one; the pause before attempt k is ``backoff * 2**(k-1)`` seconds.
        timeout: seconds without a byte after which an HTTP request counts as failed.
        merge_gap: neighbours in a shard with at most this many bytes in between come with one request.
        threads: requests at the same time.
        storage_options: for fsspec, such as credentials.

    Raises ``ShardError`` for whatever cannot be read, and ``ValueError`` for other schemes.
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        split: str | None = None,
        *,
        retries: int = 4,
        backoff: float = 0.5,
        timeout: float = 60.0,
        merge_gap: int = 1 << 16,
        threads: int = 8,
        storage_options: dict[str, Any] | None = None,
    ) -> None:
        self.url = str(url).rstrip("/")
        scheme, colon, _ = self.url.partition("://")
        self.scheme = scheme if colon else "file"
        if self.scheme not in SCHEMES or "::" in self.url or (not colon and re.match(r"\w+:(?!\\)", self.url)):
            raise ValueError(f"cannot read shards from {self.url!r}: use a path or one of {', '.join(SCHEMES)}")
        if not colon:
            self.url = str(Path(self.url).absolute())
        self.retries, self.backoff, self.timeout, self.merge_gap, self.threads = retries, backoff, timeout, merge_gap, threads
        self.storage_options = storage_options or {}
        self._fs: Any = None
        self._pid = -1
        self.description = json.loads(self._whole(DATASET_FILE))
        index = np.load(io.BytesIO(self._whole(INDEX_FILE)), allow_pickle=False)
        check_index(index, self.description, self.url)
        self._shards = [Shard(**shard) for shard in self.description["shards"]]
        splits = self.description["splits"]
        if split is not None and split not in splits:
            raise ValueError(f"{self.url} has no split {split!r}: it has {', '.join(splits)}")
        first = 0 if split is None else splits[split]["first"]
        self._index = index if split is None else index[first : first + splits[split]["samples"]]
        self.labels = np.ascontiguousarray(self._index["label"])
        self.classes: list[str] = self.description["classes"]
        if self.labels.min() < 0 or self.labels.max() >= len(self.classes):
            raise ShardError(f"the index of {self.url} holds labels beyond its {len(self.classes)} classes")
        self.shard_sizes: list[int] = np.unique(self._index["shard"], return_counts=True)[1].tolist()

    def name(self, index: int) -> str:
        """Where sample ``index`` lies."""
        number, offset, _ = check_row(self._index[index], self._shards)
        return f"{self.url}/{self._shards[number].name}, byte {offset}"

    def fetch(self, ids: Sequence[int], pool: ThreadPoolExecutor) -> list[tuple[Future[list[bytes]], int]]:
        """Start reading ``ids`` from front to back; for each of them the request that brings it and its place in it."""
        rows = [check_row(self._index[index], self._shards) for index in ids]
        runs: list[_Run] = []
        place: list[tuple[int, int]] = [(0, 0)] * len(rows)
        for position in sorted(range(len(rows)), key=lambda position: rows[position]):
            number, offset, size = rows[position]
            last = runs[-1] if runs else None
            if last is None or last.shard != number or offset - BLOCK > last.stop + self.merge_gap or last.size > _MAX_RUN:
                runs.append(last := _Run(number, []))
            place[position] = (len(runs) - 1, len(last.parts))
            last.parts.append((offset, size))
        requests = [pool.submit(self._read_run, run) for run in runs]
        return [(requests[run], part) for run, part in place]

    def _read_run(self, run: _Run) -> list[bytes]:
        """The samples of a run, each checked against the tar header before it."""
        shard = self._shards[run.shard]
        data = self._range(shard.name, run.start, run.stop)
        found = []
        for offset, size in run.parts:
            at = offset - run.start
            path = Path(shard.name)
            if read_header(path, data[at - BLOCK : at], offset - BLOCK)[0] != size:
                raise ShardError(f"shard {self.url}/{shard.name} changed after it was indexed: make the index anew")
            found.append(data[at : at + size])
        return found

    def _whole(self, name: str) -> bytes:
        return self._range(name, 0, None)

    def _range(self, name: str, start: int, stop: int | None) -> bytes:
        """Bytes of a file, again and again until they are all there."""
        path = f"{self.url}/{name}"
        for attempt in range(self.retries + 1):
            try:
                data = self._filesystem().cat_file(path, start=start, end=stop)
                if stop is None or len(data) == stop - start:
                    return data
                if len(data) > stop - start:
                    raise ShardError(f"{path}: the server answers a part with the whole file: it must support ranges")
                raise OSError(f"got {len(data)} of {stop - start} bytes")
            except FileNotFoundError:
                raise ShardError(f"{path} is missing") from None
            except ShardError:
                raise
            except Exception as error:  # every store has errors of its own
                problem = f"{type(error).__name__}: {error}"
            if attempt < self.retries:
                warnings.warn(f"{path}, bytes {start} to {stop}: {problem}; trying again", stacklevel=2)
                time.sleep(self.backoff * 2**attempt)
        raise ShardError(f"{path}, bytes {start} to {stop} could not be read in {self.retries + 1} attempts: {problem}")

    def _filesystem(self) -> Any:
        """One for each process: connections do not survive a fork."""
        if self._fs is None or self._pid != os.getpid():
            import fsspec

            options = dict(self.storage_options)
            if self.scheme in ("http", "https") and "client_kwargs" not in options:
                import aiohttp

                waits = aiohttp.ClientTimeout(total=None, sock_connect=self.timeout, sock_read=self.timeout)
                options["client_kwargs"] = {"timeout": waits}
            self._fs, self._pid = fsspec.filesystem(self.scheme, skip_instance_cache=True, **options), os.getpid()
        return self._fs

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_fs": None}


_MAX_RUN = 1 << 24


class _Run(NamedTuple):
    """Samples of one shard that one request brings: (offset, size), ascending; the same sample may occur twice."""

    shard: int
    parts: list[tuple[int, int]]

    @property
    def start(self) -> int:
        return self.parts[0][0] - BLOCK

    @property
    def stop(self) -> int:
        return self.parts[-1][0] + self.parts[-1][1]

    @property
    def size(self) -> int:
        return self.stop - self.start
