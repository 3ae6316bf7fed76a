"""Samplers beside their peers: the time of an epoch, of its first batch, and the bytes a sample.

    python benchmarks/samplers.py            # about 15 minutes on two cores
    python benchmarks/samplers.py --quick    # the size of ImageNet only, 3 rounds

Every sampler yields lists of 256 ids that are dropped at once. Times are given as multiples of NumPy's
``permutation(N).reshape(-1, 256).tolist()`` per id, run just before each of them in the same process; medians of the rounds. A
second baseline makes its lists row by row, which spares NumPy the memory for N Python integers. Peers that would take minutes
are measured on their first 100,000 ids ("part"). Bytes are peaks of the epoch over what was there before it, by tracemalloc
in a pass of its own; building is not in the figures, nor are the labels (2 bytes).
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import time
import tracemalloc
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch.utils.data import BatchSampler, RandomSampler, WeightedRandomSampler

from ns_data import (
    ClassBalancedSampler,
    GroupingBatchSampler,
    ProgressivelyBalancedSampler,
    ShuffleSampler,
    SquareRootSampler,
)

RESULTS = Path(__file__).parent / "results"
BATCH = 256
PART = 100_000
Make = Callable[[np.ndarray, int], Iterable[list[int]]]  # (labels, epoch) -> batches


def numpy_whole(labels: np.ndarray, epoch: int) -> Iterable[list[int]]:
    ids = np.random.default_rng(epoch).permutation(labels.size)
    return ids[: labels.size // BATCH * BATCH].reshape(-1, BATCH).tolist()


def numpy_rows(labels: np.ndarray, epoch: int) -> Iterable[list[int]]:
    ids = np.random.default_rng(epoch).permutation(labels.size)
    return (row.tolist() for row in ids[: labels.size // BATCH * BATCH].reshape(-1, BATCH))


def grouped(sampler: Callable[[np.ndarray], object], grouping: str) -> Callable[[np.ndarray], Make]:
    def build(labels: np.ndarray) -> Make:
        batches = GroupingBatchSampler(sampler(labels), BATCH, labels=labels, layout="2x2", grouping=grouping)  # type: ignore[arg-type]

        def make(_: np.ndarray, epoch: int) -> Iterable[list[int]]:
            batches.set_epoch(epoch)
            return batches

        return make

    return build


def of_torch(sampler: Callable[[np.ndarray], object]) -> Callable[[np.ndarray], Make]:
    def build(labels: np.ndarray) -> Make:
        batches = BatchSampler(sampler(labels), BATCH, False)  # type: ignore[arg-type]
        return lambda _labels, _epoch: batches

    return build


def in_batches(sampler: Callable[[np.ndarray], Iterable[int]]) -> Callable[[np.ndarray], Make]:
    def build(labels: np.ndarray) -> Make:
        ids = sampler(labels)

        def batches() -> Iterable[list[int]]:
            rest = iter(ids)
            while batch := list(islice(rest, BATCH)):
                yield batch

        return lambda _labels, _epoch: batches()

    return build


OURS = {
    "class_mixed": grouped(lambda y: ShuffleSampler(y.size), "class_mixed"),
    "random groups": grouped(lambda y: ShuffleSampler(y.size), "random"),
    "same_class": grouped(lambda y: ShuffleSampler(y.size), "same_class"),
    "rivals": grouped(lambda y: ShuffleSampler(y.size), "rivals"),
    "CBS": grouped(ClassBalancedSampler, "random"),
    "SRS": grouped(SquareRootSampler, "random"),
    "PBS": grouped(lambda y: ProgressivelyBalancedSampler(y, num_epochs=12), "random"),
    "CBS, class_mixed": grouped(ClassBalancedSampler, "class_mixed"),
    "CBS, cycle": grouped(lambda y: ClassBalancedSampler(y, cycle=True), "random"),
}


def peers() -> dict[str, Callable[[np.ndarray], Make]]:
    """Those that are installed; "(part)" marks the slow ones."""
    found = {
        "torch RandomSampler": of_torch(lambda y: RandomSampler(y)),
        "torch WeightedRandomSampler": of_torch(
            lambda y: WeightedRandomSampler(1 / np.bincount(y)[y], y.size)  # type: ignore[arg-type]
        ),
    }
    try:
        from torchdata.stateful_dataloader.sampler import RandomSampler as Stateful

        found["torchdata RandomSampler"] = of_torch(lambda y: Stateful(range(y.size)))  # type: ignore[arg-type]
    except ImportError:
        print("torchdata is not installed: left out")
    try:
        from pytorch_metric_learning.samplers import MPerClassSampler

        found["pytorch-metric-learning MPerClassSampler (part)"] = in_batches(
            lambda y: MPerClassSampler(y, 4, BATCH, PART // BATCH * BATCH)
        )
    except ImportError:
        print("pytorch-metric-learning is not installed: left out")
    try:
        from torchsampler import ImbalancedDatasetSampler

        found["imbalanced-dataset-sampler"] = in_batches(
            lambda y: ImbalancedDatasetSampler(range(y.size), labels=y.tolist())  # type: ignore[arg-type]
        )
    except ImportError:
        print("imbalanced-dataset-sampler is not installed: left out")
    return found


def labels_of(num: int, classes: int, factor: float) -> np.ndarray:
    """Counts that fall geometrically by ``factor`` from the first class to the last, in random order."""
    shares = factor ** -np.linspace(0, 1, classes)
    counts = np.maximum(1, (shares / shares.sum() * num).astype(np.int64))
    counts[: max(0, num - int(counts.sum()))] += 1
    counts[0] += num - counts.sum()
    return np.random.default_rng(0).permutation(np.repeat(np.arange(classes, dtype=np.int16), counts))


def timed(make: Make, labels: np.ndarray, epoch: int) -> tuple[float, float]:
    """(seconds to the first batch, seconds an id)."""
    gc.collect()
    start = time.perf_counter()
    first, count = 0.0, 0
    for batch in make(labels, epoch):
        count += len(batch)
        first = first or time.perf_counter() - start
    return first, (time.perf_counter() - start) / count


def peak_bytes(make: Make, labels: np.ndarray) -> float:
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for _ in make(labels, 99):
        pass
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    return peak / labels.size


def measure(
    num: int, classes: int, factor: float, builders: dict[str, Callable[[np.ndarray], Make]], rounds: int
) -> list[dict]:
    labels = labels_of(num, classes, factor)
    made = {"NumPy, row by row": numpy_rows, **{name: build(labels) for name, build in builders.items()}}
    ratios: dict[str, list[float]] = {name: [] for name in made}
    firsts: dict[str, list[float]] = {name: [] for name in made}
    epochs: dict[str, list[float]] = {name: [] for name in made}
    for epoch in range(rounds):
        for name, make in made.items():
            _, base = timed(numpy_whole, labels, epoch)
            first, each = timed(make, labels, epoch + 1)
            ratios[name].append(each / base)
            firsts[name].append(first)
            epochs[name].append(each * num)
    rows = []
    for name, make in made.items():
        row = {
            "sampler": name,
            "set": f"N={num:,} K={classes} {'balanced' if factor == 1 else f'{factor:.0f}:1'}",
            "ratio": median(ratios[name]),
            "first_ms": 1e3 * median(firsts[name]),
            "epoch_s": median(epochs[name]),
            "bytes": peak_bytes(make, labels) if num < 5_000_000 and "part" not in name else float("nan"),
        }
        rows.append(row)
        print(line_of(row), flush=True)
    return rows


def line_of(row: dict) -> str:
    memory = "" if np.isnan(row["bytes"]) else f"{row['bytes']:.1f}"
    return f"| {row['set']} | {row['sampler']} | {row['ratio']:.2f} | {row['first_ms']:.1f} | {row['epoch_s']:.3f} | {memory} |"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    rounds, rows = (3 if quick else 5), []
    imagenet = 1_281_167
    for factor in (1.0, 256.0):
        rows += measure(imagenet, 1000, factor, {**OURS, **peers()}, rounds)
    if not quick:
        main_ones = {name: OURS[name] for name in ("class_mixed", "CBS", "SRS", "PBS")}
        for num, repeats in ((imagenet, rounds), (10_000_000, 3)):
            for classes in (10, 100, 1000, 8142):
                for factor in (1.0, 256.0):
                    if (num, classes) != (imagenet, 1000):
                        rows += measure(num, classes, factor, main_ones, repeats)
    write(rows)


def write(rows: list[dict]) -> None:
    cpu = next((x.split(":")[1].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x), "")
    versions = f"Python {platform.python_version()}, NumPy {np.__version__}, torch {torch.__version__.split('+')[0]}"
    text = [
        "# Samplers",
        "",
        str(__doc__).split("\n\n", 2)[2].strip(),
        "",
        f"Machine: {os.cpu_count()} cores, {cpu or platform.processor()}. {versions}.",
        "",
        "| set | sampler | x NumPy | first batch, ms | epoch, s | peak bytes a sample |",
        "|---|---|---|---|---|---|",
        *map(line_of, rows),
        "",
        "![times](samplers.png)",
        "",
    ]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "samplers.md").write_text("\n".join(text))
    plot(rows)


def plot(rows: list[dict]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    sets = list(dict.fromkeys(row["set"] for row in rows if "K=1000 " in row["set"] and "1,281,167" in row["set"]))
    names = [row["sampler"] for row in rows if row["set"] == sets[0]]
    figure, axes = plt.subplots(figsize=(8, 0.32 * len(names) + 1.2))
    for offset, name_of_set in enumerate(sets):
        ratio = {row["sampler"]: row["ratio"] for row in rows if row["set"] == name_of_set}
        places = np.arange(len(names)) + 0.4 * offset
        axes.barh(places, [ratio[name] for name in names], height=0.38, label=name_of_set)
    axes.set_yticks(np.arange(len(names)) + 0.2, names)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("time of an id, times NumPy's permutation + tolist (log)")
    axes.legend()
    figure.tight_layout()
    figure.savefig(RESULTS / "samplers.png", dpi=120)


if __name__ == "__main__":
    main()
