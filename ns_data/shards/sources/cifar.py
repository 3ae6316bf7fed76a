"""cifar10, cifar100 and cifar_lt: the "python version" of CIFAR, whose pickles are read without executing what they ask for.

Long tail: n_k = int(n_max * mu ** (k / (K - 1))) with mu = 1 / imbalance, class k keeping the first n_k of its rows after a
seeded shuffle, classes in ascending order. Sources: "Learning Multiple Layers of Features from Tiny Images", Krizhevsky,
2009; "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss", Cao et al., 2019.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ns_data.choose import choose
from ns_data.shards.sources.samples import ArraySamples, write_splits
from ns_data.shards.tar import ShardError
from ns_data.shards.writer import write_shards


class _Version(NamedTuple):
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: str
    labels: str
    names: str


_VERSIONS = {
    "cifar10": _Version(
        "cifar-10-batches-py",
        tuple(f"data_batch_{number}" for number in range(1, 6)),
        ("test_batch",),
        "batches.meta",
        "labels",
        "label_names",
    ),
    "cifar100": _Version("cifar-100-python", ("train",), ("test",), "meta", "fine_labels", "fine_label_names"),
}


def write_cifar10(out_dir: str | os.PathLike[str], *, path: str | os.PathLike[str], **options: Any) -> dict[str, Any]:
    """CIFAR-10 from the folder ``cifar-10-batches-py``, or the one that holds it."""
    return _write(out_dir, path, "cifar10", None, 0, options)


def write_cifar100(out_dir: str | os.PathLike[str], *, path: str | os.PathLike[str], **options: Any) -> dict[str, Any]:
    """CIFAR-100 with its 100 fine classes, from the folder ``cifar-100-python``, or the one that holds it."""
    return _write(out_dir, path, "cifar100", None, 0, options)


def write_cifar_lt(
    out_dir: str | os.PathLike[str],
    *,
    path: str | os.PathLike[str],
    imbalance: float,
    dataset: str = "cifar10",
    tail_seed: int = 0,
    **options: Any,
) -> dict[str, Any]:
    """CIFAR-10-LT or CIFAR-100-LT: a long-tailed training split (``imbalance`` = n_max / n_min) and the whole test split."""
    return _write(out_dir, path, dataset, imbalance, tail_seed, options)


def long_tail_rows(labels: np.ndarray, imbalance: float, seed: int = 0) -> np.ndarray:
    """The rows that the long tail keeps, class after class."""
    if imbalance < 1:
        raise ValueError(f"imbalance must be at least 1, got {imbalance}")
    counts = np.bincount(labels)
    rng = np.random.RandomState(seed)  # the generator of the published sets
    kept = []
    for k in range(counts.size):
        rows = np.flatnonzero(labels == k)
        rng.shuffle(rows)
        kept.append(rows[: int(labels.size / counts.size * (1 / imbalance) ** (k / (counts.size - 1.0)))])
    return np.concatenate(kept)


def _write(
    out_dir: Any, path: Any, dataset: str, imbalance: float | None, tail_seed: int, options: dict[str, Any]
) -> dict[str, Any]:
    version = choose(_VERSIONS, dataset, "CIFAR version")
    root = Path(path)
    root = root / version.folder if (root / version.folder).is_dir() else root
    train_images, train_labels = _read_batches(root, version.train, version.labels)
    test_images, test_labels = _read_batches(root, version.test, version.labels)
    classes = [_text(name) for name in read_cifar_pickle(root / version.meta)[version.names]]
    made_by: dict[str, Any] = {"source": dataset}
    rows = np.arange(train_labels.size)
    if imbalance is not None:
        made_by |= {"source": "cifar_lt", "dataset": dataset, "imbalance": imbalance, "tail_seed": tail_seed}
        rows = long_tail_rows(train_labels, imbalance, tail_seed)
    parts = {
        "train": ArraySamples(train_images, train_labels[rows], rows),
        "test": ArraySamples(test_images, test_labels, np.arange(test_labels.size)),
    }
    options = {"samples_per_shard": 5000, **options}
    return write_splits(write_shards, parts, out_dir, classes=classes, made_by=made_by, **options)


def _read_batches(root: Path, names: tuple[str, ...], labels_key: str) -> tuple[np.ndarray, np.ndarray]:
    """Images of shape (N, 32, 32, 3) and labels."""
    batches = [read_cifar_pickle(root / name) for name in names]
    try:
        images = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        labels = np.concatenate([np.asarray(batch[labels_key], np.int64) for batch in batches])
    except (KeyError, ValueError, TypeError) as error:
        raise ShardError(f"{root}: {', '.join(names)} do not hold CIFAR's images and labels ({error!r})") from None
    if len(images) != len(labels):
        raise ShardError(f"{root}: {len(images)} images and {len(labels)} labels")
    return np.ascontiguousarray(images), labels


def read_cifar_pickle(path: Path) -> dict[str, Any]:
    """The dictionary of a CIFAR file: uint8 arrays, lists, numbers and strings. Anything else is refused, nothing is called."""
    if not path.is_file():
        raise ValueError(f"there is no {path}: give the folder of CIFAR's python version")
    with path.open("rb") as file:
        try:
            found = _Reader(file, encoding="bytes").load()
            return {_text(key): value.array() if isinstance(value, _Array) else value for key, value in found.items()}
        except (pickle.UnpicklingError, AttributeError, EOFError, IndexError, KeyError, TypeError, ValueError) as error:
            raise ShardError(f"{path} is not one of CIFAR's files: {error}") from None


class _Array:
    """Stands for an array while it is read: remembers its state, which only ``array`` looks at."""

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def array(self) -> np.ndarray:
        _, shape, dtype, fortran, data = self.state
        if not isinstance(dtype, _Dtype) or dtype.name not in (b"u1", "u1") or fortran or not isinstance(data, bytes):
            raise ValueError("an array is not of plain uint8")
        return np.frombuffer(data, np.uint8).reshape(shape)


class _Dtype:
    """Stands for a dtype."""

    def __init__(self, name: Any = None, *rest: Any) -> None:
        self.name = name

    def __setstate__(self, state: Any) -> None:
        pass


def _latin1(text: Any, encoding: Any) -> bytes:
    """How newer writers spell bytes in an old protocol."""
    if not isinstance(text, str):
        raise ValueError("not a text")
    return text.encode("latin1")


class _Reader(pickle.Unpickler):
    """Knows four names, and gives stand-ins of ours for them."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return lambda *arguments: _Array()
        if (module, name) == ("numpy", "ndarray"):
            return _Array
        if (module, name) == ("numpy", "dtype"):
            return _Dtype
        if (module, name) == ("_codecs", "encode"):
            return _latin1
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not called")


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
