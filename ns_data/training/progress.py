"""Progress: sums over the steps of an epoch, clocks, and one line an epoch for people."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ns_data.training.config import Config


class EpochSums:
    """Sums over the steps of an epoch, kept on the device, so that a step never waits for it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.values: dict[str, Tensor] = {}

    def add(self, **sums: Tensor) -> None:
        """Add scalars; they are summed in float64."""
        for name, value in sums.items():
            self.values[name] = self.values.get(name, 0.0) + value.detach().to(self.device, torch.float64)

    def mean(self, name: str) -> float:
        """The sum of ``name`` over the sum of ``samples``."""
        return float(self.values[name] / self.values["samples"])

    def state_dict(self) -> dict[str, Tensor]:
        return {name: value.cpu() for name, value in self.values.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.values = {name: value.to(self.device) for name, value in state.items()}


class Stopwatch:
    """Seconds spent in a part of the step: by events on a GPU, which it does not hold up, by the clock elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self._events: list[Any] | None = [] if device.type == "cuda" else None
        self._seconds = 0.0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        if self._events is None:
            start = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - start
        else:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self._events.append((begin, end))

    def read(self) -> float:
        """Seconds since the last reading."""
        if self._events:
            torch.cuda.synchronize()
            self._seconds += sum(begin.elapsed_time(end) for begin, end in self._events) / 1000
            self._events.clear()
        seconds, self._seconds = self._seconds, 0.0
        return seconds


# Counts that are shown only when there is something to report.
_COUNTS = ("relaxed", "ungrouped", "dropped", "invalid_groups", "lone_composites", "skipped")


def epoch_line(line: dict[str, Any], num_epochs: int) -> str:
    """One line of metrics.jsonl for people."""
    width = len(str(num_epochs))
    counts = "".join(f"  {name.replace('_', ' ')} {line[name]}" for name in _COUNTS if line.get(name))
    return (
        f"epoch {line['epoch'] + 1:>{width}}/{num_epochs}  loss {line['loss']:.4f}  accuracy {line['accuracy']:.2%}  "
        f"balanced {line['balanced_accuracy']:.2%}  mean weight {line['mean_weight']:.3f}  "
        f"scoring {line['scoring_seconds'] / max(line['train_seconds'], 1e-9):.0%}{counts}"
    )


def summarize(config: Config, metrics: list[dict[str, Any]], device: torch.device) -> dict[str, Any]:
    """What a finished run reports: the last epoch's numbers, the best epoch's under its own name, seconds and peak memory."""
    last = {name: metrics[-1][name] for name in ("accuracy", "balanced_accuracy", "test_loss")}
    best = {"best_epoch_accuracy": max(line["accuracy"] for line in metrics)}
    seconds = {name: sum(line[name] for line in metrics) for name in ("train_seconds", "scoring_seconds")}
    run = {"name": config.name, "run_dir": config.run_dir, "epochs": config.epochs, "seed": config.seed}
    return {**run, **last, **best, **seconds, "peak_memory_mb": round(peak_memory(device) / 1e6, 1)}


def peak_memory(device: torch.device) -> int:
    """Bytes at the highest point: of tensors on a GPU, of the whole process elsewhere; since the last start of the run."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def summary_text(summary: dict[str, Any]) -> str:
    """The end of a run, for people."""
    training, scoring = summary["train_seconds"], summary["scoring_seconds"]
    return (
        f"\n{summary['name']}: {summary['epochs']} epochs, the last one reported\n"
        f"  accuracy           {summary['accuracy']:.2%}\n"
        f"  balanced accuracy  {summary['balanced_accuracy']:.2%}\n"
        f"  training           {training:.1f} s, of which scoring {scoring:.1f} s ({scoring / max(training, 1e-9):.0%})\n"
        f"  run folder         {summary['run_dir']}\n"
        f"  plots              {summary['run_dir']}/plots"
    )


def default_device() -> str:
    """cuda, mps or cpu: the first that is there."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
