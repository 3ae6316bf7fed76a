"""Board: what the user sees of runs in flight: a live table on a terminal, one line for each finished run elsewhere."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from ns_data.compare.config import Run

DRAW_SECONDS = 0.5


class Process(Protocol):
    """A started run."""

    def poll(self) -> int | None:
        """Its exit code, or ``None`` while it goes on."""

    def stop(self) -> None:
        """Ask it to end."""

    def kill(self) -> None:
        """End it."""


@dataclass
class Job:
    """A run in flight."""

    run: Run
    slot: int
    process: Process
    began: float = field(default_factory=time.perf_counter)


class Board:
    """The runs of one ``execute``: counts, and the estimate of what is left."""

    def __init__(self, seconds_of: Callable[[Run], float], runs: list[Run], slots: int, stream: Any = None) -> None:
        self.stream = stream or sys.stdout
        self.live = self.stream.isatty()
        self.seconds_of, self.total, self.slots = seconds_of, len(runs), min(slots, max(1, len(runs)))
        self.done = self.failures = 0
        self.waiting = sum(seconds_of(run) for run in runs)  # estimated seconds of what has not finished
        self.actual = self.estimated = 0.0  # of what has
        self._lines, self._drawn = 0, 0.0

    def finished(self, job: Job, why: str | None) -> None:
        seconds = time.perf_counter() - job.began
        self.done += 1
        self.failures += why is not None
        self.waiting -= self.seconds_of(job.run)
        if why is None:
            self.actual += seconds
            self.estimated += self.seconds_of(job.run)
            line = last_metrics(job.run)
            what = f"accuracy {line['accuracy']:.2%}  balanced {line['balanced_accuracy']:.2%}  {seconds:.1f} s"
        else:
            what = f"failed: {why} (log: {job.run.log})"
        self.clear()
        print(f"[{self.done}/{self.total}] {title(job.run)}  {what}  {self.left([])}".rstrip(), file=self.stream, flush=True)

    def left(self, running: list[Job]) -> str:
        """Time left, from the estimate and how the finished runs kept to it."""
        pace = self.actual / self.estimated if self.estimated else 1.0
        spent = sum(min(time.perf_counter() - job.began, self.seconds_of(job.run) * pace) for job in running)
        seconds = max(0.0, self.waiting * pace - spent) / self.slots
        return f"about {duration(seconds)} left" if self.done < self.total else ""

    def draw(self, running: list[Job]) -> None:
        """The table of the runs in flight, over the last one."""
        if not self.live or time.perf_counter() - self._drawn < DRAW_SECONDS:
            return
        self._drawn = time.perf_counter()
        width = shutil.get_terminal_size().columns
        rows = [f"{self.done}/{self.total} runs, {self.failures} failed, {self.left(running)}"]
        longest = max((len(title(job.run)) for job in running), default=0)
        for job in running[:30]:
            line = last_metrics(job.run)
            epoch, epochs = int(line.get("epoch", -1)) + 1, job.run.config.epochs
            seconds = time.perf_counter() - job.began
            left = f"{duration(seconds / epoch * (epochs - epoch))} left" if epoch else "starting"
            bar = ("#" * round(12 * epoch / epochs)).ljust(12, ".") if width >= 100 else ""
            accuracy = f"{line['accuracy']:7.2%} balanced {line['balanced_accuracy']:7.2%}" if epoch else " " * 24
            rows.append(f"{title(job.run):<{longest}} {bar} {epoch:>3}/{epochs} {accuracy} {left}")
        if len(running) > 30:
            rows.append(f"and {len(running) - 30} more")
        self.clear()
        self.stream.write("".join(row[: width - 1] + "\n" for row in rows))
        self.stream.flush()
        self._lines = len(rows)

    def clear(self) -> None:
        if self._lines:
            self.stream.write(f"\x1b[{self._lines}F\x1b[J")
            self.stream.flush()
            self._lines = 0


def title(run: Run) -> str:
    return f"{run.method}{'' if run.lr is None else f' lr {run.lr:g}'} seed {run.config.seed}"


def last_metrics(run: Run) -> dict[str, Any]:
    """The last whole line of a run's metrics; empty before the first."""
    path = run.folder / "metrics.jsonl"
    if not path.is_file():
        return {}
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - (1 << 17)))
        lines = file.read().rpartition(b"\n")[0].splitlines()
    try:
        line: dict[str, Any] = json.loads(lines[-1]) if lines else {}
    except json.JSONDecodeError:
        return {}
    return line


def duration(seconds: float) -> str:
    """Seconds for people.

    >>> duration(40), duration(700), duration(9000)
    ('40 s', '12 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
