"""imagenet: ImageNet-1K in folders of classes, or in the tars as they were distributed; JPEG bytes untouched.

Folders: ``train/nXXXXXXXX/*.JPEG`` and ``val`` the same way. Tars: ``ILSVRC2012_img_train.tar``, a tar of a tar for each
class, and ``ILSVRC2012_img_val.tar``, flat, whose labels come from a list ``val_labels`` of "image nXXXXXXXX" lines (or
"image id"). Class ids are the sorted WordNet ids. Source: "ImageNet Large Scale Visual Recognition Challenge", Russakovsky
et al., 2015.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ns_data.shards.sources.samples import FileSamples, class_folders, labelled_files, write_splits
from ns_data.shards.tar import members
from ns_data.shards.writer import write_shards

_TRAIN_TAR, _VAL_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
_MAX_CLASS_TAR = 1 << 32


def write_imagenet(
    out_dir: str | os.PathLike[str],
    *,
    path: str | os.PathLike[str],
    val_labels: str | os.PathLike[str] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Write the splits "train" and "val" of the set below ``path``."""
    root = Path(path)
    parts: dict[str, Any] = {}
    if (root / _TRAIN_TAR).is_file():
        train, classes = _train_tar(root / _TRAIN_TAR)
        parts["train"] = train
        if (root / _VAL_TAR).is_file() and val_labels is None:
            raise ValueError(f"{root / _VAL_TAR} holds no labels: give val_labels, a list of 'image nXXXXXXXX' lines")
        if (root / _VAL_TAR).is_file():
            parts["val"] = _val_tar(root / _VAL_TAR, Path(str(val_labels)), classes)
    else:
        if not (root / "train").is_dir():
            raise ValueError(f"{root} has neither train/ nor {_TRAIN_TAR}")
        classes = class_folders(root / "train")
        for split in ("train", "val"):
            if (root / split).is_dir():
                if class_folders(root / split) != classes:
                    raise ValueError(f"{root / split} does not have the class folders of {root / 'train'}")
                parts[split] = FileSamples(root / split, *labelled_files(root / split, classes))
    return write_splits(write_shards, parts, out_dir, classes=classes, made_by={"source": "imagenet"}, **options)


class TarSamples(Sequence[Any]):
    """``(bytes, label, {"name": ...})`` at known places of one tar, read at random."""

    def __init__(self, path: Path, places: list[tuple[int, int]], names: list[str], labels: list[int]) -> None:
        self.path, self.places, self.names, self.labels = path, places, names, labels

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: Any) -> Any:
        offset, size = self.places[index]
        with self.path.open("rb") as file:
            data = os.pread(file.fileno(), size, offset)
        return data, self.labels[index], {"name": self.names[index]}


def _train_tar(path: Path) -> tuple[TarSamples, list[str]]:
    with path.open("rb") as file:
        fd = file.fileno()
        inner = {Path(member.name).stem: member for member in members(path, fd, max_member=_MAX_CLASS_TAR)}
        classes = sorted(inner)
        places, names, labels = [], [], []
        for label, wnid in enumerate(classes):
            start, size = inner[wnid].offset, inner[wnid].size
            for member in members(path, fd, start, start + size):
                places.append((member.offset, member.size))
                names.append(f"{wnid}/{member.name}")
                labels.append(label)
    return TarSamples(path, places, names, labels), classes


def _val_tar(path: Path, list_path: Path, classes: list[str]) -> TarSamples:
    ids = {wnid: label for label, wnid in enumerate(classes)}
    label_of = {}
    for number, line in enumerate(list_path.read_text().splitlines(), 1):
        fields = line.replace(",", " ").split()
        if len(fields) != 2 or not (fields[1] in ids or (fields[1].isdigit() and int(fields[1]) < len(classes))):
            raise ValueError(f"{list_path}, line {number}: {line[:80]!r} is not an image and a known class")
        label_of[Path(fields[0]).stem] = ids[fields[1]] if fields[1] in ids else int(fields[1])
    with path.open("rb") as file:
        found = sorted(members(path, file.fileno()))
    missing = [member.name for member in found if Path(member.name).stem not in label_of]
    if missing:
        raise ValueError(f"{list_path} has no label for {missing[0]} and {len(missing) - 1} others")
    labels = [label_of[Path(member.name).stem] for member in found]
    return TarSamples(path, [(member.offset, member.size) for member in found], [member.name for member in found], labels)
