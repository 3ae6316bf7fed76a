"""Figures of a comparison: values of all runs, paired differences, accuracy over epochs, and recall differences by class."""

from __future__ import annotations

import math
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from ns_data.compare.results import Results
from ns_data.compare.statistics import mean_std
from ns_data.compare.tables import METRICS, Difference, present, recalls

PANELS = 30  # of curves in a figure; more methods make more figures
MAX_CLASSES = 40  # columns of the class figure, beyond which only the tables tell


def draw(results: Results, to_baseline: list[Difference]) -> dict[str, Figure]:
    """All figures by name."""
    figures = {"values": values(results)}
    if to_baseline:
        figures["differences"] = differences(to_baseline)
    names = [entry["name"] for entry in present(results)]
    pages = [names[first : first + PANELS] for first in range(0, len(names), PANELS)]
    for number, page in enumerate(pages, 1):
        figures["curves" if len(pages) == 1 else f"curves_{number}"] = curves(results, page)
    classes = class_differences(results)
    if classes is not None:
        figures["classes"] = classes
    return figures


def values(results: Results) -> Figure:
    """A dot for each run, and mean ± standard deviation."""
    entries = present(results)
    figure, all_axes = plt.subplots(
        1, 2, figsize=(10, 1.2 + 0.26 * len(entries)), sharey=True, layout="constrained", squeeze=False
    )
    places = np.arange(len(entries))
    for axes, (metric, name) in zip(all_axes[0], METRICS.items(), strict=True):
        for place, entry in zip(places, entries, strict=True):
            found = list(results.values(entry["name"], metric).values())
            moments = mean_std(found)
            color = _color(entry, results)
            axes.plot(found, np.full(len(found), place), "o", markersize=3, alpha=0.5, color=color, markeredgewidth=0)
            axes.errorbar(moments.mean, place, xerr=np.nan_to_num(moments.std), fmt="|", color=color, markersize=9, capsize=2)
        axes.set(xlabel=f"{name} %, last epoch")
        axes.grid(axis="x", alpha=0.3)
    all_axes[0, 0].set_yticks(places, [entry["name"] for entry in entries], fontsize=8)
    all_axes[0, 0].set_ylim(len(entries) - 0.4, -0.6)  # first on top
    return figure


def _color(entry: dict[str, Any], results: Results) -> str:
    if entry["name"] == results.manifest["baseline"]:
        return "black"
    if entry["control_of"]:
        return "tab:gray"
    return "tab:red" if entry["settings"]["ns.weighting"] == "ns" else "tab:blue"


def differences(found: list[Difference]) -> Figure:
    """Paired differences to the baseline, their mean and bootstrap interval."""
    methods = list(dict.fromkeys(d.method for d in found))
    figure, all_axes = plt.subplots(
        1, 2, figsize=(10, 1.2 + 0.26 * len(methods)), sharey=True, layout="constrained", squeeze=False
    )
    for axes, (metric, name) in zip(all_axes[0], METRICS.items(), strict=True):
        for d in (d for d in found if d.metric == metric):
            place = methods.index(d.method)
            axes.plot(
                d.values, np.full(len(d.values), place), "o", markersize=3, alpha=0.5, color="tab:gray", markeredgewidth=0
            )
            span = np.nan_to_num([[d.mean - d.low], [d.high - d.mean]]).clip(min=0)
            axes.errorbar(d.mean, place, xerr=span, fmt="|", color="tab:blue", markersize=9, capsize=2)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set(xlabel=f"{name}, minus the baseline's, points")
        axes.grid(axis="x", alpha=0.3)
    all_axes[0, 0].set_yticks(range(len(methods)), methods, fontsize=8)
    all_axes[0, 0].set_ylim(len(methods) - 0.4, -0.6)  # first on top
    return figure


def curves(results: Results, names: list[str]) -> Figure:
    """Balanced accuracy over epochs, a panel a method, the baseline in gray: mean and a band of ± one standard deviation."""
    baseline = results.manifest["baseline"]
    columns = min(5, len(names))
    rows = math.ceil(len(names) / columns)
    figure, all_axes = plt.subplots(
        rows, columns, figsize=(2.3 * columns, 0.4 + 1.7 * rows), sharex=True, sharey=True, squeeze=False
    )
    reference = _band(results, baseline) if results.runs.get(baseline) else None
    for axes, name in zip(all_axes.flat, names, strict=False):
        for band, color in ((reference, "gray"), (_band(results, name), "tab:blue")):
            if band is not None:
                epochs, mean, std = band
                axes.plot(epochs, mean, color=color, linewidth=1)
                axes.fill_between(epochs, mean - std, mean + std, color=color, alpha=0.25, linewidth=0)
        axes.set_title(name, fontsize=8)
        axes.tick_params(labelsize=7)
    for axes in all_axes.flat[len(names) :]:
        axes.axis("off")
    figure.supxlabel("epoch", fontsize=9)
    figure.supylabel("balanced accuracy %", fontsize=9)
    figure.tight_layout()
    return figure


def _band(results: Results, method: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(epochs, mean, standard deviation) over seeds; the deviation of a single seed is drawn as none."""
    found = [[100 * line["balanced_accuracy"] for line in run.lines] for run in results.runs[method].values()]
    array = np.array(found)
    std = array.std(0, ddof=1) if len(array) > 1 else np.zeros(array.shape[1])
    return np.arange(1, array.shape[1] + 1), array.mean(0), std


def class_differences(results: Results) -> Figure | None:
    """Mean recall difference to the baseline of every class, as a map; none for one method or very many classes."""
    baseline = results.manifest["baseline"]
    entries = [entry for entry in present(results) if entry["name"] != baseline]
    theirs = recalls(results, baseline)
    rows, names = [], []
    for entry in entries:
        ours = recalls(results, entry["name"])
        paired = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
        if paired:
            rows.append(np.mean(paired, axis=0))
            names.append(entry["name"])
    if not rows or len(rows[0]) > MAX_CLASSES or len({len(row) for row in rows}) > 1:
        return None
    table, entry = np.array(rows), entries[0]
    figure, axes = plt.subplots(figsize=(3 + 0.45 * table.shape[1], 1.4 + 0.24 * len(names)), layout="constrained")
    limit = max(1.0, float(np.nanmax(np.abs(table))))
    image = axes.imshow(table, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
    labels = [f"{name}\n{count}" for name, count in zip(entry["classes"], entry["class_counts"], strict=True)]
    axes.set_xticks(range(len(labels)), labels, fontsize=7)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set(xlabel="class, training samples", title="Recall minus the baseline's, points")
    figure.colorbar(image, ax=axes)
    return figure
