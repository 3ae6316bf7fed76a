"""Plots of one run, from its folder: curves, scores by class, scores against class size, weights, and composites.

The score plots follow figures 2 to 4 of "Darwinian Optimization: Training Deep Networks with Natural Selection".
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from scipy.stats import linregress
from torch import Tensor

from ns_data.collate import GroupedBatch
from ns_data.layout import Layout
from ns_data.scoring.ledger import ScoreLedger
from ns_data.scoring.stitch import stitch
from ns_data.stats import ClassStats

POINTS_PER_CLASS = 200


def plot_run(run_dir: Path, stats: ClassStats, classes: list[str]) -> list[Path]:
    """Draw all plots that a run folder has data for, into its ``plots/``; return their paths."""
    metrics = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    ledger = ScoreLedger.load(run_dir / "scores.npz")
    figures = {
        "curves": curves(metrics),
        "scores_by_class": scores_by_class(ledger, classes),
        "score_against_class_size": score_against_class_size(ledger, stats, classes),
        "weights": weight_curves(ledger, metrics),
    }
    paths = []
    for name, figure in figures.items():
        path = run_dir / "plots" / f"{name}.png"
        save(figure, path)
        paths.append(path)
    return paths


def save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def curves(metrics: list[dict[str, Any]]) -> Figure:
    """Loss, accuracy and balanced accuracy over epochs."""
    epochs = [line["epoch"] + 1 for line in metrics]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    left.plot(epochs, [line["loss"] for line in metrics], label="training, unweighted")
    left.plot(epochs, [line["test_loss"] for line in metrics], label="test, cross-entropy")
    left.set(xlabel="epoch", ylabel="mean loss", yscale="log", title="Loss")
    left.legend()
    right.plot(epochs, [100 * line["accuracy"] for line in metrics], label="accuracy")
    right.plot(epochs, [100 * line["balanced_accuracy"] for line in metrics], label="balanced accuracy")
    right.set(xlabel="epoch", ylabel="%", title="Test set")
    right.legend()
    return figure


def scores_by_class(ledger: ScoreLedger, classes: list[str]) -> Figure:
    """Box plot of the samples' last scores in each class, with up to 200 sampled points (the paper's Fig. 3)."""
    scores, labels = ledger.last_by_sample(), ledger.labels()
    rng = np.random.default_rng(0)
    groups = [scores[labels == k] for k in range(len(classes))]
    figure, axes = plt.subplots(figsize=(max(5, 0.6 * len(classes)), 3.5), layout="constrained")
    axes.boxplot(groups, positions=range(len(classes)), showfliers=False, medianprops={"color": "black"})
    for k, group in enumerate(groups):
        shown = rng.permutation(group)[:POINTS_PER_CLASS]
        axes.plot(k + rng.uniform(-0.2, 0.2, shown.size), shown, ".", markersize=3, alpha=0.5)
    axes.set_xticks(range(len(classes)), classes, rotation=0 if len(classes) <= 12 else 90)
    axes.set(xlabel="class", ylabel="score", title="Natural-selection scores by class", ylim=(-0.02, 1.02))
    return figure


def score_against_class_size(ledger: ScoreLedger, stats: ClassStats, classes: list[str]) -> Figure:
    """Mean score of each class against its size, with the fitted line and Pearson's r (the paper's Fig. 4)."""
    means = ledger.mean_by_class()
    sizes = stats.counts[: means.size]
    figure, axes = plt.subplots(figsize=(5, 3.8), layout="constrained")
    axes.plot(sizes, means, "o")
    for k in range(means.size):
        if np.isfinite(means[k]):
            axes.annotate(classes[k], (sizes[k], means[k]), xytext=(4, 4), textcoords="offset points", fontsize=8)
    seen = np.isfinite(means)
    title = "Mean score against class size"
    if np.unique(sizes[seen]).size > 1:
        fit = linregress(sizes[seen], means[seen])
        ends = np.array([sizes[seen].min(), sizes[seen].max()])
        axes.plot(ends, fit.intercept + fit.slope * ends, color="gray")
        title += f", r = {fit.rvalue:.2f}" if np.isfinite(fit.rvalue) else ""
    axes.set(xlabel="samples in the class", ylabel="mean score", title=title)
    return figure


def weight_curves(ledger: ScoreLedger, metrics: list[dict[str, Any]]) -> Figure:
    """Weights of the samples, sorted, at the last scores and strength (the paper's Fig. 2), beside the other sign of rho."""
    scores = np.sort(ledger.last_by_sample())
    scores = scores[np.isfinite(scores)]
    sigma, rho = metrics[-1]["sigma"], metrics[-1]["rho"]
    figure, axes = plt.subplots(figsize=(5, 3.8), layout="constrained")
    share = np.linspace(0, 100, scores.size)
    axes.plot(share, sigma + rho * scores, label=f"this run: {sigma:g} {'+' if rho >= 0 else '-'} {abs(rho):g} s")
    axes.axhline(1, color="gray", linewidth=0.8, label="baseline")
    axes.axhline(metrics[-1]["mean_weight"], linestyle=":", label="mean weight")
    axes.set(xlabel="% of the samples, by score", ylabel="weight", title="Loss weights")
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure


def plot_composites(
    batch: GroupedBatch,
    layout: Layout,
    classes: list[str],
    path: Path,
    scores_B: Tensor | None = None,
    weights_B: Tensor | None = None,
    most: int = 12,
) -> None:
    """A grid of composites; every tile tells its label and, if given, its score and weight."""
    images = batch.images.float()
    low, high = images.min(), images.max()
    groups = batch.groups[:most]
    composites = stitch((images - low) / (high - low).clamp(min=1e-6), layout, groups)
    columns = min(4, len(groups))
    rows = -(-len(groups) // columns)
    figure, all_axes = plt.subplots(rows, columns, figsize=(2.6 * columns, 2.6 * rows), layout="constrained", squeeze=False)
    for axes in all_axes.reshape(-1):
        axes.axis("off")
    for axes, picture, members in zip(all_axes.reshape(-1), composites, groups, strict=False):
        axes.imshow(picture.expand(3, -1, -1).permute(1, 2, 0).numpy(), extent=(0, 1, 1, 0))
        for row, cells in enumerate(layout.grid()):
            for col, member in enumerate(cells):
                text = _tile_text(int(members[member]), batch, classes, scores_B, weights_B)
                place = ((col + 0.03) / layout.cols, (row + 0.03) / layout.rows)
                axes.text(*place, text, color="white", fontsize=7, va="top", bbox={"color": "black", "alpha": 0.6, "pad": 1})
    save(figure, path)


def _tile_text(
    position: int, batch: GroupedBatch, classes: list[str], scores_B: Tensor | None, weights_B: Tensor | None
) -> str:
    text = classes[int(batch.labels[position])]
    if scores_B is not None:
        text += f"  s {scores_B[position]:.2f}"
    if weights_B is not None:
        text += f"  w {weights_B[position]:.2f}"
    return text
