"""Evaluation: one pass over a data set in evaluation mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader


@torch.no_grad()
def evaluate(
    model: nn.Module, loader: DataLoader[Any], to_input: Callable[[Tensor], Tensor], num_classes: int
) -> dict[str, Any]:
    """Accuracy, balanced accuracy (mean recall of the classes that occur), mean cross-entropy, recall of each class.

    ``to_input`` moves and normalises a batch of images. Shares are in [0, 1]; the recall of an absent class is ``None``.
    """
    training = model.training
    model.eval()
    confusion = np.zeros((num_classes, num_classes), np.int64)  # true, predicted
    loss = 0.0
    for images, labels, _ in loader:
        logits = model(to_input(images)).float().cpu()
        loss += float(nn.functional.cross_entropy(logits, labels, reduction="sum"))
        np.add.at(confusion, (labels.numpy(), logits.argmax(1).numpy()), 1)
    model.train(training)
    counts, hits = confusion.sum(1), confusion.diagonal()
    recall = np.divide(hits, counts, out=np.full(num_classes, np.nan), where=counts > 0)
    return {
        "accuracy": float(hits.sum() / counts.sum()),
        "balanced_accuracy": float(np.nanmean(recall)),
        "test_loss": loss / int(counts.sum()),
        "recall": [None if np.isnan(r) else round(float(r), 6) for r in recall],
    }
