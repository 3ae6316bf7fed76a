"""Dry run: what a config would do, without training: classes, laws, groups, weights, steps and cost."""

from __future__ import annotations

from typing import Any

import numpy as np

from ns_data.batching import GroupingBatchSampler
from ns_data.grouping import max_groups
from ns_data.scoring.weighting import WEIGHTINGS, Strength, mean_weight
from ns_data.training.config import Config
from ns_data.training.data import Data


def describe(config: Config, data: Data, batches: GroupingBatchSampler) -> str:
    """The dry run's text."""
    stats, ns, layout = data.stats, config.ns, batches.layout
    m = layout.group_size
    epoch = [np.array(batch) for batch in batches]
    report = batches.report
    ties, ties_at_random = _share_of_ties(epoch, data.train.labels, m), stats.share_of_groups_with_ties(m)
    rows: list[tuple[str, Any]] = [
        ("data", f"{data.place}: {stats.total} training and {len(data.test)} test samples"),
        ("classes", f"{stats.num_classes}, imbalance factor {stats.imbalance_factor:.1f}, sizes {_short(stats.counts)}"),
        ("sampling", f"{config.sampling.name}, class probabilities {_short(_law(batches, data))}"),
        (
            "groups",
            f"{ns.grouping}, {layout} ({m} members, by {layout.order}), {config.batch_size // m} a batch",
        ),
        ("ties", f"{ties:.1%} of the groups repeat a class ({ties_at_random:.1%} of random ones would)"),
        ("class-mixed bound", f"{max_groups(stats.counts, m) * m} of {stats.total} samples fit in groups of different classes"),
        ("an epoch", f"{len(batches)} steps, {report.samples} samples, {report.groups} groups"),
        ("set aside", f"{report.relaxed} relaxed, {report.ungrouped} ungrouped, {report.dropped} dropped"),
        ("training", f"{config.epochs} epochs, {config.epochs * len(batches)} steps"),
        *_weights(config, m),
    ]
    return "\n".join(f"{name:<18} {value}" for name, value in rows)


def _law(batches: GroupingBatchSampler, data: Data) -> np.ndarray:
    law = getattr(batches.sampler, "class_probabilities", None)
    return law(0) if law is not None else data.stats.counts / data.stats.total


def _short(values: np.ndarray, most: int = 10) -> str:
    shown = [f"{value:.3f}" if isinstance(value, float) else str(value) for value in values[:most].tolist()]
    return " ".join(shown) + (f" ... {values[-1]:.4g}" if len(values) > most else "")


def _share_of_ties(epoch: list[np.ndarray], labels: np.ndarray, group_size: int) -> float:
    """Share of the groups of an epoch that hold a class twice."""
    groups = np.concatenate([batch[: len(batch) // group_size * group_size] for batch in epoch]).reshape(-1, group_size)
    ordered = np.sort(labels[groups], axis=1)
    return float((ordered[:, 1:] == ordered[:, :-1]).any(axis=1).mean()) if len(groups) else 0.0


def _weights(config: Config, group_size: int) -> list[tuple[str, str]]:
    ns = config.ns
    if ns.weighting == "none":
        return [("weights", "1 (none): the baseline")]
    strength = Strength(ns.sigma, ns.rho, ns.start_epoch, ns.sigma_end, ns.rho_end)
    sigma, rho = strength.at(max(0, ns.start_epoch), config.epochs)
    mean = mean_weight(sigma, rho, group_size)
    scale = mean if ns.normalize else 1.0
    low, high = sorted((sigma, sigma + rho))
    effect = "normalised to mean 1" if ns.normalize else f"as learning rate x {mean:g} under SGD"
    formula = f"{ns.weighting}: {sigma:g} {'+' if rho >= 0 else '-'} {abs(rho):g} s"
    span = f"from {low / scale:g} to {high / scale:g}, mean {mean / scale:g}, {effect}"
    composites = WEIGHTINGS[ns.weighting].composites
    cost = f"about {1 / (3 * group_size):.1%} of a step (1 / 3m)" if composites else "none: no composites are made"
    return [("weights", f"{formula}, {span}"), ("scoring cost", cost)]
