"""Scored runs: what a finished run folder says of its samples' scores and weights. Nothing else is read, no data.

Any program may have left the folder: it needs ``config.yaml``, ``metrics.jsonl``, ``scores.npz`` and ``done``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ns_data.compare.results import metrics, read_settings, unfinished
from ns_data.layout import Layout
from ns_data.scoring.ledger import ScoreLedger


class ScoredRun(NamedTuple):
    """A finished run: arrays over samples N (by id) and classes K. NaN: no score, or a class that was not tested."""

    name: str
    folder: Path
    settings: dict[str, Any]  # flat
    lines: list[dict[str, Any]]  # of metrics.jsonl
    last_N: np.ndarray  # last score
    labels_N: np.ndarray  # as training last saw them, pseudo-labels included; -1 without a score
    epochs_N: np.ndarray  # of the last score; -1 without one
    weights_N: np.ndarray  # at the last score
    classes: list[str]
    sizes_K: np.ndarray  # samples with a score, by label
    scores_K: np.ndarray  # mean over all scores of the run
    accuracy_K: np.ndarray  # on the test set, in the last epoch


def read_scored(place: Path) -> ScoredRun:
    """Read a run folder; ``ValueError`` in one sentence for one that is not finished or has no scores."""
    why = unfinished(place)
    if why is not None:
        raise ValueError(f"{place} is left out: {why}")
    if not (place / "scores.npz").is_file():
        raise ValueError(f"{place} is left out: it has no scores.npz")
    settings, lines = read_settings(place), metrics(place)
    ledger = ScoreLedger.load(place / "scores.npz")
    labels_N = ledger.labels()
    seen_N = labels_N >= 0
    if not seen_N.any():
        raise ValueError(f"{place} is left out: no sample has a score in its scores.npz")
    recall = lines[-1].get("recall") or []
    names = json.loads((place / "done").read_text()).get("classes") or []
    K = max(len(recall), len(names), int(labels_N.max()) + 1)
    sizes_K = np.bincount(labels_N[seen_N], minlength=K)
    scores_K, accuracy_K = np.full(K, np.nan), np.full(K, np.nan)
    by_class = ledger.mean_by_class()
    scores_K[: by_class.size] = by_class
    accuracy_K[: len(recall)] = [np.nan if share is None else share for share in recall]
    last_N, epochs_N = ledger.last_by_sample(), ledger.last_epoch_by_sample()
    if epochs_N.max() >= len(lines):
        raise ValueError(f"{place} is left out: its scores.npz is of epoch {epochs_N.max()}, its metrics.jsonl ends before")
    return ScoredRun(
        name=str(settings.get("name") or place.name),
        folder=place,
        settings=settings,
        lines=lines,
        last_N=last_N,
        labels_N=labels_N,
        epochs_N=epochs_N,
        weights_N=loss_weights(settings, lines, last_N, labels_N, epochs_N, sizes_K),
        classes=[*names, *map(str, range(len(names), K))],
        sizes_K=sizes_K,
        scores_K=scores_K,
        accuracy_K=accuracy_K,
    )


def loss_weights(
    settings: dict[str, Any],
    lines: list[dict[str, Any]],
    scores_N: np.ndarray,
    labels_N: np.ndarray,
    epochs_N: np.ndarray,
    sizes_K: np.ndarray,
) -> np.ndarray:
    """The weight that each sample's loss had when it was last scored, shape (N,); NaN without a score.

    sigma + rho * score at the strength of that epoch, as the run's weighting has it: 1 for ``none`` and before
    ``ns.start_epoch``, by class size for ``inverse_frequency``, and divided by the mean weight with ``ns.normalize``.
    """
    sigma_E, rho_E = (np.array([line.get(key, settings.get(f"ns.{key}")) for line in lines], float) for key in ("sigma", "rho"))
    sigma_N, rho_N = sigma_E[epochs_N], rho_E[epochs_N]
    group_size = Layout.parse(str(settings.get("ns.layout", "2x2"))).group_size
    mean_N = sigma_N + rho_N / group_size
    weighting = settings.get("ns.weighting", "ns")
    started_N = epochs_N >= settings.get("ns.start_epoch", 0)
    if weighting == "none":
        weights_N = np.ones(scores_N.size)
    elif weighting == "inverse_frequency":
        frequent_N = sizes_K[labels_N] * (sizes_K > 0).sum() / sizes_K.sum()
        weights_N = np.where(started_N, mean_N / np.maximum(frequent_N, 1e-12), 1.0)
    else:
        weights_N = np.where(started_N, sigma_N + rho_N * scores_N, 1.0)
    if settings.get("ns.normalize"):
        weights_N = weights_N / mean_N
    return np.where(np.isfinite(scores_N), weights_N, np.nan)
