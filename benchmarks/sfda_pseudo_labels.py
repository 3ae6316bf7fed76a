"""What SHOT's pseudo-labels cost beside a plain evaluation: one pass gives both.

    python benchmarks/sfda_pseudo_labels.py [--repeats 15]

A plain evaluation (``ns_data.training.evaluate``) and the pass with pseudo-labels (``look`` of examples/shot.py), in turns, on
the same network and images in memory; the ratio is that of the medians of processor time. Limit: 1.1. The networks are far
smaller than Office-Home's ResNet-50 at 224 pixels: the centroids cost the same with any network, so there they weigh less.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from toy import RESULTS, machine

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from shot import ShotNet, look

from ns_data import ClassStats
from ns_data.training.evaluate import evaluate

# what it stands for: network, samples, side of the images, classes, bottleneck
CASES = {
    "digits stand-in": ("small_cnn", 447, 16, 10, 64),
    "Office-Home's size, a small network": ("small_cnn", 4357, 16, 65, 256),
    "ResNet-18 at 32x32": ("resnet18", 512, 32, 65, 256),
}


def seconds(call: Callable[[], object]) -> float:
    """Processor time, which other programs on the machine disturb little."""
    start = time.process_time()
    call()
    return time.process_time() - start


def measure(name: str, samples: int, side: int, classes: int, bottleneck: int, repeats: int) -> tuple[float, float]:
    """Median seconds of (a plain evaluation, the pass with pseudo-labels), taken in turns."""
    torch.manual_seed(0)
    model = ShotNet(name, classes, bottleneck=bottleneck)
    images, labels = torch.randn(samples, 3, side, side), torch.arange(samples) % classes
    batches = [(images[i : i + 256], labels[i : i + 256]) for i in range(0, samples, 256)]
    stats = ClassStats(np.bincount(labels.numpy(), minlength=classes))

    def same(images: Tensor) -> Tensor:
        return images

    plain: list[float] = []
    labelling: list[float] = []
    for repeat in range(repeats + 1):
        taken = seconds(lambda: evaluate(model, batches, same, stats)), seconds(lambda: look(model, batches, same, stats))
        if repeat:  # the first is a warm-up
            plain.append(taken[0])
            labelling.append(taken[1])
    return statistics.median(plain), statistics.median(labelling)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    lines = [
        "# Pseudo-labels of source-free adaptation",
        "",
        f"`python benchmarks/sfda_pseudo_labels.py --repeats {args.repeats}` on {machine()}.",
        "",
        "| | samples | classes | plain evaluation, CPU time | with pseudo-labels | ratio |",
        "|---|---|---|---|---|---|",
    ]
    for title, (name, samples, side, classes, bottleneck) in CASES.items():
        plain, labelling = measure(name, samples, side, classes, bottleneck, args.repeats)
        times = f"{1000 * plain:.0f} ms | {1000 * labelling:.0f} ms | {labelling / plain:.3f}"
        lines.append(f"| {title} | {samples} | {classes} | {times} |")
        print(lines[-1], flush=True)
    (RESULTS / "sfda_pseudo_labels.md").write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
