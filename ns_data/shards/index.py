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
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

BLOCK = 512
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
INDEX_DTYPE = np.dtype([("shard", "<u2"), ("offset", "<u8"), ("size", "<u4"), ("label", "<i4")])
INDEX_FILE, DATASET_FILE = "index.npy", "dataset.json"
FORMAT_VERSION = 1
_MAX_MEMBER = 1 << 28
_MAX_PAX = 1 << 20
_LABEL = re.compile(rb"[0-9]{1,9}")


class ShardError(ValueError):
    """A shard or its index is damaged, changed or not what it should be."""


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
    digests: dict[str, str] | None = None,
    made_by: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Index all ``*.tar`` of ``folder``, also somebody else's, in place; return what ``dataset.json`` says.

    Args:
        folder: shards named ``SPLIT-NUMBER.tar``.
        label: the extension of the member that holds the class id, or "json:KEY" for a key of the ``.json`` member.
        classes: class names; by default the class ids.
        index_dir: where the index goes, if ``folder`` is read-only.
        digests: known SHA-256 of shards by name.
        made_by: how the set was made, kept in ``dataset.json``.

    Raises:
        ShardError: naming shard and byte of the first damage.
    """
    folder, index_dir = Path(folder), Path(folder if index_dir is None else index_dir)
    paths = sorted(folder.glob("*.tar"))
    if not paths:
        hint = ": unpack .tar.gz shards with gunzip first" if list(folder.glob("*.tar.gz")) else ""
        raise ShardError(f"{folder} holds no .tar shard{hint}")
    if len(paths) > np.iinfo(np.uint16).max:
        raise ShardError(f"{folder} holds {len(paths)} shards, more than {np.iinfo(np.uint16).max}: write larger ones")
    splits: dict[str, dict[str, Any]] = {}
    tables: dict[str, list[np.ndarray]] = {}
    shards: list[dict[str, Any]] = []
    for path in sorted(paths, key=lambda path: (_split_of(path), path.name)):
        table = np.array([(len(shards), *row) for row in scan_shard(path, label)], INDEX_DTYPE)
        shard = Shard(path.name, len(table), path.stat().st_size, _headers_digest(path, table["offset"]))
        shard.sha256 = (digests or {}).get(path.name)
        shards.append(asdict(shard))
        tables.setdefault(_split_of(path), []).append(table)
    index = np.concatenate([table for split in tables.values() for table in split])
    num_classes = max(int(index["label"].max()) + 1, len(classes or ()))
    if classes is not None and len(classes) < num_classes:
        raise ShardError(f"{folder} holds label {num_classes - 1}, but only {len(classes)} class names were given")
    first = 0
    for split, parts in tables.items():
        labels = np.concatenate([part["label"] for part in parts])
        counts = np.bincount(labels, minlength=num_classes).tolist()
        splits[split] = {"first": first, "samples": len(labels), "counts": counts}
        first += len(labels)
    description = {
        "format": FORMAT_VERSION,
        "label": label,
        "classes": list(classes) if classes is not None else [str(k) for k in range(num_classes)],
        "splits": splits,
        "shards": shards,
        "made_by": made_by or {},
    }
    index_dir.mkdir(parents=True, exist_ok=True)
    _replace(index_dir / INDEX_FILE, lambda file: np.save(file, index, allow_pickle=False))
    text = json.dumps(description, indent=1) + "\n"
    _replace(index_dir / DATASET_FILE, lambda file: file.write(text.encode()))
    return description


def _split_of(path: Path) -> str:
    return re.sub(r"[-_.]?\d+$", "", path.stem) or "train"


def _replace(path: Path, write: Any) -> None:
    """Write a file under a temporary name and rename it: it is there whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        write(file)
    partial.replace(path)


