"""Progress: the clock of an epoch, and what people read of a run."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from ns_data.collate import GroupedBatch
from ns_data.training.config import Config
from ns_data.training.distributed import World

T = TypeVar("T")


class EpochClock:
    """Time of an epoch's steps, and of waiting for data in between; of an epoch's rest, if it goes on after a restart."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._waited, self._samples = 0.0, 0

    def waiting(self, loader: Iterable[GroupedBatch]) -> Iterator[GroupedBatch]:
        """The batches of ``loader``, the time until each of them counted as waiting."""
        batches = iter(loader)
        while True:
            began = time.perf_counter()
            batch = next(batches, None)
            self._waited += time.perf_counter() - began
            if batch is None:
                return
            self._samples += len(batch.labels)
            yield batch

    def so_far(self) -> str:
        """How fast this process is, for people."""
        seconds = time.perf_counter() - self._began
        return f"{self._samples / seconds:.0f} images/s, waiting {self._waited / seconds:.0%}"

    def read(self, scoring_seconds: float, world: World) -> dict[str, float]:
        """Seconds, shares of them, samples a second, and the most GPU memory in use.

        All processes take part. Of waiting, scoring and memory it is the process with the most that counts.
        """
        seconds = time.perf_counter() - self._began
        own = torch.tensor([self._samples, self._waited, scoring_seconds, 0.0], dtype=torch.float64)
        if world.device.type == "cuda":
            own[3] = torch.cuda.max_memory_allocated(world.device) / 2**30
        all_P4 = torch.stack(world.gather(own))
        waited, scoring, memory = all_P4[:, 1:].amax(dim=0).tolist()
        numbers = {
            "train_seconds": seconds,
            "waiting_seconds": waited,
            "scoring_seconds": scoring,
            "waiting_share": waited / seconds,
            "scoring_share": scoring / seconds,
            "samples_per_second": float(all_P4[:, 0].sum()) / seconds,
        }
        return {**numbers, "gpu_memory_gib": memory} if world.device.type == "cuda" else numbers


def progress_bar(batches: Iterable[T], title: str, first: int, total: int, world: World) -> Iterable[T]:
    """Shows people at a terminal how far an epoch is that began at step ``first``; the main process alone."""
    bar: Iterable[T] = tqdm(batches, title, total, leave=False, initial=first, disable=None if world.is_main else True)
    return bar


# Counts of an epoch that are shown only when there is something to report.
_COUNTS = (
    *("relaxed", "ungrouped", "dropped", "invalid_groups", "lone_composites", "skipped", "unscored", "invalid_predictions"),
    *("blank_texts", "empty_texts"),
)


def epoch_line(line: dict[str, Any], num_epochs: int) -> str:
    """One line of metrics.jsonl for people."""
    width = len(str(num_epochs))
    ties = f"  ties {line['tied_groups'] / line['groups']:.0%}" if line["groups"] else ""
    memory = f"  GPU {line['gpu_memory_gib']:.1f} GiB" if "gpu_memory_gib" in line else ""
    counts = "".join(f"  {name.replace('_', ' ')} {line[name]}" for name in _COUNTS if line.get(name))
    return (
        f"epoch {line['epoch'] + 1:>{width}}/{num_epochs}  loss {line['loss']:.4f}  accuracy {line['accuracy']:.2%}  "
        f"balanced {line['balanced_accuracy']:.2%}  lr {line['lr']:.3g}  mean weight {line['mean_weight']:.3f}{ties}  "
        f"{line['samples_per_second']:.0f} images/s, waiting {line['waiting_share']:.0%}, scoring {line['scoring_share']:.0%}"
        f"{memory}{counts}"
    )


def summarize(config: Config, metrics: list[dict[str, Any]], device: torch.device) -> dict[str, Any]:
    """What a finished run reports: the last epoch's numbers, the best epoch's under its own name, seconds and peak memory."""
    last = {name: metrics[-1][name] for name in ("accuracy", "balanced_accuracy", "test_loss")}
    best = {"best_epoch_accuracy": max(line["accuracy"] for line in metrics)}
    seconds = {name: sum(line[name] for line in metrics) for name in ("train_seconds", "scoring_seconds")}
    run = {"name": config.name, "run_dir": config.run_dir, "epochs": config.epochs, "seed": config.seed, "plots": config.plots}
    return {**run, **last, **best, **seconds, "peak_memory_mb": round(peak_memory(device) / 1e6, 1)}


def peak_memory(device: torch.device) -> int:
    """Bytes at the highest point: of tensors on a GPU, of the whole process elsewhere; since the last start of the run."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file():  # what getrusage tells on Linux may be the peak of the process that started this one
        return 1024 * next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def summary_text(summary: dict[str, Any]) -> str:
    """The end of a run, for people."""
    training, scoring = summary["train_seconds"], summary["scoring_seconds"]
    plots = f"\n  plots              {summary['run_dir']}/plots" if summary.get("plots") else ""
    return (
        f"\n{summary['name']}: {summary['epochs']} epochs, the last one reported\n"
        f"  accuracy           {summary['accuracy']:.2%}\n"
        f"  balanced accuracy  {summary['balanced_accuracy']:.2%}\n"
        f"  training           {training:.1f} s, of which scoring {scoring:.1f} s ({scoring / max(training, 1e-9):.0%})\n"
        f"  run folder         {summary['run_dir']}{plots}"
    )
