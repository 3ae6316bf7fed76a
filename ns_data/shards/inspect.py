"""Inspect: what a set of shards holds and what groups it allows, as text and as pictures."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ns_data.augment import Fit
from ns_data.grouping import max_groups
from ns_data.layout import Layout
from ns_data.shards.dataset import ShardDataset
from ns_data.stats import ClassStats

_GROUP_SIZES = (2, 4, 8, 16)
_BAR = 40
_ROWS = 25


def describe(
    folder: str | os.PathLike[str], split: str | None = None, *, index_dir: str | os.PathLike[str] | None = None
) -> tuple[str, ShardDataset]:
    """A page about one split (by default the first, or "train") and the data set behind it."""
    dataset = ShardDataset(folder, index_dir=index_dir)
    splits = dataset.description["splits"]
    split = split or ("train" if "train" in splits else next(iter(splits)))
    dataset = ShardDataset(folder, split, index_dir=index_dir)
    stats = ClassStats.from_labels(dataset.labels, len(dataset.classes))
    lines = [f"{folder}, split {split} (of {', '.join(splits)})"]
    lines.append(f"{stats.total:,} samples, {stats.num_classes} classes, imbalance factor {stats.imbalance_factor:.4g}")
    if stats.empty_classes.size:
        lines.append(f"{stats.empty_classes.size} classes have no sample, such as {dataset.classes[stats.empty_classes[0]]}")
    lines += ["", *_bars(stats, dataset.classes), "", *_sizes(dataset), "", *_groups(stats)]
    return "\n".join(lines), dataset


def _bars(stats: ClassStats, classes: list[str]) -> list[str]:
    """A line for each class, or for the largest, middle and smallest ones."""
    order = np.argsort(-stats.counts, kind="stable")
    if order.size > _ROWS:
        order = order[np.unique(np.linspace(0, order.size - 1, _ROWS).astype(int))]
    width = max(len(classes[k]) for k in order)
    longest = stats.counts.max()
    lines = [f"{classes[k]:>{width}} {stats.counts[k]:8,} {'#' * round(_BAR * stats.counts[k] / longest)}" for k in order]
    return lines + (
        [f"({stats.num_classes - len(order)} classes in between are not shown)"] if len(lines) < stats.num_classes else []
    )


def _sizes(dataset: ShardDataset) -> list[str]:
    """Bytes of all samples, and pixels of up to 200 spread over the set."""
    sizes = dataset.sizes()
    quartiles = np.percentile(sizes, [0, 50, 100])
    lines = [f"bytes a sample: {quartiles[0]:,.0f} / {quartiles[1]:,.0f} / {quartiles[2]:,.0f} (least, median, most)"]
    if dataset.description["kind"] == "image":
        some = np.unique(np.linspace(0, len(dataset) - 1, 200).astype(int))
        shapes = np.array([dataset.read(int(index)).shape[1:] for index in some])  # type: ignore[union-attr]
        low, middle, high = (np.percentile(shapes, q, axis=0) for q in (0, 50, 100))
        text = " / ".join(f"{h:.0f}x{w:.0f}" for h, w in (low, middle, high))
        lines.append(f"height x width: {text} (least, median, most of {len(some)} samples)")
    return lines


def _groups(stats: ClassStats) -> list[str]:
    """For each group size: how many random groups repeat a class or hold one only, and how many class-mixed ones there are."""
    lines = ["group size   random groups with a repeated class   of one class   class-mixed groups hold at most"]
    for m in _GROUP_SIZES:
        ties = stats.share_of_groups_with_ties(m)
        same = float(((stats.counts / stats.total) ** m).sum())
        bound = max_groups(stats.counts, m) * m
        lines.append(f"{m:10d} {100 * ties:35.1f} % {100 * same:12.2f} % {bound:22,} ({100 * bound / stats.total:.1f} %)")
    return lines


def draw(dataset: ShardDataset, out_dir: str | os.PathLike[str], *, layout: Layout | str = "2x2", size: int = 64) -> list[Path]:
    """Write ``classes.png``, a bar for each class, and ``composites.png``, a grid of random groups; their paths."""
    from matplotlib.figure import Figure

    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    counts = np.sort(np.bincount(dataset.labels, minlength=len(dataset.classes)))[::-1]
    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots()
    axes.bar(np.arange(counts.size), counts, width=1.0)
    axes.set(xlabel="class, by size", ylabel="samples", title=f"{len(dataset):,} samples of {counts.size} classes")
    figure.savefig(out / "classes.png", dpi=120)
    paths = [out / "classes.png"]
    if dataset.description["kind"] == "image":
        paths.append(out / "composites.png")
        _composites(dataset, Layout.parse(layout), size, paths[-1])
    return paths


def _composites(dataset: ShardDataset, layout: Layout, size: int, path: Path, count: int = 12) -> None:
    """Random groups as the scorer's pictures before they are scaled down: each cell ``size`` pixels."""
    from PIL import Image

    count = min(count, len(dataset) // layout.group_size)
    if count == 0:
        raise ValueError(f"{len(dataset)} samples make no group of layout {layout}")
    rng = np.random.default_rng(0)
    fit, none = Fit(size), np.empty(0)
    pictures: list[Any] = []
    for group in rng.choice(len(dataset), (count, layout.group_size), replace=False):
        canvas = torch.zeros(3, layout.rows * size + 4, layout.cols * size + 4, dtype=torch.uint8)
        for row, members in enumerate(layout.grid()):
            for column, member in enumerate(members):
                image = fit(dataset.read(int(group[member])), none)  # type: ignore[arg-type]
                canvas[:, row * size : (row + 1) * size, column * size : (column + 1) * size] = image
        pictures.append(canvas)
    columns = min(4, count)
    pictures += [torch.zeros_like(pictures[0])] * (-count % columns)
    rows = [torch.cat(pictures[start : start + columns], dim=2) for start in range(0, len(pictures), columns)]
    Image.fromarray(torch.cat(rows, dim=1).permute(1, 2, 0).contiguous().numpy()).save(path)