def load_index(folder: str | os.PathLike[str]) -> tuple[np.ndarray, dict[str, Any]]:
    """The memory-mapped index of a folder and its ``dataset.json``; ``ShardError`` if they are missing or do not fit."""
    folder = Path(folder)
    if not (folder / DATASET_FILE).is_file():
        raise ShardError(f"{folder} has no {DATASET_FILE}: make one with ns_data.index_shards({str(folder)!r})")
    try:
        description = json.loads((folder / DATASET_FILE).read_bytes())
        index = np.load(folder / INDEX_FILE, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ShardError(f"the index of {folder} cannot be read ({error}): make it anew with index_shards") from None
    fits = isinstance(description, dict) and description.get("format") == FORMAT_VERSION and index.dtype == INDEX_DTYPE
    if not fits or index.shape != (sum(split["samples"] for split in description["splits"].values()),):
        raise ShardError(f"{folder / INDEX_FILE} does not belong to its {DATASET_FILE}: make both anew with index_shards")
    return index, description


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
            digest.update(os.pread(file.fileno(), BLOCK, offset - BLOCK))
    return digest.hexdigest()[:16]


def scan_shard(path: Path, label: str = "cls") -> Iterator[tuple[int, int, int]]:
    """(offset, size, label) of each sample's image in a shard, in order."""
    sample = _Sample(path, label)
    seen: set[str] = set()
    for name, offset, size, position in _members(path):
        folder, slash, base = name.rpartition("/")
        stem, dot, extension = base.partition(".")
        if not (stem and dot):
            raise ShardError(f"{path}: member {name!r} at byte {position} has no key or no extension, so it is in no sample")
        key = folder + slash + stem
        if key != sample.key:
            if sample.key is not None:
                yield sample.finish()
            if key in seen:
                raise ShardError(f"{path}: key {key!r} occurs again at byte {position}: keys must be unique in a shard")
            seen.add(key)
            sample = _Sample(path, label, key)
        sample.add(extension.lower(), offset, size, position)
    if sample.key is None:
        raise ShardError(f"{path}: holds no samples")
    yield sample.finish()


class _Sample:
    """The members of one sample, as far as they have been met."""

    def __init__(self, path: Path, label: str, key: str | None = None) -> None:
        self.path, self.key = path, key
        self.label_extension, _, self.json_key = label.partition(":")
        self.extensions: set[str] = set()
        self.image: tuple[int, int] | None = None
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
            self.image = offset, size
        elif extension == self.label_extension:
            self.label = self._read_label(offset, size, place)

    def _read_label(self, offset: int, size: int, place: str) -> int:
        if size > _MAX_PAX:
            raise ShardError(f"{place}: {size} bytes are too many for a label")
        with self.path.open("rb") as file:
            data = os.pread(file.fileno(), size, offset)
        if self.json_key:
            try:
                value = json.loads(data)[self.json_key]
            except (ValueError, KeyError, TypeError):
                raise ShardError(f"{place}: no JSON with key {self.json_key!r}") from None
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 10**9:
                raise ShardError(f"{place}: {self.json_key!r} is {value!r}, not a class id")
            return value
        if not _LABEL.fullmatch(data.strip()):
            raise ShardError(f"{place}: label {data[:20]!r} is not a class id")
        return int(data)

    def finish(self) -> tuple[int, int, int]:
        if self.image is None:
            raise ShardError(f"{self.path}: sample {self.key!r} has no image ({', '.join(IMAGE_EXTENSIONS)})")
        if self.label is None:
            raise ShardError(f"{self.path}: sample {self.key!r} has no label member .{self.label_extension}")
        return *self.image, self.label


def _members(path: Path) -> Iterator[tuple[str, int, int, int]]:
    """(name, offset and size of the data, position of the header) of each file in a tar; every block is accounted for."""
    with path.open("rb") as file:
        fd, end = file.fileno(), os.fstat(file.fileno()).st_size
        if end == 0:
            raise ShardError(f"{path}: is empty")
        if end % BLOCK:
            raise ShardError(f"{path}: {end} bytes are not whole tar blocks: it was cut, or is no tar")
        position, long_name = 0, None
        while True:
            header = os.pread(fd, BLOCK, position)
            if len(header) < BLOCK:
                raise ShardError(f"{path}: ends at byte {position} without an end marker: it was cut between members")
            if not any(header):
                _check_only_zeros(path, fd, position, end)
                return
            size, kind = _read_header(path, header, position)
            offset = position + BLOCK
            following = offset + (size + BLOCK - 1) // BLOCK * BLOCK
            if following > end:
                raise ShardError(f"{path}: member at byte {position} declares {size} bytes, more than the file holds")
            if kind in (b"x", b"g", b"L"):
                if size > _MAX_PAX:
                    raise ShardError(f"{path}: extended header of {size} bytes at byte {position}")
                data = os.pread(fd, size, offset)
                long_name = data.rstrip(b"\0") if kind == b"L" else _pax_path(path, data, position) or long_name
            elif kind in (b"0", b"\0", b"7"):
                raw = long_name if long_name is not None else _short_name(header)
                long_name = None
                try:
                    yield raw.decode(), offset, size, position
                except UnicodeDecodeError:
                    raise ShardError(f"{path}: name {raw!r} at byte {position} is not UTF-8") from None
            elif kind != b"5":  # folders carry nothing
                raise ShardError(f"{path}: member at byte {position} is a link or device: store files only")
            position = following


def _read_header(path: Path, header: bytes, position: int) -> tuple[int, bytes]:
    """(size, kind) of a member, its checksum verified."""
    try:
        checksum = _number(header[148:156])
        size = _number(header[124:136])
    except ValueError:
        checksum = size = -1
    if checksum != 256 + sum(header[:148]) + sum(header[156:]):
        raise ShardError(f"{path}: damaged header at byte {position}")
    if not 0 <= size <= _MAX_MEMBER:
        raise ShardError(f"{path}: member at byte {position} declares {size} bytes, more than {_MAX_MEMBER}")
    return size, header[156:157]


def _number(field: bytes) -> int:
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    return int(field.split(b"\0")[0].strip() or b"0", 8)


def _short_name(header: bytes) -> bytes:
    name, prefix = header[:100].split(b"\0")[0], header[345:500].split(b"\0")[0]
    return prefix + b"/" + name if prefix and header[257:263] == b"ustar\0" else name


def _pax_path(path: Path, records: bytes, position: int) -> bytes | None:
    found = None
    while records:
        length, _, rest = records.partition(b" ")
        if not length.isdigit() or not len(length) < int(length) <= len(records):
            raise ShardError(f"{path}: damaged extended header at byte {position}")
        key, _, value = rest[: int(length) - len(length) - 2].partition(b"=")
        if key == b"size":
            raise ShardError(f"{path}: extended header at byte {position} changes a size: write plain members")
        if key == b"path":
            found = value
        records = records[int(length) :]
    return found


def _check_only_zeros(path: Path, fd: int, position: int, end: int) -> None:
    if end - position < 2 * BLOCK:
        raise ShardError(f"{path}: only one zero block at byte {position}: the end marker was cut")
    while position < end:
        block = os.pread(fd, 1 << 20, position)
        if any(block):
            raise ShardError(f"{path}: data after the end marker at byte {position}: a hole in the file?")
        position += len(block)
