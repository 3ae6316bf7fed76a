"""Tar: the members of an archive by their headers alone, strict: every block is accounted for, or a ``ShardError`` says where.

A tar reader passes silently over much of this (a file cut at a member's end, a damaged header, a hole, a link).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

BLOCK = 512
MAX_MEMBER = 1 << 28
_MAX_EXTENDED = 1 << 20


class ShardError(ValueError):
    """A shard or its index is damaged, changed or not what it should be."""


class Member(NamedTuple):
    """A file in a tar: where its data lies and where its header."""

    name: str
    offset: int
    size: int
    position: int


def members(path: Path, fd: int, start: int = 0, end: int | None = None, max_member: int = MAX_MEMBER) -> Iterator[Member]:
    """The files of the tar that fills ``fd`` from byte ``start`` to ``end``; ``path`` is for messages only."""
    end = os.fstat(fd).st_size if end is None else end
    if end == start:
        raise ShardError(f"{path}: is empty")
    if (end - start) % BLOCK:
        raise ShardError(f"{path}: {end - start} bytes are not whole tar blocks: it was cut, or is no tar")
    position, long_name = start, None
    while True:
        header = os.pread(fd, BLOCK, position) if position < end else b""
        if len(header) < BLOCK:
            raise ShardError(f"{path}: ends at byte {position} without an end marker: it was cut between members")
        if not any(header):
            _check_only_zeros(path, fd, position, end)
            return
        size, kind = read_header(path, header, position, max_member)
        offset = position + BLOCK
        following = offset + (size + BLOCK - 1) // BLOCK * BLOCK
        if following > end:
            raise ShardError(f"{path}: member at byte {position} declares {size} bytes, more than the file holds")
        if kind in (b"x", b"g", b"L"):
            if size > _MAX_EXTENDED:
                raise ShardError(f"{path}: extended header of {size} bytes at byte {position}")
            data = os.pread(fd, size, offset)
            found = data.rstrip(b"\0") if kind == b"L" else _pax_path(path, data, position)
            long_name = long_name if found is None or kind == b"g" else found
        elif kind in (b"0", b"\0", b"7"):
            raw = long_name if long_name is not None else short_name(header)
            long_name = None
            try:
                yield Member(raw.decode(), offset, size, position)
            except UnicodeDecodeError:
                raise ShardError(f"{path}: name {raw!r} at byte {position} is not UTF-8") from None
        elif kind != b"5":  # folders carry nothing
            raise ShardError(f"{path}: member at byte {position} is a link or device: store files only")
        position = following


def read_header(path: Path, header: bytes, position: int, max_member: int = MAX_MEMBER) -> tuple[int, bytes]:
    """(size, kind) of a member, its checksum verified."""
    try:
        checksum = _number(header[148:156])
        size = _number(header[124:136])
    except ValueError:
        checksum = size = -1
    if checksum != 256 + sum(header[:148]) + sum(header[156:]):
        raise ShardError(f"{path}: damaged header at byte {position}")
    if not 0 <= size <= max_member:
        raise ShardError(f"{path}: member at byte {position} declares {size} bytes, more than {max_member}")
    return size, header[156:157]


def _number(field: bytes) -> int:
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    return int(field.split(b"\0")[0].strip() or b"0", 8)


def short_name(header: bytes) -> bytes:
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
        block = os.pread(fd, min(1 << 20, end - position), position)
        if any(block):
            raise ShardError(f"{path}: data after the end marker at byte {position}: a hole in the file?")
        position += len(block)
