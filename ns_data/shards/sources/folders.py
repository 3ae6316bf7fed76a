"""Sources of images in folders and lists: `folder`, `list`, `imagenet` in folders, `officehome`, `emoset`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ns_data.choose import choose
from ns_data.shards.sources.samples import FileSamples, class_folders, labelled_files, pick, split_off, write_splits
from ns_data.shards.writer import write_shards

PathLike = str | os.PathLike[str]

# Order of "EmoSet: A Large-scale Visual Emotion Dataset with Rich Attributes", Yang et al., 2023.
_EMOTIONS = ("amusement", "awe", "contentment", "excitement", "anger", "disgust", "fear", "sadness")


def write_folder(
    out_dir: PathLike, *, path: PathLike, test_share: float = 0.1, split_seed: int = 0, **options: Any
) -> dict[str, Any]:
    """A folder for each class, or such folders in ``train`` and ``test`` (or ``val``); else a seeded split by class."""
    root = Path(path)
    tops = class_folders(root)
    held = next((name for name in ("test", "val", "validation") if name in tops), None)
    made_by = {"source": "folder", "split_seed": split_seed}
    if "train" in tops:
        classes = class_folders(root / "train")
        parts = {"train": FileSamples(root / "train", *labelled_files(root / "train", classes))}
        if held is not None:
            unknown = sorted(set(class_folders(root / held)) - set(classes))
            if unknown:
                raise ValueError(f"{root / held} has the class {unknown[0]!r}, which {root / 'train'} does not have")
            present = [name for name in classes if (root / held / name).is_dir()]
            names, labels = labelled_files(root / held, present)
            parts["test"] = FileSamples(root / held, names, [classes.index(present[label]) for label in labels])
    else:
        classes = tops
        parts = _two_parts(root, *labelled_files(root, classes), test_share, split_seed)
    return write_splits(write_shards, parts, out_dir, classes=classes, made_by=made_by, **options)


def write_list(
    out_dir: PathLike,
    *,
    path: PathLike,
    test: PathLike | None = None,
    root: PathLike | None = None,
    test_share: float = 0.1,
    split_seed: int = 0,
    **options: Any,
) -> dict[str, Any]:
    """Lines of an image's path and its label (an id or a name), paths below ``root`` (by default the list's folder).

    ``test`` is a second such list; without it, a seeded split by class. Fields are parted by a tab, a comma or the last space.
    """
    base = Path(path).parent if root is None else Path(root)
    rows = {"train": _read_list(Path(path)), **({"test": _read_list(Path(test))} if test is not None else {})}
    words = sorted({label for part in rows.values() for _, label in part})
    named = not all(word.isascii() and word.isdigit() for word in words)
    classes = words if named else [str(k) for k in range(1 + max(int(word) for word in words))]
    ids = {word: classes.index(word) if named else int(word) for word in words}
    labelled = {split: ([name for name, _ in part], [ids[label] for _, label in part]) for split, part in rows.items()}
    if test is None:
        parts = _two_parts(base, *labelled["train"], test_share, split_seed)
    else:
        parts = {split: FileSamples(base, *part) for split, part in labelled.items()}
    made_by = {"source": "list", "split_seed": split_seed}
    return write_splits(write_shards, parts, out_dir, classes=classes, made_by=made_by, **options)


def _read_list(path: Path) -> list[tuple[str, str]]:
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip():
            continue
        separator = "\t" if "\t" in line else "," if "," in line else " "
        name, found, label = line.strip().rpartition(separator)
        if not found or not name.strip() or not label.strip():
            raise ValueError(f"{path}, line {number}: {line[:80]!r} is not a path and a label")
        if Path(name.strip()).is_absolute() or ".." in Path(name.strip()).parts:
            raise ValueError(f"{path}, line {number}: {name.strip()!r} leaves the folder of the images: give root=")
        rows.append((name.strip(), label.strip()))
    if not rows:
        raise ValueError(f"{path} lists no images")
    return rows


def _two_parts(root: Path, names: list[str], labels: list[int], share: float, seed: int) -> dict[str, FileSamples]:
    if not names:
        raise ValueError(f"{root} holds no images")
    rows = zip(("train", "test"), split_off(names, labels, share, seed), strict=True)
    return {split: FileSamples(root, pick(names, part), pick(labels, part)) for split, part in rows if part.size}


def write_officehome(
    out_dir: PathLike, *, path: PathLike, domain: str, test_share: float = 0.1, split_seed: int = 0, **options: Any
) -> dict[str, Any]:
    """One domain of Office-Home: Art, Clipart, Product or RealWorld, whose spelling varies between copies.

    Source: "Deep Hashing Network for Unsupervised Domain Adaptation", Venkateswara et al., 2017.
    """
    folders = {_plain(name): name for name in class_folders(Path(path))}
    folder = choose(folders, _plain(domain), "Office-Home domain")
    root = Path(path) / folder
    classes = class_folders(root)
    parts = _two_parts(root, *labelled_files(root, classes), test_share, split_seed)
    made_by = {"source": "officehome", "domain": folder, "split_seed": split_seed}
    return write_splits(write_shards, parts, out_dir, classes=classes, made_by=made_by, **options)


def _plain(name: str) -> str:
    return name.lower().replace(" ", "").replace("_", "").replace("-", "")


def write_emoset(out_dir: PathLike, *, path: PathLike, **options: Any) -> dict[str, Any]:
    """EmoSet as it is distributed: train.json, val.json and test.json list [emotion, image id, image path, annotation path]."""
    root = Path(path)
    parts = {}
    for split in ("train", "val", "test"):
        if not (root / f"{split}.json").is_file():
            continue
        names, labels = [], []
        for row in json.loads((root / f"{split}.json").read_bytes()):
            if not isinstance(row, list) or len(row) < 3 or row[0] not in _EMOTIONS:
                raise ValueError(f"{root / split}.json: {str(row)[:80]} is not [emotion, id, image, annotation]")
            if ".." in Path(row[2]).parts or Path(row[2]).is_absolute():
                raise ValueError(f"{root / split}.json: {row[2]!r} leaves the folder of the images")
            names.append(row[2])
            labels.append(_EMOTIONS.index(row[0]))
        parts[split] = FileSamples(root, names, labels)
    if not parts:
        raise ValueError(f"{root} has no train.json, val.json or test.json")
    return write_splits(write_shards, parts, out_dir, classes=_EMOTIONS, made_by={"source": "emoset"}, **options)
