"""imagenet: ImageNet-1K in folders of classes, or in the tars as they were distributed; JPEG bytes untouched.

Training images: ``ILSVRC2012_img_train.tar``, a tar of a tar for each class, or ``train/nXXXXXXXX/*.JPEG``. Validation images:
``ILSVRC2012_img_val.tar``, flat, or ``val/``, flat or in the same class folders. The labels of flat ones come from
``ILSVRC2012_devkit_t12.tar.gz`` beside them, or from a list ``val_labels`` of "image nXXXXXXXX" lines (or "image id"). Class
ids are the sorted WordNet ids. Source: "ImageNet Large Scale Visual Recognition Challenge", Russakovsky et al., 2015.
"""

from __future__ import annotations

import io
import os
import tarfile
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ns_data.shards.sources.samples import FileSamples, class_folders, files_below, labelled_files, write_splits
from ns_data.shards.tar import ShardError, members
from ns_data.shards.writer import write_shards

_TRAIN_TAR, _VAL_TAR, _DEVKIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"
_MAX_CLASS_TAR = 1 << 32
_MAX_DEVKIT_FILE = 1 << 26


def write_imagenet(
    out_dir: str | os.PathLike[str],
    *,
    path: str | os.PathLike[str],
    val_labels: str | os.PathLike[str] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Write the splits "train" and "val" of the set below ``path``."""
    root = Path(path)
    if not (root / _TRAIN_TAR).is_file() and not (root / "train").is_dir():
        raise ValueError(
            f"{root} has neither {_TRAIN_TAR} nor a folder train/ with a folder nXXXXXXXX for each class: path= names the "
            "folder that holds one of them"
        )
    train: Any
    if (root / _TRAIN_TAR).is_file():
        train, classes = _train_tar(root / _TRAIN_TAR)
    else:
        classes = class_folders(root / "train")
        train = FileSamples(root / "train", *labelled_files(root / "train", classes))
    val = _val(root, val_labels, classes)
    parts = {"train": train} if val is None else {"train": train, "val": val}
    return write_splits(write_shards, parts, out_dir, classes=classes, made_by={"source": "imagenet"}, **options)


def _val(root: Path, val_labels: Any, classes: list[str]) -> Any:
    """The validation images and their labels, wherever they are."""
    folder, tar = root / "val", root / _VAL_TAR
    if not tar.is_file() and folder.is_dir() and any(path.is_dir() for path in folder.iterdir()):
        if val_labels is not None:
            raise ValueError(f"val_labels={val_labels} has no effect on {folder}, whose class folders label its images")
        if class_folders(folder) != classes:
            raise ValueError(f"{folder} does not have the class folders of the training images")
        return FileSamples(folder, *labelled_files(folder, classes))
    if not tar.is_file() and not folder.is_dir():
        warnings.warn(f"{root} has neither {_VAL_TAR} nor val/: the shards have no split to evaluate on", stacklevel=3)
        return None
    place = tar if tar.is_file() else folder
    if val_labels is not None:
        origin, label_of = Path(val_labels), _read_list(Path(val_labels), classes)
    elif (root / _DEVKIT).is_file():
        origin, label_of = root / _DEVKIT, _read_devkit(root / _DEVKIT, classes)
    else:
        raise ValueError(
            f"{place} holds no labels: put {_DEVKIT} beside it, or give val_labels=LIST of 'image nXXXXXXXX' lines"
        )
    return _val_tar(tar, label_of, origin) if tar.is_file() else _val_files(folder, label_of, origin)


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


def _val_tar(path: Path, label_of: dict[str, int], origin: Path) -> TarSamples:
    with path.open("rb") as file:
        found = sorted(members(path, file.fileno()))
    labels = _labels([member.name for member in found], label_of, origin)
    return TarSamples(path, [(member.offset, member.size) for member in found], [member.name for member in found], labels)


def _val_files(folder: Path, label_of: dict[str, int], origin: Path) -> FileSamples:
    names = files_below(folder, ".")
    return FileSamples(folder, names, _labels(names, label_of, origin))


def _labels(names: list[str], label_of: dict[str, int], origin: Path) -> list[int]:
    missing = [name for name in names if Path(name).stem not in label_of]
    if missing:
        raise ValueError(f"{origin} has no label for {missing[0]} and {len(missing) - 1} others")
    return [label_of[Path(name).stem] for name in names]


def _read_list(path: Path, classes: list[str]) -> dict[str, int]:
    """Labels by the image's name without its extension."""
    ids = {wnid: label for label, wnid in enumerate(classes)}
    label_of = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        fields = line.replace(",", " ").split()
        if len(fields) != 2 or not (fields[1] in ids or (fields[1].isdigit() and int(fields[1]) < len(classes))):
            raise ValueError(f"{path}, line {number}: {line[:80]!r} is not an image and a known class")
        label_of[Path(fields[0]).stem] = ids[fields[1]] if fields[1] in ids else int(fields[1])
    return label_of


def _read_devkit(path: Path, classes: list[str]) -> dict[str, int]:
    """The same from the development kit: line i of its ground truth is the number of image i's class in its meta.mat."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    ids = {wnid: label for label, wnid in enumerate(classes)}
    try:
        with tarfile.open(path, "r:gz") as tar:
            meta, truth = (
                _member(tar, f"ILSVRC2012_devkit_t12/data/{name}")
                for name in ("meta.mat", "ILSVRC2012_validation_ground_truth.txt")
            )
        synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
        wnid_of = dict(zip(synsets["ILSVRC2012_ID"].tolist(), synsets["WNID"].tolist(), strict=True))
        wnids = [wnid_of[int(line)] for line in truth.decode("ascii").split()]
    except (OSError, EOFError, tarfile.TarError, zlib.error, MatReadError, LookupError, TypeError, ValueError) as error:
        raise ShardError(f"{path} is not the development kit of ImageNet 2012: {error!r}") from None
    unknown = sorted(set(wnids) - set(ids))
    if unknown:
        raise ValueError(f"{path} labels images as {unknown[0]}, of which there are no training images")
    return {f"ILSVRC2012_val_{number:08d}": ids[wnid] for number, wnid in enumerate(wnids, 1)}


def _member(tar: tarfile.TarFile, name: str) -> bytes:
    info = tar.getmember(name)
    file = tar.extractfile(info)
    if file is None or info.size > _MAX_DEVKIT_FILE:
        raise ValueError(f"{name} is no file of at most {_MAX_DEVKIT_FILE} bytes")
    return file.read()
