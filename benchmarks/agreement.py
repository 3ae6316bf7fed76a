"""How well approximate modes keep the result of training by exact scores, on digits.

    python benchmarks/agreement.py [--seeds 6]

A small CNN is trained on digits with a 50:1 tail (16x16, batch 64, 30 epochs) under NS-LF (sigma 2, rho -1, m = 4), once for
each mode and seed, on identical batches and initial weights. The table has the test accuracy, its paired difference to exact
scores with a 95 % interval (t), and the rank correlation of the mode's scores with the exact ones of the same network and step,
mean over the training. `constant` and `own` are the controls: the same mean weight, without selection or without composites.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn
from toy import RESULTS, digits, evaluate, machine, spearman, train

from ns_data import NSScorer, ScoreLedger, ns_weights, own_scores

MODES: dict[str, dict[str, Any] | None] = {
    "exact": {},
    "bfloat16": {"dtype": torch.bfloat16},
    "bfloat16, channels_last": {"dtype": torch.bfloat16, "channels_last": True},
    "scale=0.5": {"scale": 0.5},
    "every=2": {"every": 2},
    "every=4": {"every": 4},
    "placements=4": {"placements": 4},
    "running": {"batch_norm": "running"},
    "own": None,
    "constant": None,
}


def run(mode: str, seed: int, epochs: int) -> tuple[float, float]:
    """Test accuracy and the mean rank correlation with exact scores."""
    data = digits(imbalance=50, seed=seed)
    scorers: dict[str, NSScorer] = {}
    correlations: list[float] = []

    def start(epoch: int, model: nn.Module) -> None:
        if epoch == 0:
            options = MODES[mode] or {}
            if "every" in options:
                options = {**options, "ledger": ScoreLedger(len(data["labels"]))}
            scorers["mode"], scorers["exact"] = NSScorer(model, **options), NSScorer(model)

    def weigh(model: nn.Module, images: Tensor, labels: Tensor, groups: Tensor, ids: Tensor) -> Callable[[Tensor], Tensor]:
        exact = scorers["exact"](images, labels, groups)
        scores = None if MODES[mode] is None else scorers["mode"](images, labels, groups, ids)

        def weights(logits: Tensor) -> Tensor:
            if mode == "constant":
                return torch.full_like(exact, 1.75)
            by = own_scores(logits, labels, groups_GM=groups) if scores is None else scores
            correlations.append(spearman(by, exact))
            return ns_weights(by, sigma=2.0, rho=-1.0)

        return weights

    model = train(data, weigh, epochs=epochs, batch_size=64, lr=0.05, seed=seed, start_epoch=start)
    return evaluate(model, data)[0], float(np.nanmean(correlations)) if correlations else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=30)
    args = parser.parse_args()
    accuracy = {mode: np.zeros(args.seeds) for mode in MODES}
    rho = {mode: np.zeros(args.seeds) for mode in MODES}
    for seed in range(args.seeds):
        for mode in MODES:
            accuracy[mode][seed], rho[mode][seed] = run(mode, seed, args.epochs)
        print(seed, {mode: round(float(values[seed]), 2) for mode, values in accuracy.items()}, flush=True)
    lines = [
        "# What approximate scores change in a training",
        "",
        f"`python benchmarks/agreement.py --seeds {args.seeds} --epochs {args.epochs}` on {machine()}.",
        f"Digits with a 50:1 tail, small CNN, NS-LF at m = 4; {args.seeds} paired seeds.",
        "",
        "| scores | rho with exact | test accuracy, mean +- std | difference to exact, 95 % interval |",
        "|---|---|---|---|",
    ]
    for mode, values in accuracy.items():
        difference = values - accuracy["exact"]
        half = stats.t.ppf(0.975, args.seeds - 1) * difference.std(ddof=1) / np.sqrt(args.seeds)
        against = "" if mode == "exact" else f"{difference.mean():+.2f} +- {half:.2f}"
        correlation = "" if np.isnan(rho[mode]).all() else f"{rho[mode].mean():.2f}"
        lines.append(f"| {mode} | {correlation} | {values.mean():.2f} +- {values.std(ddof=1):.2f} | {against} |")
    text = "\n".join([*lines, ""])
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "agreement.md").write_text(text)


if __name__ == "__main__":
    main()
