"""Index: where each sample of a folder of tar shards lies, and its label. One pass over the headers, strict.

What a tar reader passes over silently (a shard cut at a member's end, a damaged header, a hole, a repeated key) is refused
with a ``ShardError`` that names shard and byte. The index is a structured ``.npy`` of 18 bytes a sample, memory-mapped;
``dataset.json`` beside it holds splits, class names, counts, and every shard's size and digests.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ns_data.shards.tar import BLOCK, MAX_MEMBER, ShardError, members

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
TEXT_EXTENSION = "txt"
INDEX_DTYPE = np.dtype([("shard", "<u2"), ("offset", "<u8"), ("size", "<u4"), ("label", "<i4")])
INDEX_FILE, DATASET_FILE = "index.npy", "dataset.json"
FORMAT_VERSION = 1
_MAX_LABEL = 1 << 20
_LABEL = re.compile(rb"[0-9]{1,9}")


@dataclass
class Shard:
    """One shard as it was indexed. ``headers`` digests some tar headers: a cheap sign that the file changed since."""

    name: str
    samples: int
    size: int
    headers: str
    sha256: str | None = None  # of the whole file, if it was read


def index_shards(
    folder: str | os.PathLike[str],
    *,
    label: str = "cls",
    classes: Sequence[str] | None = None,
    index_dir: str | os.PathLike[str] | None = None,
    digest: bool = False,
    digests: Mapping[str, str] | None = None,
    lists: Mapping[str, str] | None = None,
    made_by: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Index all ``*.tar`` of ``folder``, also somebody else's, in place; return what ``dataset.json`` says.

    Args:
        folder: shards named ``SPLIT-NUMBER.tar``.
        label: the extension of the member that holds the class id, or "json:KEY" for a key of the ``.json`` member.
        classes: class names; by default those of the index that is there, else the class ids.
        index_dir: where the index goes, if ``folder`` is read-only.
        digest: also read every shard whole for its SHA-256, which ``verify_shards`` compares.
        digests: known SHA-256 of shards by name.
        lists: SHA-256 of the writer's lists of samples by name.
        made_by: how the set was made, by split, kept in ``dataset.json``.
        progress: show a progress bar.

    Raises:
        ShardError: naming shard and byte of the first damage.
    """
    folder, index_dir = Path(folder), Path(folder if index_dir is None else index_dir)
    paths = sorted(folder.glob("*.tar"), key=lambda path: (split_of(path.name), path.name))
    if not paths:
        hint = ": unpack .tar.gz shards with gunzip first" if list(folder.glob("*.tar.gz")) else ""
        raise ShardError(f"{folder} holds no .tar shard{hint}")
    if len(paths) > np.iinfo(np.uint16).max:
        raise ShardError(f"{folder} holds {len(paths)} shards, more than {np.iinfo(np.uint16).max}: write larger ones")
    before = _index_before(index_dir)
    known = {shard["name"]: Shard(**shard) for shard in before.get("shards", ())}
    tables: dict[str, list[np.ndarray]] = {}
    shards: list[Shard] = []
    kinds: dict[str, Path] = {}
    for path in tqdm(paths, desc="indexing", unit="shard", disable=None if progress else True):
        rows = list(scan_shard(path, label))
        for extension, *_ in rows:
            kinds.setdefault("text" if extension == TEXT_EXTENSION else "image", path)
        if len(kinds) > 1:
            raise ShardError(f"{folder} mixes images ({kinds['image']}) and texts ({kinds['text']}): keep them in two folders")
        table = np.array([(len(shards), *row) for _, *row in rows], INDEX_DTYPE)
        shard = Shard(path.name, len(table), path.stat().st_size, _headers_digest(path, table["offset"]))
        old = known.get(path.name, shard)
        shard.sha256 = (digests or {}).get(path.name)
        if shard.sha256 is None and (old.size, old.headers) == (shard.size, shard.headers):
            shard.sha256 = old.sha256
        if shard.sha256 is None and digest:
            shard.sha256 = file_digest(path)
        shards.append(shard)
        tables.setdefault(split_of(path.name), []).append(table)
    index = np.concatenate([table for split in tables.values() for table in split])
    names = _class_names(folder, int(index["label"].max()) + 1, classes, before.get("classes"))
    description = {
        "format": FORMAT_VERSION,
        "kind": next(iter(kinds)),
        "label": label,
        "classes": names,
        "splits": _splits(tables, len(names)),
        "shards": [asdict(shard) for shard in shards],
        "lists": {**before.get("lists", {}), **(lists or {})},
        "made_by": {**before.get("made_by", {}), **(made_by or {})},
    }
    index_dir.mkdir(parents=True, exist_ok=True)
    _replace(index_dir / INDEX_FILE, lambda file: np.save(file, index, allow_pickle=False))
    text = json.dumps(description, indent=1) + "\n"
    _replace(index_dir / DATASET_FILE, lambda file: file.write(text.encode()))
    return description


