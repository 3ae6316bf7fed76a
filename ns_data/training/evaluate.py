"""Evaluation: one pass over a data set in evaluation mode."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ns_data.stats import ClassStats
from ns_data.training.metrics import Evaluation, per_class_accuracy


@torch.no_grad()
def evaluate(
    model: nn.Module, loader: Iterable[Any], to_input: Callable[[Tensor], Tensor], stats: ClassStats
) -> dict[str, Any]:
    """The numbers of ``Evaluation``, with the training counts of ``stats``, and ``recall``, the accuracy of each class.

    ``to_input`` moves and normalises a batch of images. Each process has a loader of its own share of the samples; the
    numbers are those of all. The recall of a class without samples is ``None``.
    """
    training = model.training
    model.eval()
    counts = Evaluation(stats.num_classes, next(model.parameters()).device)
    for images, labels, *_ in loader:
        logits = model(to_input(images))
        counts.update(logits, labels.to(logits.device))
    model.train(training)
    counts = counts.summed_over_ranks()
    numbers = counts.numbers(stats.counts)
    numbers |= {"test_samples": numbers.pop("samples"), "invalid_predictions": numbers.pop("invalid")}
    recall = per_class_accuracy(counts.confusion_KP)
    return {**numbers, "recall": [None if np.isnan(share) else round(float(share), 6) for share in recall]}
