"""Figures of scores: weight curves, box plots by class, class size and accuracy against the mean score; a panel a run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ns_data.compare.analysis import Correlation, class_pairs, class_points, score_boxes, weight_curve
from ns_data.compare.scored import ScoredRun

MAX_BOXES = 100  # classes of a box plot; of more, evenly spaced ones by size are shown
MAX_NAMES = 20  # classes whose points are named


def draw_analysis(runs: list[ScoredRun], found: dict[tuple[str, int], Correlation]) -> dict[str, Figure]:
    """All figures by name."""
    figures = {"weights": weights(runs), "scores_by_class": scores_by_class(runs)}
    figures["score_against_class_size"] = against(runs, found, "size")
    figures["accuracy_against_score"] = against(runs, found, "accuracy")
    if len(runs) > 1 and found:
        figures["correlations"] = correlation_intervals(runs, found)
    return figures


def _panels(runs: list[ScoredRun], width: float, height: float, columns: int, **options: Any) -> tuple[Figure, list[Axes]]:
    columns = min(columns, math.ceil(math.sqrt(len(runs))))
    rows = math.ceil(len(runs) / columns)
    size = (width * columns, height * rows + 0.3)
    figure, all_axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False, **options)
    for axes in all_axes.flat[len(runs) :]:
        axes.axis("off")
    return figure, list(all_axes.flat[: len(runs)])


def _titled(runs: list[ScoredRun], panels: list[Axes]) -> Iterator[tuple[int, ScoredRun, Axes]]:
    for number, (run, axes) in enumerate(zip(runs, panels, strict=True)):
        axes.set_title(run.name, fontsize=10)
        axes.grid(alpha=0.25)
        yield number, run, axes


def weights(runs: list[ScoredRun]) -> Figure:
    """Loss weight of up to 10,000 samples by rising score: it rises for winners (rho above 0) and falls for losers."""
    figure, panels = _panels(runs, 4.6, 3.4, 3, sharey=True)
    for _, run, axes in _titled(runs, panels):
        ids = weight_curve(run)
        weights = run.weights_N[ids]
        axes.plot(np.arange(1, ids.size + 1), weights, color="tab:blue", label="weight of the sample")
        mean = float(np.nanmean(run.weights_N))
        axes.axhline(mean, color="tab:orange", linestyle="--", label=f"mean weight {mean:.2f}")
        axes.axhline(1, color="black", linewidth=0.8, linestyle=":", label="baseline, every weight 1")
        axes.set_ylim(0, None)
        axes.set(xlabel=f"{ids.size:,} samples, by rising score", ylabel="loss weight")
        axes.legend(fontsize=8)
    panels[0].set_ylim(0, 1.15 * max(1.0, *(float(np.nanmax(run.weights_N)) for run in runs)))
    figure.suptitle("Loss weights of the samples, sorted by score")
    return figure


def scores_by_class(runs: list[ScoredRun]) -> Figure:
    """Box plot of the samples' last scores in each class, by falling class size, over up to 200 of its samples as points."""
    shown = {number: _shown_classes(run) for number, run in enumerate(runs)}
    longest = max(len(ks) for ks in shown.values())
    figure, panels = _panels(runs, max(6.5, 1.2 + 0.26 * longest), 3.6, 3 if longest <= 12 else 1)
    for number, run, axes in _titled(runs, panels):
        boxes, rng = score_boxes(run), np.random.default_rng(0)
        places = np.arange(len(shown[number]))
        for place, k in zip(places, shown[number], strict=True):
            points = run.last_N[class_points(run, k)]
            jitter = place + rng.uniform(-0.25, 0.25, points.size)
            axes.plot(jitter, points, ".", markersize=4, alpha=0.5, color=f"C{place % 10}", markeredgewidth=0, rasterized=True)
        line = {"color": "black", "linewidth": 1}
        drawn = [boxes[k] for k in shown[number]]
        axes.bxp(
            drawn, positions=places, widths=0.6, showfliers=False, manage_ticks=False, boxprops=line, whiskerprops=line,
            capprops=line, medianprops={"color": "black", "linewidth": 2},
        )  # fmt: skip
        names = [f"{run.classes[k]}\n{run.sizes_K[k]}" for k in shown[number]]
        upright = len(names) > 25 or max(map(len, names)) > 12
        axes.set_xticks(places, names, fontsize=7, rotation=90 if upright else 0)
        some = f" ({len(names)} of {(run.sizes_K > 0).sum()}, evenly spaced)" if len(names) < (run.sizes_K > 0).sum() else ""
        axes.set(xlabel=f"class and its samples, by falling size{some}", ylabel="score", ylim=(-0.03, 1.03))
        axes.set_xlim(-0.8, len(names) - 0.2)
    figure.suptitle("Last scores of the samples in each class\nmedian, quartiles, whiskers to 1.5 ranges, up to 200 samples")
    return figure


