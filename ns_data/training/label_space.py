"""Label space: which logit of a network belongs to each class of another data set; and evaluation on lists of labels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

_WORDNET_ID = re.compile(r"n\d{8}")


def map_classes(num_logits: int, logit_names: Sequence[str] | None, data_names: Sequence[str]) -> np.ndarray:
    """The logit of each class of a data set, shape (K,).

    By name where the network's class names are known and the data set's are among them, so that a part of its classes will
    do. Bare numbers as names are ids: of a network whose classes are WordNet's, in the order of ImageNet's ids, the sorted one.
    Else both must have the same number of classes, and the ids are the same.

    >>> map_classes(3, ["ant", "bee", "cat"], ["cat", "ant"]).tolist()
    [2, 0]

    Raises ``ValueError`` for numbers of classes that differ and for names that do.
    """
    data_are_ids = list(data_names) == [str(k) for k in range(len(data_names))]
    if logit_names is not None and not data_are_ids:
        place = {name: k for k, name in enumerate(logit_names)}
        if all(name in place for name in data_names):
            return np.array([place[name] for name in data_names])
        if list(logit_names) != [str(k) for k in range(len(logit_names))]:
            strange = [name for name in data_names if name not in place]
            raise ValueError(
                f"{len(strange)} of the data's {len(data_names)} classes ({', '.join(strange[:3])}) are not among the "
                f"{num_logits} that the network was trained on: evaluate it on data of its classes"
            )
    if num_logits != len(data_names):
        raise ValueError(
            f"the checkpoint is of {num_logits} classes, the data has {len(data_names)}: evaluate it on data of its classes"
        )
    if logit_names is not None and data_are_ids and all(_WORDNET_ID.fullmatch(name) for name in logit_names):
        return np.argsort(np.asarray(logit_names), kind="stable")
    return np.arange(num_logits)


def right_logits(lists: Sequence[Sequence[int]], logits_of_K: np.ndarray, num_logits: int) -> Tensor:
    """Which logits are right for each sample, shape (N, ``num_logits``), bool. ``ValueError`` for a label out of range."""
    right_NK = torch.zeros(len(lists), num_logits, dtype=torch.bool)
    for row, labels in enumerate(lists):
        if max(labels) >= logits_of_K.size:
            raise ValueError(f"sample {row} has label {max(labels)}, beyond the {logits_of_K.size} classes of its data set")
        right_NK[row, torch.from_numpy(logits_of_K[list(labels)])] = True
    return right_NK


class ListEvaluation:
    """Counts of an evaluation on lists of labels: a prediction is right if it is in the sample's list.

    A row of logits that holds NaN or +inf is a wrong prediction and counted as invalid.
    """

    def __init__(self) -> None:
        self.samples = self.invalid = self.correct = self.in_five = self.labels = 0

    @torch.no_grad()
    def update(self, logits_BK: Tensor, right_BK: Tensor) -> None:
        """Count a batch: logits and which of them are right."""
        if logits_BK.shape != right_BK.shape:
            raise ValueError(f"logits of shape {tuple(logits_BK.shape)} and labels of {tuple(right_BK.shape)} do not fit")
        valid_B = torch.softmax(logits_BK.float(), dim=1).amax(dim=1).isfinite()
        hits_B5 = right_BK.gather(1, logits_BK.float().topk(min(5, logits_BK.shape[1]), dim=1).indices)
        self.samples += len(logits_BK)
        self.invalid += int((~valid_B).sum())
        self.correct += int((valid_B & hits_B5[:, 0]).sum())
        self.in_five += int((valid_B & hits_B5.any(dim=1)).sum())
        self.labels += int(right_BK.sum())

    def numbers(self) -> dict[str, Any]:
        """``accuracy`` and ``top5_accuracy`` (shares of the samples), ``test_samples``, ``invalid_predictions``, and the mean
        number of right labels of a sample."""
        if self.samples == 0:
            raise ValueError("no samples were evaluated: the split is empty or update was not called")
        return {
            "accuracy": self.correct / self.samples,
            "top5_accuracy": self.in_five / self.samples,
            "labels_per_sample": self.labels / self.samples,
            "test_samples": self.samples,
            "invalid_predictions": self.invalid,
        }
