"""digits: scikit-learn's 1,797 real handwritten digits, 8x8 pixels in 17 shades, as a small data set that is always at hand.

Train holds the first 150 of each class after a seeded shuffle, test the other 297. An exponential long tail keeps
n_k = int(150 * imbalance ** (-k / 9)) of class k (the form of "Learning Imbalanced Datasets with Label-Distribution-Aware
Margin Loss", Cao et al., 2019); symmetric noise gives that share of the training labels another class, uniformly. With
``classes="parity"`` the classes are even and odd, two as in sets of positive and negative pictures. Each sample's JSON member
keeps its row in scikit-learn's set and its true label.
"""

from __future__ import annotations

import os
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
