"""Numbers of an evaluation, from logits and labels counted batch by batch.

All but the loss is counted in integers and summed exactly, so batches in any order, on any number of ranks, give the same.
Accuracies are shares from 0 to 1. Calibration error as in "On Calibration of Modern Neural Networks", Guo, Pleiss, Sun and
Weinberger; many, medium and few shot as in "Large-Scale Long-Tailed Recognition in an Open World", Liu, Miao, Zhan, Wang,
Gong and Yu.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch import distributed as dist

CALIBRATION_BINS = 15
MANY_SHOT, FEW_SHOT = 100, 20  # training samples of a class: more than the first, fewer than the second
_ONE = 1 << 30  # confidences are summed as multiples of 1 / _ONE


class Evaluation:
    """Counts of an evaluation: ``update`` with each batch, ``summed_over_ranks`` if there are several, ``numbers`` at the end.

    Nothing waits for the device before ``numbers``. A row of logits that holds NaN or +inf is a wrong prediction, left out of
    loss and calibration error and counted as invalid.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        self.num_classes = num_classes
        # Row: label; column: prediction, the last one for rows of logits that predict nothing.
        self.confusion_KP = torch.zeros(num_classes, num_classes + 1, dtype=torch.int64, device=device)
        self.top5_K = torch.zeros(num_classes, dtype=torch.int64, device=device)  # by label
        # Of each bin: samples, correct ones, sum of confidences.
        self.calibration_N3 = torch.zeros(CALIBRATION_BINS, 3, dtype=torch.int64, device=device)
        precision = torch.float32 if torch.device(device).type == "mps" else torch.float64  # all that the device has
        self.loss = torch.zeros((), dtype=precision, device=device)  # sum of cross-entropies

    @torch.no_grad()
    def update(self, logits_BK: Tensor, labels_B: Tensor) -> None:
        """Count a batch. Raises ``ValueError`` for logits of another number of classes and, on the CPU, labels out of range."""
        K = self.num_classes
        if logits_BK.ndim != 2 or logits_BK.shape[1] != K or labels_B.shape != logits_BK.shape[:1]:
            raise ValueError(
                f"logits of shape {tuple(logits_BK.shape)} and labels of shape {tuple(labels_B.shape)} do not fit an "
                f"evaluation of {K} classes: one row of {K} logits and one label a sample are needed"
            )
        if labels_B.device.type == "cpu" and labels_B.numel() and not 0 <= labels_B.min() <= labels_B.max() < K:
            wrong = labels_B[(labels_B < 0) | (labels_B >= K)][0]
            raise ValueError(f"label {int(wrong)} is out of range for an evaluation of {K} classes")
        labels_B = labels_B.long()
        logits_BK = logits_BK.float()
        predicted_B = logits_BK.argmax(dim=1)
        confidence_B = torch.softmax(logits_BK, dim=1).amax(dim=1)
        valid_B = confidence_B.isfinite()
        correct_B = valid_B & (predicted_B == labels_B)
        ones_B = torch.ones_like(labels_B)
        cell_B = labels_B * (K + 1) + torch.where(valid_B, predicted_B, K)
        self.confusion_KP.view(-1).index_add_(0, cell_B, ones_B)
        loss_B = F.cross_entropy(logits_BK, labels_B, reduction="none").to(self.loss.dtype)
        self.loss += torch.where(valid_B, loss_B, 0).sum()
        first_five_B5 = logits_BK.topk(min(5, K), dim=1).indices
        in_five_B = valid_B & (first_five_B5 == labels_B[:, None]).any(dim=1)
        self.top5_K.index_add_(0, labels_B, in_five_B.long())
        # Bin i holds the confidences in (i / N, (i + 1) / N].
        edges = torch.linspace(0, 1, CALIBRATION_BINS + 1, device=logits_BK.device)[1:-1]
        confidence_B = confidence_B.nan_to_num()
        sums_B3 = torch.stack([ones_B, correct_B.long(), (confidence_B * _ONE).round().long()], dim=1)
        self.calibration_N3.index_add_(0, torch.bucketize(confidence_B, edges), sums_B3 * valid_B.long()[:, None])

    def summed_over_ranks(self) -> Evaluation:
        """The evaluation of all ranks together, on every rank; a copy if there is one process. Call it on all ranks."""
        total = Evaluation(self.num_classes, self.confusion_KP.device)
        for name in ("confusion_KP", "top5_K", "calibration_N3", "loss"):
            counts = getattr(self, name).clone()
            if dist.is_available() and dist.is_initialized():
                dist.all_reduce(counts)
            setattr(total, name, counts)
        return total

    def numbers(self, training_counts: Any = None) -> dict[str, float]:
        """All numbers by name.

        ``samples``, ``invalid``, ``accuracy``, ``top5_accuracy`` if there are more than five classes, ``balanced_accuracy``,
        ``test_loss`` (mean cross-entropy) and ``calibration_error``, both NaN without valid samples; and with
        ``training_counts``, the number of training samples of each class (K,), ``many_shot``, ``medium_shot`` and
        ``few_shot``, of which one without evaluated classes has no entry.

        Raises ``ValueError`` if nothing was counted.
        """
        samples = int(self.confusion_KP.sum())
        if samples == 0:
            raise ValueError("no samples were evaluated: the split is empty or update was not called")
        accuracy_K = per_class_accuracy(self.confusion_KP)
        result: dict[str, float] = {"samples": samples, "invalid": int(self.confusion_KP[:, -1].sum())}
        valid = samples - result["invalid"]
        result["accuracy"] = int(self.confusion_KP.diagonal().sum()) / samples
        if self.num_classes > 5:
            result["top5_accuracy"] = int(self.top5_K.sum()) / samples
        result["balanced_accuracy"] = balanced_accuracy(accuracy_K)
        result["test_loss"] = float(self.loss) / valid if valid else float("nan")
        result["calibration_error"] = calibration_error(self.calibration_N3)
        if training_counts is not None:
            result |= shot_accuracies(accuracy_K, training_counts)
        return result


