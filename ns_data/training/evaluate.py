"""Evaluation: one pass over a data set in evaluation mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ns_data.training.distributed import World


@torch.no_grad()
def evaluate(
    model: nn.Module, loader: DataLoader[Any], to_input: Callable[[Tensor], Tensor], num_classes: int, world: World
) -> dict[str, Any]:
    """Accuracy, balanced accuracy (mean recall of the classes that occur), mean cross-entropy, recall of each class.

    ``to_input`` moves and normalises a batch of images. Each process has a loader of its own share of the samples; the
    numbers are those of all. Shares are in [0, 1]; the recall of an absent class is ``None``.
    """
    training = model.training
    model.eval()
    confusion = torch.zeros((num_classes, num_classes), dtype=torch.float64)  # true, predicted
    loss = torch.zeros(1, dtype=torch.float64)
    for images, labels, _ in loader:
        logits = model(to_input(images)).float().cpu()
        loss += nn.functional.cross_entropy(logits, labels, reduction="sum")
        confusion += torch.bincount(labels * num_classes + logits.argmax(1), minlength=num_classes**2).view(confusion.shape)
    model.train(training)
    pooled = world.sum(torch.cat([loss, confusion.reshape(-1)])).cpu()
    loss, confusion = pooled[0], pooled[1:].view(confusion.shape)
    counts, hits = confusion.sum(1).numpy(), confusion.diagonal().numpy()
    recall = np.divide(hits, counts, out=np.full(num_classes, np.nan), where=counts > 0)
    return {
        "accuracy": float(hits.sum() / counts.sum()),
        "balanced_accuracy": float(np.nanmean(recall)),
        "test_loss": float(loss) / float(counts.sum()),
        "recall": [None if np.isnan(r) else round(float(r), 6) for r in recall],
    }
