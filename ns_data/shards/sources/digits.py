"""digits: scikit-learn's 1,797 real handwritten digits, 8x8 pixels in 17 shades, as a small data set that is always at hand.

`digits` has a training and a test split, balanced or not, clean or not; `digits_domain` has domains that look different.

Train holds the first 150 of each class after a seeded shuffle, test the other 297. An exponential long tail keeps
n_k = int(150 * imbalance ** (-k / 9)) of class k (the form of "Learning Imbalanced Datasets with Label-Distribution-Aware
Margin Loss", Cao et al., 2019); symmetric noise gives that share of the training labels another class, uniformly. With
``classes="parity"`` the classes are even and odd, two as in sets of positive and negative pictures. Each sample's JSON member
keeps its row in scikit-learn's set and its true label.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ns_data.choose import choose
from ns_data.shards.writer import write_shards

_PER_CLASS = 150
_NUM_CLASSES = 10
# Names of the classes, the class of digit d being d % their number.
_CLASSES = {"digit": [str(d) for d in range(_NUM_CLASSES)], "parity": ["even", "odd"]}


def write_digits(
    out_dir: str | os.PathLike[str],
    *,
    imbalance: float = 1,
    noise: float = 0.0,
    classes: str = "digit",
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Write train and test shards; return what ``dataset.json`` says.

    ``imbalance`` is n_max / n_min of the training split's digits, ``noise`` the share of its labels that are wrong,
    ``classes`` what is told apart: digit or parity.
    """
    names = choose(_CLASSES, classes, "classes of digits")
    if not 1 <= imbalance <= _PER_CLASS:
        raise ValueError(f"imbalance must be between 1 and {_PER_CLASS}, got {imbalance}")
    if not 0 <= noise < 1:
        raise ValueError(f"noise must be at least 0 and below 1, got {noise}")
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    rng = np.random.default_rng(seed)
    rows_of = [rng.permutation(np.flatnonzero(digits.target == k)) for k in range(_NUM_CLASSES)]
    kept = [int(_PER_CLASS * imbalance ** (-k / (_NUM_CLASSES - 1))) for k in range(_NUM_CLASSES)]
    rows = {
        "train": np.concatenate([rows[:n] for rows, n in zip(rows_of, kept, strict=True)]),
        "test": np.concatenate([rows[_PER_CLASS:] for rows in rows_of]),
    }
    true_labels = digits.target.astype(np.int64) % len(names)
    labels = {
        "train": _with_noise(true_labels[rows["train"]], noise, len(names), rng),
        "test": true_labels[rows["test"]],
    }
    made_by = {"source": "digits", "imbalance": imbalance, "noise": noise, "classes": classes, "seed": seed}
    description: dict[str, Any] = {}
    for split in ("train", "test"):
        samples = [
            (images[row], int(label), {"row": int(row), "true_label": int(true_labels[row])})
            for row, label in zip(rows[split], labels[split], strict=True)
        ]
        description = write_shards(
            samples,
            Path(out_dir),
            split=split,
            classes=names,
            seed=seed,
            samples_per_shard=500,
            made_by=made_by,
            progress=progress,
        )
    return description


def _with_noise(labels: np.ndarray, noise: float, num_classes: int, rng: np.random.Generator) -> np.ndarray:
    """Exactly round(noise * N) labels moved to one of the other classes."""
    labels = labels.copy()
    wrong = rng.permutation(labels.size)[: round(noise * labels.size)]
    labels[wrong] = (labels[wrong] + rng.integers(1, num_classes, wrong.size)) % num_classes
    return labels


def write_digits_domain(
    out_dir: str | os.PathLike[str], *, domain: str, seed: int = 0, progress: bool = True
) -> dict[str, Any]:
    """One of four domains, a quarter of the digits each, scaled up to 16x16: plain, inverted, rotated, noisy.

    The quarters are drawn by ``seed`` within each class and share no digit. ``rotated`` is turned by 25 degrees, ``inverted``
    is dark on light, ``noisy`` is blurred and has Gaussian noise. All samples are in the split ``train``.
    """
    from scipy.ndimage import zoom
    from sklearn.datasets import load_digits

    change, part = choose(_DOMAINS, domain, "domain of the digits"), list(_DOMAINS).index(domain)
    digits, rng = load_digits(), np.random.default_rng([seed, part])
    rows = _quarter(digits.target, part, seed)
    images = [change(zoom(digits.images[row] / 16, 2, order=1), rng) for row in rows]
    pixels = np.round(np.clip(images, 0, 1) * 255).astype(np.uint8)
    samples = [(image, int(digits.target[row]), {"row": int(row)}) for image, row in zip(pixels, rows, strict=True)]
    return write_shards(
        samples,
        Path(out_dir),
        split="train",
        classes=[str(k) for k in range(_NUM_CLASSES)],
        seed=seed,
        made_by={"source": "digits_domain", "domain": domain, "seed": seed},
        progress=progress,
    )


def _plain(image_HW: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return image_HW


def _inverted(image_HW: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return 1 - image_HW


def _rotated(image_HW: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    from scipy.ndimage import rotate

    return rotate(image_HW, 25, reshape=False, order=1)


def _noisy(image_HW: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(image_HW, 1) + rng.normal(0, 0.2, image_HW.shape)


# change(image, rng) -> image, both (16, 16) in about [0, 1].
_DOMAINS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "plain": _plain,
    "inverted": _inverted,
    "rotated": _rotated,
    "noisy": _noisy,
}


def _quarter(labels: np.ndarray, part: int, seed: int) -> np.ndarray:
    """Rows of one of four parts, of the same class shares and without common rows."""
    rng = np.random.default_rng(seed)
    by_class = [rng.permutation(np.flatnonzero(labels == k)) for k in range(_NUM_CLASSES)]
    return np.concatenate([np.array_split(rows, len(_DOMAINS))[part] for rows in by_class])