def split_of(name: str) -> str:
    """The split that a shard's name tells.

    >>> split_of("train-000012.tar"), split_of("00012.tar")
    ('train', 'train')
    """
    return re.sub(r"[-_.]?\d+$", "", name.removesuffix(".tar")) or "train"


def _index_before(folder: Path) -> dict[str, Any]:
    """What an index that is already there says of class names, digests and origin; nothing if there is none."""
    try:
        return load_index(folder)[1]
    except ShardError:
        return {}


def _class_names(folder: Path, num_labels: int, given: Sequence[str] | None, before: list[str] | None) -> list[str]:
    if given is not None:
        if len(given) < num_labels:
            raise ShardError(f"{folder} holds label {num_labels - 1}, but only {len(given)} class names were given")
        return list(given)
    named = before is not None and len(before) >= num_labels and before != [str(k) for k in range(len(before))]
    return before if named and before else [str(k) for k in range(num_labels)]


def _splits(tables: dict[str, list[np.ndarray]], num_classes: int) -> dict[str, dict[str, Any]]:
    splits: dict[str, dict[str, Any]] = {}
    first = 0
    for split, parts in tables.items():
        labels = np.concatenate([part["label"] for part in parts])
        counts = np.bincount(labels, minlength=num_classes).tolist()
        splits[split] = {"first": first, "samples": len(labels), "counts": counts}
        first += len(labels)
    return splits


def _replace(path: Path, write: Any) -> None:
    """Write a file under a temporary name and rename it: it is there whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        write(file)
    partial.replace(path)


def file_digest(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(1 << 22):
            digest.update(data)
    return digest.hexdigest()


def load_index(folder: str | os.PathLike[str]) -> tuple[np.ndarray, dict[str, Any]]:
    """The memory-mapped index of a folder and its ``dataset.json``; ``ShardError`` if they are missing or do not fit."""
    folder = Path(folder)
    if not (folder / DATASET_FILE).is_file():
        raise ShardError(f"{folder} has no {DATASET_FILE}: make one with ns_data.index_shards({str(folder)!r})")
    try:
        description = json.loads((folder / DATASET_FILE).read_bytes())
        index = np.load(folder / INDEX_FILE, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, RecursionError, EOFError) as error:
        raise ShardError(f"the index of {folder} cannot be read ({error}): make it anew with index_shards") from None
    check_index(index, description, str(folder))
    return index, description


def check_index(index: np.ndarray, description: Any, place: str) -> None:
    """Refuse an index that does not fit its ``dataset.json``, or a ``dataset.json`` that points out of its folder."""
    anew = "make both anew with index_shards"
    try:
        fits = description["format"] == FORMAT_VERSION and description["kind"] in ("image", "text")
        shards = [Shard(**shard) for shard in description["shards"]]
        for shard in shards:
            if re.fullmatch(r"[^/\\\0]+\.tar", shard.name) is None:
                raise ShardError(f"{place}: {DATASET_FILE} names a shard {shard.name!r} that is no file of its folder")
        end = 0
        for split in description["splits"].values():
            fits &= split["first"] == end and split["samples"] > 0 and isinstance(split["samples"], int)
            fits &= len(split["counts"]) == len(description["classes"])
            end += split["samples"]
        fits &= index.dtype == INDEX_DTYPE and index.shape == (end,) and end == sum(shard.samples for shard in shards)
        fits &= isinstance(description["made_by"], dict) and isinstance(description["lists"], dict)
    except (KeyError, TypeError, AttributeError) as error:
        raise ShardError(f"{place}: {DATASET_FILE} is not what index_shards writes ({error!r}): {anew}") from None
    if not fits:
        raise ShardError(f"{place}: {INDEX_FILE} does not belong to its {DATASET_FILE}: {anew}")


def check_row(row: Any, shards: Sequence[Shard]) -> tuple[int, int, int]:
    """(shard number, offset, size) of an index row; a row that points outside of its shard is refused, not followed."""
    number, offset, size = int(row["shard"]), int(row["offset"]), int(row["size"])
    if number >= len(shards) or size > MAX_MEMBER or offset < BLOCK or offset + size > shards[number].size:
        raise ShardError(f"the index points outside of its shards ({number}, {offset}, {size}): make it anew with index_shards")
    return number, offset, size


def check_unchanged(path: Path, shard: Shard, offsets: np.ndarray) -> None:
    """Refuse a shard that is not the one that was indexed, by its size and some headers."""
    try:
        size = path.stat().st_size
    except OSError:
        raise ShardError(f"shard {path} is missing") from None
    if size != shard.size or _headers_digest(path, offsets) != shard.headers:
        raise ShardError(f"shard {path} changed after it was indexed: make the index anew with index_shards")


def _headers_digest(path: Path, offsets: np.ndarray) -> str:
    """Digest of the headers before up to 16 samples, spread evenly, the first and the last among them."""
    chosen = offsets[np.unique(np.linspace(0, len(offsets) - 1, 16).astype(int))]
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for offset in chosen.tolist():
            digest.update(os.pread(file.fileno(), BLOCK, max(0, offset - BLOCK)))
    return digest.hexdigest()[:16]


def scan_shard(path: Path, label: str = "cls") -> Iterator[tuple[str, int, int, int]]:
    """(extension, offset, size, label) of each sample's image, or of its text if it has none, in order."""
    with path.open("rb") as file:
        sample = _Sample(path, file.fileno(), label)
        seen: set[str] = set()
        for name, offset, size, position in members(path, file.fileno()):
            folder, slash, base = name.rpartition("/")
            stem, dot, extension = base.partition(".")
            if not (stem and dot):
                raise ShardError(
                    f"{path}: member {name!r} at byte {position} has no key or no extension, so it is in no sample"
                )
            key = folder + slash + stem
            if key != sample.key:
                if sample.key is not None:
                    yield sample.finish()
                if key in seen:
                    raise ShardError(f"{path}: key {key!r} occurs again at byte {position}: keys must be unique in a shard")
                seen.add(key)
                sample = _Sample(path, file.fileno(), label, key)
            sample.add(extension.lower(), offset, size, position)
        if sample.key is None:
            raise ShardError(f"{path}: holds no samples")
        yield sample.finish()


