"""Data of a run: shards of a source, a folder of shards or class folders, or a data set class, as train and test sets."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ns_data.augment import AUGMENTS, Fit
from ns_data.choose import construct
from ns_data.shards.dataset import PartDataset, PlannedDataset, ShardDataset
from ns_data.shards.decode import decode_image
from ns_data.shards.index import DATASET_FILE
from ns_data.shards.label_lists import refuse_label_lists
from ns_data.shards.sources import prepare
from ns_data.stats import ClassStats, as_labels
from ns_data.training.config import DataConfig
from ns_data.training.distributed import World

_EXPECTED = (
    "shards, which `ns-data shards SOURCE ... out={folder}` writes (SOURCE is imagenet, folder, list...), or train/ and test/ "
    "with a folder of images for each class"
)


@dataclass(frozen=True)
class Data:
    """Train and test set of a run; ``stats`` counts the training labels over all classes."""

    train: PlannedDataset
    test: PlannedDataset
    stats: ClassStats
    classes: list[str]
    place: str


class FolderDataset(PlannedDataset):
    """The images of ``folder/CLASS/*``, decoded under the same rules as shards."""

    def __init__(self, folder: Path, transform: Callable[..., Any] | None, *, seed: int = 0) -> None:
        from torchvision.datasets import ImageFolder  # only here: it takes its time

        super().__init__(transform, seed=seed)
        self._files = ImageFolder(str(folder))
        self.labels = as_labels(self._files.targets)
        self.classes: list[str] = self._files.classes

    def read(self, index: int) -> torch.Tensor:
        path = Path(self._files.samples[index][0])
        try:
            return decode_image(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


class WrappedDataset(PlannedDataset):
    """Somebody's map-style data set of ``(image, label)``; its own random draws are seeded by the plan as well."""

    def __init__(self, dataset: Any, name: str, *, seed: int = 0) -> None:
        super().__init__(None, seed=seed)
        self._dataset = dataset
        labels = getattr(dataset, "labels", getattr(dataset, "targets", None))
        if labels is None:
            raise ValueError(f"data set {name} has neither .labels nor .targets: add one, a class id for each sample")
        self.labels = as_labels(labels)
        self.classes = [str(c) for c in getattr(dataset, "classes", range(int(self.labels.max()) + 1))]

    def read(self, index: int) -> torch.Tensor:
        image = self._dataset[index][0]
        if isinstance(image, torch.Tensor):
            return image
        pixels = torch.from_numpy(np.array(image))  # PIL images and arrays of shape (H, W) or (H, W, C)
        return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()


def held_out(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """True for ``share`` of each class's samples, drawn by ``seed``: at least one, unless it is the class's only one."""
    if not 0 < share < 1:
        raise ValueError(f"data.holdout must be at least 0 and below 1, got {share}")
    rng = np.random.default_rng([seed, 20])  # not the stream of the plan
    held = np.zeros(labels.size, bool)
    for k in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == k))
        held[members[: min(members.size - 1, max(1, round(share * members.size)))]] = True
    return held


def load_data(config: DataConfig, seed: int, *, label_lists: bool = False) -> Data:
    """Open the data of a run, preparing a source on first use. ``ValueError`` says what is expected where.

    Sets with lists of labels are refused unless ``label_lists`` says that they will be read.
    """
    if config.dataset is not None:
        if config.augment != "none" or config.image_size is not None or config.eval_resize is not None:
            raise ValueError(
                "data.image_size, data.eval_resize and data.augment have no effect on data.dataset, which transforms its own "
                "images: set data.image_size=null data.eval_resize=null data.augment=none"
            )
        build = _import(config.dataset)
        sets: list[Any] = [
            WrappedDataset(build(split=split, **config.options), config.dataset, seed=seed) for split in _splits(config)
        ]
        place = config.dataset
    else:
        transforms = _transforms(config)
        folder = _folder(config)
        open_split = _open_shards if (folder / DATASET_FILE).is_file() else _open_folder
        sets = [
            open_split(folder, split, transform, seed, config.on_error)
            for split, transform in zip(_splits(config), transforms, strict=True)
        ]
        place = str(folder)
    train, test = sets
    for dataset in () if label_lists else sets:
        refuse_label_lists(dataset, "training")
    if config.holdout:
        held = held_out(train.labels, config.holdout, seed)
        train, test = PartDataset(train, np.flatnonzero(~held)), PartDataset(test, np.flatnonzero(held))
    if train.classes != test.classes and not set(test.classes) <= set(train.classes):
        raise ValueError(
            f"{place}: the test set has classes that the training set lacks: {set(test.classes) - set(train.classes)}"
        )
    classes = train.classes
    return Data(train, test, ClassStats.from_labels(train.labels, len(classes)), classes, place)


def load_split(config: DataConfig, split: str, seed: int) -> tuple[Any, str]:
    """One split as it is evaluated, with ``classes`` and ``labels``, and where it lies."""
    data = load_data(replace(config, train_split=split, test_split=split, holdout=0.0), seed, label_lists=True)
    return data.test, data.place


def _splits(config: DataConfig) -> tuple[str, str]:
    """Where training and test samples come from: both from the training split if a part of it is held out."""
    return config.train_split, config.train_split if config.holdout else config.test_split


def open_data(config: DataConfig, seed: int, world: World) -> Data:
    """``load_data`` in every process of a run: the main one prepares a source on first use, the others wait for it."""
    data = load_data(config, seed) if world.is_main else None
    world.wait()
    return data or load_data(config, seed)


def _import(name: str) -> Any:
    module, _, attribute = name.partition(":")
    try:
        build = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"data.dataset={name} cannot be imported as 'package.module:Class': {error}") from None
    if "split" not in inspect.signature(build).parameters:
        raise ValueError(f"data.dataset={name} must take split='train' or 'test' as an argument")
    return build


def _folder(config: DataConfig) -> Path:
    if config.path is None:
        if config.source is None:
            raise ValueError("no data: set data.source, data.path or data.dataset")
        return prepare(config.source, config.options, config.root)
    folder = Path(config.path)
    if not folder.is_dir():
        raise ValueError(f"data.path={folder} is not a folder: it should hold {_EXPECTED.format(folder=folder)}")
    if list(folder.glob("*.tar")) and not (folder / DATASET_FILE).is_file():
        raise ValueError(f"the shards in {folder} have no index: make one with `ns-data index {folder}`")
    return folder


def _transforms(config: DataConfig) -> tuple[Any, Any]:
    if config.image_size is None:
        if config.augment != "none":
            raise ValueError(f"data.augment={config.augment} needs data.image_size")
        if config.eval_resize is not None:
            raise ValueError(f"data.eval_resize={config.eval_resize} needs data.image_size")
        return None, None
    options = {"size": config.image_size, **config.augment_options}
    return construct(AUGMENTS, config.augment, "augment", options), Fit(config.image_size, config.eval_resize)


def _open_shards(folder: Path, split: str, transform: Any, seed: int, on_error: str) -> Any:
    return ShardDataset(folder, split, transform, seed=seed, on_error=on_error)


def _open_folder(folder: Path, split: str, transform: Any, seed: int, on_error: str) -> Any:
    if on_error != "raise":
        raise ValueError(f"data.on_error={on_error} is for shards: class folders always raise")
    names = [split, "val"] if split == "test" else [split]
    for name in names:
        if (folder / name).is_dir():
            return FolderDataset(folder / name, transform, seed=seed)
    raise ValueError(
        f"{folder} holds neither shards nor a folder {' or '.join(names)}/: it should hold {_EXPECTED.format(folder=folder)}"
    )