def _shown_classes(run: ScoredRun) -> list[int]:
    """Classes with scores by falling size, thinned out evenly if they are very many."""
    order = np.argsort(-run.sizes_K, kind="stable")
    order = order[run.sizes_K[order] > 0]
    return order[np.unique(np.linspace(0, order.size - 1, min(order.size, MAX_BOXES)).round().astype(int))].tolist()


def against(runs: list[ScoredRun], found: dict[tuple[str, int], Correlation], kind: str) -> Figure:
    """A dot a class, the regression line, r and rho with their 95 % intervals."""
    figure, panels = _panels(runs, 4.6, 3.8, 4)
    for number, run, axes in _titled(runs, panels):
        pairs = next(pairs for pairs in class_pairs(run) if pairs.figure == kind)
        tested = np.isfinite(pairs.x_K) & np.isfinite(pairs.y_K)
        axes.plot(pairs.x_K, pairs.y_K, "o", markersize=4 if tested.sum() > MAX_NAMES else 6, alpha=0.8)
        if tested.sum() <= MAX_NAMES:
            for k in np.flatnonzero(tested):
                place = (pairs.x_K[k], pairs.y_K[k])
                axes.annotate(run.classes[k], place, xytext=(4, 4), textcoords="offset points", fontsize=7)
        c = found.get((kind, number))
        if c is not None:
            ends = np.array([np.nanmin(pairs.x_K[tested]), np.nanmax(pairs.x_K[tested])])
            axes.plot(ends, c.intercept + c.slope * ends, color="tab:red", linewidth=1.2)
        axes.set_title(f"{run.name}\n{_in_words(c, int(tested.sum()))}", fontsize=9)
        axes.set(xlabel=pairs.x_label, ylabel=pairs.y_label)
        axes.margins(0.08)
    figure.suptitle(next(pairs.title for pairs in class_pairs(runs[0]) if pairs.figure == kind))
    return figure


def _in_words(c: Correlation | None, classes: int) -> str:
    if c is None:
        return f"no correlation is defined ({classes} classes)"
    r = f"Pearson r = {c.r:.2f}" + (f" [{c.r_low:.2f}, {c.r_high:.2f}]" if np.isfinite(c.r_low) else "")
    rho = f"Spearman ρ = {c.rho:.2f}" + (f" [{c.rho_low:.2f}, {c.rho_high:.2f}]" if np.isfinite(c.rho_low) else "")  # noqa: RUF001
    return f"{r}, {rho}"


def correlation_intervals(runs: list[ScoredRun], found: dict[tuple[str, int], Correlation]) -> Figure:
    """r and rho of every run beside each other, with their intervals."""
    kinds = list(dict.fromkeys(figure for figure, _ in found))
    titles = {pairs.figure: pairs.title for pairs in class_pairs(runs[0])}
    figure, all_axes = plt.subplots(
        1, len(kinds), figsize=(1.5 + 4.2 * len(kinds), 1.6 + 0.4 * len(runs)), sharey=True, layout="constrained", squeeze=False
    )
    for kind, axes in zip(kinds, all_axes[0], strict=True):
        for shift, color, marker, name in ((-0.14, "tab:blue", "o", "r"), (0.14, "tab:red", "s", "rho")):
            mine = [(number, c) for (what, number), c in found.items() if what == kind]
            values = np.array([getattr(c, name) for _, c in mine])
            ends = np.array([[getattr(c, f"{name}_low"), getattr(c, f"{name}_high")] for _, c in mine])
            spans = np.nan_to_num(np.abs(ends - values[:, None])).T
            places = np.array([number for number, _ in mine]) + shift
            label = {"r": "Pearson r", "rho": "Spearman ρ"}[name]  # noqa: RUF001
            axes.errorbar(values, places, xerr=spans, fmt=marker, color=color, markersize=5, capsize=2, label=label)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set(xlim=(-1.05, 1.05), xlabel="correlation and 95 % interval")
        axes.set_title(titles[kind], fontsize=10)
        axes.grid(alpha=0.25)
    all_axes[0, 0].set_yticks(range(len(runs)), [run.name for run in runs], fontsize=8)
    all_axes[0, 0].set_ylim(len(runs) - 0.5, -0.5)  # first on top
    figure.legend(*all_axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    figure.suptitle("Correlations over classes, run by run")
    return figure
