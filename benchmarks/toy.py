"""What the scoring benchmarks share: the digits as tensors, one training loop, rank correlation, the machine's name."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from ns_data import NSCollator, ShuffleSampler, create_model
from ns_data.batching import GroupingBatchSampler
from ns_data.layout import Layout

RESULTS = Path(__file__).parent / "results"
NUM_CLASSES, PER_CLASS = 10, 150


def digits(*, size: int = 16, noise: float = 0.0, imbalance: float = 1, seed: int = 0) -> dict[str, Tensor]:
    """Train (150 a class, or an exponential tail of them) and test tensors of scikit-learn's digits, scaled up to ``size``."""
    data = load_digits()
    images = torch.tensor(data.images / 16, dtype=torch.float32)[:, None]
    images = F.interpolate((images - images.mean()) / images.std(), size=(size, size), mode="bilinear").expand(-1, 3, -1, -1)
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(np.flatnonzero(data.target == k)) for k in range(NUM_CLASSES)]
    kept = [int(PER_CLASS * imbalance ** (-k / (NUM_CLASSES - 1))) for k in range(NUM_CLASSES)]
    train = np.concatenate([r[:n] for r, n in zip(rows, kept, strict=True)])
    test = np.concatenate([r[PER_CLASS:] for r in rows])
    labels = data.target[train].copy()
    wrong = rng.permutation(len(train))[: round(noise * len(train))]
    labels[wrong] = (labels[wrong] + rng.integers(1, NUM_CLASSES, wrong.size)) % NUM_CLASSES
    is_wrong = np.zeros(len(train), bool)
    is_wrong[wrong] = True
    return {
        "images": images[train].contiguous(),
        "labels": torch.tensor(labels),
        "wrong": torch.tensor(is_wrong),
        "test_images": images[test].contiguous(),
        "test_labels": torch.tensor(data.target[test]),
    }


def batches(labels: Tensor, batch_size: int, layout: Layout, seed: int, epoch: int, grouping: str = "random"):
    """(ids_B, groups_GM) of one epoch."""
    sampler = ShuffleSampler(len(labels), seed=seed)
    plan = GroupingBatchSampler(sampler, batch_size, labels=labels, layout=layout, grouping=grouping, seed=seed, drop_last=True)
    sampler.set_epoch(epoch)
    collate = NSCollator(layout, lambda ids: (torch.tensor(ids), torch.tensor(ids), torch.tensor(ids)))
    for ids in plan:
        batch = collate(list(ids))
        yield batch.images, batch.groups


def train(
    data: dict[str, Tensor],
    weigh: Callable[[nn.Module, Tensor, Tensor, Tensor, Tensor], Callable[[Tensor], Tensor]] | None = None,
    *,
    model: nn.Module | None = None,
    epochs: int = 15,
    batch_size: int = 128,
    layout: str = "2x2",
    lr: float = 0.1,
    seed: int = 0,
    start_epoch: Callable[[int, nn.Module], None] = lambda epoch, model: None,
) -> nn.Module:
    """SGD with momentum and a cosine schedule. ``weigh(model, images, labels, groups, ids)`` is called before the training
    pass of a step and returns a function from its logits to weights."""
    torch.manual_seed(seed)
    if model is None:
        model = create_model("small_cnn", NUM_CLASSES)
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=5e-4)
    for epoch in range(epochs):
        start_epoch(epoch, model)
        model.train()
        optimizer.param_groups[0]["lr"] = lr * (1 + np.cos(np.pi * epoch / epochs)) / 2
        for ids, groups in batches(data["labels"], batch_size, Layout.parse(layout), seed, epoch):
            images, labels = data["images"][ids], data["labels"][ids]
            weights_of = weigh(model, images, labels, groups, ids) if weigh else torch.ones_like
            logits = model(images)
            loss_B = F.cross_entropy(logits, labels, reduction="none")
            weights = weights_of(logits.detach()) if weigh else torch.ones_like(loss_B)
            optimizer.zero_grad()
            (weights * loss_B).mean().backward()
            optimizer.step()
    start_epoch(epochs, model)
    return model


@torch.no_grad()
def evaluate(model: nn.Module, data: dict[str, Tensor]) -> tuple[float, float]:
    """Accuracy in percent and loss on the test images."""
    model.eval()
    logits = model(data["test_images"])
    accuracy = (logits.argmax(1) == data["test_labels"]).float().mean()
    return 100 * float(accuracy), float(F.cross_entropy(logits, data["test_labels"]))


def spearman(a: Tensor, b: Tensor) -> float:
    """Rank correlation, ties at their mean rank; NaN if one is constant."""
    from scipy.stats import spearmanr

    if a.min() == a.max() or b.min() == b.max():
        return float("nan")
    return float(spearmanr(a.cpu().numpy(), b.cpu().numpy()).statistic)


def machine() -> str:
    """One line: processor, cores, versions."""
    name = platform.processor() or "CPU"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = names[0] if names else name
    cores = f"{os.cpu_count()} cores, {torch.get_num_threads()} used"
    return f"{name}, {cores}; torch {torch.__version__}, Python {platform.python_version()}"
