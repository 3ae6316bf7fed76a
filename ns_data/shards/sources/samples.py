"""Samples of a source as sequences that the writer reads one by one, in any process: files on disk, or arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ns_data.shards.encode import IMAGE_EXTENSIONS

_MAX_FILE = 1 << 28


class FileSamples(Sequence[tuple[Any, int, dict[str, Any]]]):
    """``(bytes or text, label, {"name": ...})`` of files below ``root``; nothing is read before it is asked for."""

    def __init__(self, root: Path, names: Sequence[str], labels: Sequence[int], *, text: bool = False) -> None:
        if not names:
            raise ValueError(f"{root} holds no {'texts' if text else 'images'} where they are expected")
        self.root, self.names, self.labels, self.text = root, list(names), list(labels), text

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: Any) -> Any:
        path = self.root / self.names[index]
        if path.stat().st_size > _MAX_FILE:
            raise ValueError(f"{path} has more than {_MAX_FILE} bytes")
        data: Any = path.read_bytes()
        return data.decode() if self.text else data, self.labels[index], {"name": self.names[index]}


class ArraySamples(Sequence[tuple[np.ndarray, int, dict[str, Any]]]):
    """``(image, label, {"row": ...})`` of images of shape (N, H, W, 3)."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> None:
        self.images, self.labels, self.rows = images, labels, rows
        self.names = [int(row) for row in rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        row = int(self.rows[index])
        return self.images[row], int(self.labels[index]), {"row": row}


class TextSamples(Sequence[tuple[str, int, dict[str, Any]]]):
    """``(text, label, {"row": name})`` of texts in memory; a name tells where the text comes from."""

    def __init__(self, texts: list[str], labels: list[int], names: list[Any]) -> None:
        self.texts, self.labels, self.names = texts, labels, names

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: Any) -> Any:
        return self.texts[index], self.labels[index], {"row": self.names[index]}


def class_folders(root: Path) -> list[str]:
    """The names of the folders in ``root``, sorted: the class ids."""
    if not root.is_dir():
        raise ValueError(f"there is no folder {root}")
    names = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise ValueError(f"{root} holds no folder for each class")
    return names


def files_below(root: Path, folder: str, extensions: Sequence[str] = IMAGE_EXTENSIONS) -> list[str]:
    """Paths relative to ``root`` of the files below ``folder`` with one of these extensions, sorted."""
    found = (path for path in (root / folder).rglob("*") if path.suffix.lower().lstrip(".") in extensions and path.is_file())
    return sorted(path.relative_to(root).as_posix() for path in found)


def labelled_files(
    root: Path, classes: Sequence[str], extensions: Sequence[str] = IMAGE_EXTENSIONS
) -> tuple[list[str], list[int]]:
    """Names and labels of the files in one folder for each class."""
    names: list[str] = []
    labels: list[int] = []
    for label, folder in enumerate(classes):
        found = files_below(root, folder, extensions)
        names += found
        labels += [label] * len(found)
    return names, labels


def split_off(names: list[Any], labels: list[int], share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a training and a test part: of each class, round(share * n) random samples are for the test."""
    if not 0 < share < 1:
        raise ValueError(f"test_share must be between 0 and 1, got {share}")
    classes = np.asarray(labels)
    rng = np.random.default_rng([seed, len(names)])
    held = np.zeros(len(names), bool)
    for label in np.unique(classes):
        rows = rng.permutation(np.flatnonzero(classes == label))
        held[rows[: round(share * rows.size)]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def pick(items: Sequence[Any], rows: np.ndarray) -> list[Any]:
    """``[items[row] for row in rows]``."""
    return [items[row] for row in rows.tolist()]


def write_splits(write: Callable[..., dict[str, Any]], splits: dict[str, Any], out_dir: Any, **options: Any) -> dict[str, Any]:
    """Write several splits of one set with the same options; what ``dataset.json`` says at the end."""
    description: dict[str, Any] = {}
    for split, samples in splits.items():
        if len(samples):
            description = write(samples, out_dir, split=split, **options)
    return description