def per_class_accuracy(confusion_KP: Tensor) -> np.ndarray:
    """Share of each class's samples that are predicted as it, shape (K,), float64; NaN for a class without samples.

    >>> per_class_accuracy(torch.tensor([[3, 1], [0, 0]]))
    array([0.75,  nan])
    """
    confusion = confusion_KP.cpu().numpy()
    samples_K = confusion.sum(axis=1)
    return np.divide(confusion.diagonal(), samples_K, out=np.full(len(confusion), np.nan), where=samples_K > 0)


def balanced_accuracy(accuracy_K: np.ndarray) -> float:
    """Mean of the accuracies of the classes that have samples."""
    return float(np.nanmean(accuracy_K))


def shot_accuracies(
    accuracy_K: np.ndarray, training_counts: Any, many: int = MANY_SHOT, few: int = FEW_SHOT
) -> dict[str, float]:
    """Mean accuracy of the classes with more than ``many`` training samples, with fewer than ``few``, and of those between.

    >>> shot_accuracies(np.array([1.0, 0.5, 0.4, np.nan]), [500, 101, 100, 5])
    {'many_shot': 0.75, 'medium_shot': 0.4}
    """
    counts_K = np.asarray(training_counts)
    if counts_K.shape != accuracy_K.shape:
        raise ValueError(f"{counts_K.size} training counts do not fit {accuracy_K.size} classes: one for each class is needed")
    if few > many:
        raise ValueError(f"few={few} must not be more than many={many}")
    kinds = {
        "many_shot": counts_K > many,
        "medium_shot": (counts_K >= few) & (counts_K <= many),
        "few_shot": counts_K < few,
    }
    evaluated_K = ~np.isnan(accuracy_K)
    return {kind: float(accuracy_K[in_K & evaluated_K].mean()) for kind, in_K in kinds.items() if (in_K & evaluated_K).any()}


def calibration_error(calibration_N3: Tensor) -> float:
    """Expected calibration error: sum over the bins of n_b / n |accuracy_b - mean confidence_b|; NaN without valid samples."""
    samples_N, correct_N, confidence_N = calibration_N3.cpu().numpy().astype(np.float64).T
    total = samples_N.sum()
    return float(np.abs(correct_N - confidence_N / _ONE).sum() / total) if total else float("nan")