class _Sample:
    """The members of one sample, as far as they have been met."""

    def __init__(self, path: Path, fd: int, label: str, key: str | None = None) -> None:
        self.path, self.fd, self.key = path, fd, key
        self.label_extension, _, self.json_key = label.partition(":")
        self.extensions: set[str] = set()
        self.image: tuple[str, int, int] | None = None
        self.text: tuple[str, int, int] | None = None
        self.label: int | None = None

    def add(self, extension: str, offset: int, size: int, position: int) -> None:
        place = f"{self.path}: sample {self.key!r}, member .{extension} at byte {position}"
        if extension in self.extensions:
            raise ShardError(f"{place} occurs twice")
        self.extensions.add(extension)
        if extension.rpartition(".")[2] in IMAGE_EXTENSIONS:
            if "." in extension:
                raise ShardError(f"{place}: a dot in a key runs samples together: rename the members so that keys have none")
            if self.image is not None:
                raise ShardError(f"{place} is a second image: leave one image a sample")
            self.image = extension, offset, size
        elif extension == TEXT_EXTENSION:
            self.text = extension, offset, size
        if extension == self.label_extension:
            self.label = self._read_label(offset, size, place)

    def _read_label(self, offset: int, size: int, place: str) -> int:
        if size > _MAX_LABEL:
            raise ShardError(f"{place}: {size} bytes are too many for a label")
        data = os.pread(self.fd, size, offset)
        if self.json_key:
            try:
                value = json.loads(data)[self.json_key]
            except (ValueError, KeyError, TypeError, RecursionError):
                raise ShardError(f"{place}: no JSON with key {self.json_key!r}") from None
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 10**9:
                raise ShardError(f"{place}: {self.json_key!r} is {value!r}, not a class id")
            return value
        if not _LABEL.fullmatch(data.strip()):
            raise ShardError(f"{place}: label {data[:20]!r} is not a class id")
        return int(data)

    def finish(self) -> tuple[str, int, int, int]:
        payload = self.image or self.text
        if payload is None:
            raise ShardError(f"{self.path}: sample {self.key!r} has no image ({', '.join(IMAGE_EXTENSIONS)}) and no text")
        if self.label is None:
            raise ShardError(f"{self.path}: sample {self.key!r} has no label member .{self.label_extension}")
        return *payload, self.label
