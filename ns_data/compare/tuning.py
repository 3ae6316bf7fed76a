"""Tuning: every method tries the same learning rates on a held-out part of the training set; its best one is used.

The test set takes no part. A rate at which a run's loss became infinite or NaN is out; equal rates: the lower one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ns_data.compare.config import Comparison, Method, Run, make_run
from ns_data.compare.jobs import last_line
from ns_data.compare.results import metrics, unfinished

DIVERGED = "was not a finite number"  # what train.py's last line says when it ends for this reason


def tuning_runs(comparison: Comparison, methods: list[Method]) -> list[Run]:
    """Methods x rates x tuning seeds."""
    tuning = comparison.tuning
    return [make_run(comparison, m, seed, lr, tuning=True) for seed in tuning.seeds for m in methods for lr in tuning.lr]


def diverged(run: Run) -> bool:
    return unfinished(run.folder) is not None and DIVERGED in last_line(run.log)


def choose_rates(comparison: Comparison, runs: list[Run]) -> dict[str, dict[str, Any]]:
    """By method: the chosen ``lr``, every rate's mean ``score``, what diverged, and whether the choice lies at the grid's edge.

    Raises ``ValueError`` for a method of which no rate is left.
    """
    grid = sorted(comparison.tuning.lr)
    chosen: dict[str, dict[str, Any]] = {}
    for method in dict.fromkeys(run.method for run in runs):
        mine = [run for run in runs if run.method == method]
        out = sorted({run.lr for run in mine if run.lr is not None and diverged(run)})
        score = {lr: _score(comparison, [run for run in mine if run.lr == lr]) for lr in grid if lr not in out}
        if not score:
            raise ValueError(f"method {method} diverged at every rate of tuning.lr={grid}: add lower ones")
        best = max(score, key=lambda lr: (score[lr], -lr))
        edge = len(grid) > 1 and best in (grid[0], grid[-1])
        named = {f"{lr:g}": round(value, 6) for lr, value in score.items()}
        chosen[method] = {"lr": best, "score": named, "diverged": out, "edge": edge}
    return chosen


def _score(comparison: Comparison, runs: list[Run]) -> float:
    values = [float(metrics(run.folder)[-1][comparison.tuning.metric]) for run in runs]
    return float(np.mean(values))
