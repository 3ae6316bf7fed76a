"""Progress: the clock of an epoch, and what people read of a run."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from ns_data.training.config import Config


class EpochClock:
    """Seconds of an epoch's steps and of waiting for data in between."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._waited = 0.0

    def waiting(self, loader: Iterable[Any]) -> Iterator[Any]:
        """The batches of ``loader``, the time until each of them counted as waiting."""
        batches = iter(loader)
        while True:
            began = time.perf_counter()
            batch = next(batches, None)
            self._waited += time.perf_counter() - began
            if batch is None:
                return
            yield batch

    def read(self, samples: float) -> dict[str, float]:
        """Seconds, samples a second, and the most GPU memory in use."""
        seconds = time.perf_counter() - self._began
        numbers = {"train_seconds": seconds, "waiting_seconds": self._waited, "samples_per_second": samples / seconds}
        if torch.cuda.is_available():
            numbers["gpu_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        return numbers


# Counts of an epoch that are shown only when there is something to report.
_COUNTS = (
    *("relaxed", "ungrouped", "dropped", "invalid_groups", "lone_composites", "skipped", "unscored", "invalid_predictions"),
    *("blank_texts", "empty_texts"),
)


def epoch_line(line: dict[str, Any], num_epochs: int) -> str:
    """One line of metrics.jsonl for people."""
    width = len(str(num_epochs))
    counts = "".join(f"  {name.replace('_', ' ')} {line[name]}" for name in _COUNTS if line.get(name))
    return (
        f"epoch {line['epoch'] + 1:>{width}}/{num_epochs}  loss {line['loss']:.4f}  accuracy {line['accuracy']:.2%}  "
        f"balanced {line['balanced_accuracy']:.2%}  mean weight {line['mean_weight']:.3f}  "
        f"scoring {line['scoring_seconds'] / line['train_seconds']:.0%}{counts}"
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
