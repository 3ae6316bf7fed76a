"""Verify: compare every shard of a folder with its index and its digest, payloads included."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from ns_data.shards.index import Shard, check_unchanged, file_digest, load_index
from ns_data.shards.tar import ShardError


class Verified(NamedTuple):
    """What was found: one sentence for each damage, the files that are as they were written, those without a digest."""

    problems: list[str]
    intact: list[str]
    unknown: list[str]


def verify_shards(
    folder: str | os.PathLike[str], *, index_dir: str | os.PathLike[str] | None = None, progress: bool = False
) -> Verified:
    """Read every shard and every list of samples of ``folder`` whole and compare its SHA-256; a full pass over the data.

    Damage is reported, not raised, so that all of it is found; only a missing or unusable index raises ``ShardError``.
    """
    folder = Path(folder)
    index, description = load_index(folder if index_dir is None else index_dir)
    found = Verified([], [], [])
    shards = [Shard(**shard) for shard in description["shards"]]
    starts = np.concatenate([[0], np.cumsum([shard.samples for shard in shards])])
    bar = tqdm(total=sum(shard.size for shard in shards), desc="verifying", unit="B", unit_scale=True, disable=not progress)
    with bar:
        for number, shard in enumerate(shards):
            path = folder / shard.name
            try:
                check_unchanged(path, shard, index["offset"][starts[number] : starts[number + 1]])
            except ShardError as error:
                found.problems.append(str(error))
            else:
                _compare(path, shard.sha256, found)
            bar.update(shard.size)
    for name, digest in description["lists"].items():
        _compare(folder / Path(name).name, digest, found)
    return found


def _compare(path: Path, digest: str | None, found: Verified) -> None:
    if digest is None:
        found.unknown.append(path.name)
    elif not path.is_file():
        found.problems.append(f"{path} is missing")
    elif file_digest(path) != digest:
        found.problems.append(f"{path}: its bytes are not those that were written (SHA-256 differs)")
    else:
        found.intact.append(path.name)
