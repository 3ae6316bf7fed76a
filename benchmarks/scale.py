"""Samplers at 10^7 and 10^8 samples: labels in a memory-mapped file, 1000 classes, 256:1.

    python benchmarks/scale.py [N ...]

Prints Markdown rows: seconds to build, to the first batch, nanoseconds an id of the next million ids, and the peak of the
process's memory in bytes a sample over what Python, NumPy and torch took before.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np


def write_labels(path: Path, num: int) -> None:
    """Labels in a file, made a million at a time."""
    shares = 256.0 ** -np.linspace(0, 1, 1000)
    labels = np.lib.format.open_memmap(path, "w+", np.int16, (num,))
    rng = np.random.default_rng(0)
    edges = np.cumsum(shares / shares.sum())
    for start in range(0, num, 1 << 20):
        stop = min(num, start + (1 << 20))
        labels[start:stop] = np.minimum(np.searchsorted(edges, rng.random(stop - start)), 999)
    labels.flush()


def measure(path: str, law: str) -> None:
    from ns_data import ClassBalancedSampler, GroupingBatchSampler, ShuffleSampler

    labels = np.load(path, mmap_mode="r")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    sampler = ClassBalancedSampler(labels) if law == "CBS" else ShuffleSampler(labels.size)
    batches = GroupingBatchSampler(sampler, 1024, labels=labels, layout="2x2", grouping="class_mixed")
    built = time.perf_counter()
    stream = iter(batches)
    next(stream)
    first = time.perf_counter()
    for _ in islice(stream, 1000):
        pass
    rest = (time.perf_counter() - first) / 1000 / 1024
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / labels.size
    figures = f"{built - start:.2f} | {first - built:.3f} | {1e9 * rest:.0f} | {peak:.1f}"
    print(f"| {labels.size:.0e} | {law}, class_mixed | {figures} |", flush=True)


def main() -> None:
    print("| N | sampler | build, s | first batch, s | then ns an id | peak bytes a sample, mapped labels included |")
    print("|---|---|---|---|---|---|", flush=True)
    for num in [int(float(text)) for text in sys.argv[1:]] or [10**7, 10**8]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "labels.npy"
            write_labels(path, num)
            for law in ("CBS", "shuffled"):  # each in a process of its own: peaks do not mix
                code = f"from scale import measure; measure({str(path)!r}, {law!r})"
                subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)


if __name__ == "__main__":
    main()
