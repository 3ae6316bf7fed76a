"""How repeatable a score is, since that bounds what any selection by scores can do, and what raises it.

    python benchmarks/reliability.py [--seeds 3]

In one step of a training on digits (small CNN, 16x16, batch 128) the same samples are dealt into two independent random
groupings and scored twice. The table has the rank correlation of the two scores, over five batches, mean over seeds. A score
that were a property of its sample would repeat at 1; with groups of other members some change is right, as for `own`, which has
no composite: what `own` loses is the company's, what a composite loses beyond it the picture's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from toy import RESULTS, digits, machine, spearman, train

from ns_data import NSScorer, own_scores
from ns_data.layout import Layout
from ns_data.scoring.modes import scoring_mode

EPOCHS = (0, 1, 3, 10, 20)
Scoring = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]


def composite(**options) -> Scoring:
    return lambda model, images, labels, groups: NSScorer(model, **options)(images, labels, groups)


def own(model: nn.Module, images: Tensor, labels: Tensor, groups: Tensor) -> Tensor:
    with torch.no_grad(), scoring_mode(model, "batch"):
        return own_scores(model(images), labels, groups_GM=groups)


def mean_of(times: int, scoring: Scoring) -> Scoring:
    """Mean over that many random groupings, of which the first is the given one: costs as many passes."""

    def score(model: nn.Module, images: Tensor, labels: Tensor, groups: Tensor) -> Tensor:
        others = [random_groups(len(labels), groups.shape[1]) for _ in range(times - 1)]
        return torch.stack([scoring(model, images, labels, g) for g in [groups, *others]]).mean(0)

    return score


SCORINGS: dict[str, tuple[str, Scoring]] = {
    "m=2 (1x2)": ("1x2", composite(layout="1x2")),
    "m=4": ("2x2", composite()),
    "m=8 (2x4)": ("2x4", composite(layout="2x4")),
    "m=4, placements=2": ("2x2", composite(placements=2)),
    "m=4, placements=4": ("2x2", composite(placements=4)),
    "m=4, mean of 4 groupings": ("2x2", mean_of(4, composite())),
    "m=4, scale=0.5": ("2x2", composite(scale=0.5)),
    "m=4, running": ("2x2", composite(batch_norm="running")),
    "m=4, running, placements=4": ("2x2", composite(batch_norm="running", placements=4)),
    "own, m=4": ("2x2", own),
    "own, m=4, mean of 4 groupings": ("2x2", mean_of(4, own)),
}
GENERATOR = torch.Generator().manual_seed(0)


def random_groups(batch_size: int, group_size: int) -> Tensor:
    return torch.randperm(batch_size, generator=GENERATOR)[: batch_size // group_size * group_size].view(-1, group_size)


def repeatability(model: nn.Module, data: dict[str, Tensor]) -> dict[str, float]:
    model.train()
    found: dict[str, list[float]] = {name: [] for name in SCORINGS}
    for _ in range(5):
        ids = torch.randperm(len(data["labels"]), generator=GENERATOR)[:128]
        images, labels = data["images"][ids], data["labels"][ids]
        for name, (layout, scoring) in SCORINGS.items():
            m = Layout.parse(layout).group_size
            one, two = (scoring(model, images, labels, random_groups(128, m)) for _ in range(2))
            found[name].append(spearman(one, two))
    return {name: float(np.mean(values)) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    seen: dict[int, list[dict[str, float]]] = {epoch: [] for epoch in EPOCHS}
    for seed in range(args.seeds):
        data = digits(seed=seed, noise=0.0)

        def look(epoch: int, model: nn.Module, data: dict[str, Tensor] = data) -> None:
            if epoch in seen:
                seen[epoch].append(repeatability(model, data))

        train(data, epochs=max(EPOCHS), seed=seed, start_epoch=look)
        print(f"seed {seed}", flush=True)
    lines = [
        "# How repeatable a score is",
        "",
        f"`python benchmarks/reliability.py --seeds {args.seeds}` on {machine()}.",
        "Rank correlation between the scores of the same samples in two independent random groupings of one step, before",
        "training and after so many epochs (digits, small CNN, batch 128).",
        "",
        "| scores | " + " | ".join(f"epoch {epoch}" for epoch in EPOCHS) + " |",
        "|---" * (len(EPOCHS) + 1) + "|",
    ]
    for name in SCORINGS:
        cells = [f"{np.mean([run[name] for run in seen[epoch]]):.2f}" for epoch in EPOCHS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    text = "\n".join([*lines, ""])
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "reliability.md").write_text(text)


if __name__ == "__main__":
    main()
