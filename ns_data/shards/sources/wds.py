"""wds: WebDataset shards that exist already, linked and indexed as they are; nothing is copied."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ns_data.shards.index import index_shards
from ns_data.shards.tar import ShardError


def link_wds(
    out_dir: str | os.PathLike[str],
    *,
    path: str | os.PathLike[str],
    label: str = "cls",
    classes: Sequence[str] | None = None,
    digest: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Make ``out_dir`` a folder of links to the shards in ``path``, with its own index. ``label``: "cls" or "json:KEY"."""
    shards = sorted(Path(path).resolve().glob("*.tar"))
    if not shards:
        raise ShardError(f"{path} holds no .tar shard")
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.tar"):
        if old.is_symlink():
            old.unlink()
    for shard in shards:
        (folder / shard.name).symlink_to(shard)
    made_by = {"all": {"source": "wds"}}
    return index_shards(folder, label=label, classes=classes, digest=digest, made_by=made_by, progress=progress)
