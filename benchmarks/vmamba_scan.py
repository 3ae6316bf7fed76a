"""The chunked scan of vmamba_t against one Python step a place, forward and backward, interleaved in one process.

    python benchmarks/vmamba_scan.py > benchmarks/results/vmamba_scan.md

Sizes are those of vmamba_t on one 224x224 image: places, channels, and four directions in the place of a batch.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ns_data.models.scan import linear_scan

SIZES = ((3136, 96), (784, 192), (196, 384), (49, 768))
REPEATS = 7


def one_step_a_place(a_BLC: Tensor, b_BLC: Tensor) -> Tensor:
    state = torch.zeros_like(b_BLC[:, 0])
    states = []
    for a_BC, b_BC in zip(a_BLC.unbind(1), b_BLC.unbind(1), strict=True):
        state = torch.addcmul(b_BC, a_BC, state)
        states.append(state)
    return torch.stack(states, dim=1)


def seconds(scan: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> float:
    start = time.perf_counter()
    scan(a, b).sum().backward()
    return time.perf_counter() - start


def main() -> None:
    print("# The scan of vmamba_t\n")
    cpuinfo = Path("/proc/cpuinfo")
    names = [line.partition(": ")[2] for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
    cpu = names[0] if names else platform.processor()
    print(f"{cpu}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads, torch {torch.__version__}.")
    print(f"Forward and backward, float32, medians of {REPEATS} interleaved repeats.\n")
    print("| places | channels x directions | chunked, ms | a step a place, ms | ratio |")
    print("|---|---|---|---|---|")
    for places, channels in SIZES:
        a, b = torch.rand(4, places, channels).requires_grad_(), torch.randn(4, places, channels).requires_grad_()
        torch.testing.assert_close(linear_scan(a, b), one_step_a_place(a, b))
        times: dict[str, list[float]] = {"chunked": [], "plain": []}
        for _ in range(REPEATS):
            times["chunked"].append(seconds(linear_scan, a, b))
            times["plain"].append(seconds(one_step_a_place, a, b))
        chunked, plain = (statistics.median(times[name]) for name in ("chunked", "plain"))
        print(f"| {places} | {channels} x 4 | {1000 * chunked:.1f} | {1000 * plain:.1f} | {plain / chunked:.1f} |")


if __name__ == "__main__":
    main()
