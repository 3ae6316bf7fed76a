"""Label lists: sets whose images have several right labels each, in a list of the JSON member. They are for evaluation.

A source notes it as ``labels: json:KEY`` in ``dataset.json``; the class id of such a sample is only the first of its labels.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ns_data.shards.dataset import ShardDataset
from ns_data.shards.tar import ShardError, members

_MAX_JSON = 1 << 20


def label_list_key(dataset: Any) -> str | None:
    """The JSON key of a set's label lists; ``None`` for a set of single labels, shards or not."""
    if not isinstance(dataset, ShardDataset):
        return None
    made_by = dataset.description["made_by"]
    notes = [made_by.get(dataset.split)] if dataset.split is not None else list(made_by.values())
    labels = next((str(note["labels"]) for note in notes if isinstance(note, dict) and "labels" in note), "")
    return labels.removeprefix("json:") or None


def refuse_label_lists(dataset: Any, why: str) -> None:
    """``ValueError`` for a set of label lists where a single label is needed; ``why`` says what needs it."""
    if label_list_key(dataset) is not None:
        raise ValueError(
            f"{dataset.folder} has lists of labels, several right ones for an image, and {why} needs a single one: evaluate a "
            "checkpoint on it with ns-data evaluate"
        )


def read_label_lists(dataset: ShardDataset, key: str) -> list[list[int]]:
    """The labels of every sample of the split, in order, from ``key`` of its JSON member; a single id counts as a list of it.

    Raises ``ShardError``, naming shard and sample, for a member that is missing or holds something else.
    """
    found: list[list[int]] = []
    for path in dataset.shard_paths():
        found += _lists_of_shard(path, key)
    if len(found) != len(dataset):
        raise ShardError(f"{dataset.folder} has label lists for {len(found)} samples, and {len(dataset)} in its index")
    return found


def _lists_of_shard(path: Path, key: str) -> list[list[int]]:
    lists: dict[str, list[int] | None] = {}  # in the order of the samples, as the index has them
    with path.open("rb") as file:
        for name, offset, size, _ in members(path, file.fileno()):
            folder, slash, base = name.rpartition("/")
            stem, _, extension = base.partition(".")
            sample = folder + slash + stem
            lists.setdefault(sample, None)
            if extension == "json":
                if size > _MAX_JSON:
                    raise ShardError(f"{path}: {size} bytes of JSON in sample {sample!r} are too many")
                lists[sample] = _labels_in(os.pread(file.fileno(), size, offset), key, f"{path}, sample {sample!r}")
    for sample, labels in lists.items():
        if labels is None:
            raise ShardError(f"{path}, sample {sample!r} has no JSON member, which should hold its labels under {key!r}")
    return [labels for labels in lists.values() if labels is not None]


def _labels_in(data: bytes, key: str, place: str) -> list[int]:
    try:
        value = json.loads(data)[key]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ShardError(f"{place}: no JSON with key {key!r}") from None
    labels = value if isinstance(value, list) else [value]
    if not labels or any(not isinstance(label, int) or isinstance(label, bool) or label < 0 for label in labels):
        raise ShardError(f"{place}: {key!r} is {str(value)[:60]}, not a class id or a list of them")
    return labels
