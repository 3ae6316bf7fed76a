"""Jobs: carry out runs as processes of ``train.py``, some at a time, here or as Ray tasks, and show how they do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from ns_data.compare.config import Comparison, Run
from ns_data.compare.results import LEFT_BY_A_KILLED_START, unfinished

POLL_SECONDS = 0.05
DRAW_SECONDS = 0.5
STOP_SECONDS = 30.0  # to finish a step and write a checkpoint


def train_script() -> Path:
    """train.py of the checkout that this package lies in."""
    path = Path(__file__).resolve().parents[2] / "train.py"
    if not path.is_file():
        raise ValueError(f"a comparison starts train.py, which is not in {path.parent}: run it from a checkout of ns_data")
    return path


class Process(Protocol):
    """A started run."""

    def poll(self) -> int | None:
        """Its exit code, or ``None`` while it goes on."""

    def stop(self) -> None:
        """Ask it to end."""

    def kill(self) -> None:
        """End it."""


class Launcher(NamedTuple):
    """``start(run, slot)`` starts a run; at most ``slots`` are started at a time."""

    slots: int
    start: Callable[[Run, int], Process]


def local_launcher(comparison: Comparison, lock: int) -> Launcher:
    """Processes of this machine, each with its own threads and, if there are GPUs, its share of them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]
    need = gpus_of_a_run(comparison)
    most = int(len(gpus) / need + 1e-9) if need else (os.cpu_count() or 1) // comparison.threads

    def start(run: Run, slot: int) -> Process:
        environment = {**os.environ, **thread_limits(comparison.threads)}
        if need and gpus:
            first = int(slot * need + 1e-9)
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[(first + k) % len(gpus)] for k in range(max(1, int(need))))
        prepare_folder(run)
        with run.log.open("ab") as log:
            # A run that outlives us holds the lock on: nobody else can then start the same run beside it.
            process = subprocess.Popen(
                command(comparison, run), stdout=log, stderr=log, env=environment, start_new_session=True, pass_fds=[lock]
            )
        return _Local(process)

    return Launcher(comparison.jobs or max(1, most), start)


def thread_limits(threads: int) -> dict[str, str]:
    return {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}


def gpus_of_a_run(comparison: Comparison) -> float:
    return comparison.gpus if comparison.gpus is not None else float(torch.cuda.is_available())


def command(comparison: Comparison, run: Run) -> list[str]:
    return [sys.executable, str(train_script()), comparison.base, *run.words]


def prepare_folder(run: Run) -> None:
    """Make room for a run: a start that was killed before it wrote a config leaves a folder that train.py refuses."""
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    if run.folder.is_dir() and {path.name for path in run.folder.iterdir()} <= LEFT_BY_A_KILLED_START:
        shutil.rmtree(run.folder)


class _Local:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def poll(self) -> int | None:
        return self._process.poll()

    def stop(self) -> None:
        self._process.terminate()  # train.py then saves a checkpoint first

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


def ray_launcher(comparison: Comparison, lock: int) -> Launcher:
    """Ray tasks with the CPUs and GPUs that a run needs; all nodes must share folders, data and checkout."""
    try:
        import ray
    except ImportError:
        raise ValueError("launcher=ray needs Ray: pip install 'ns_data[ray]'") from None
    if not ray.is_initialized():
        ray.init(address=os.environ.get("RAY_ADDRESS"), log_to_driver=False)
    here = os.getcwd()

    def work(words: list[str], log: str) -> int:
        environment = {**os.environ, **thread_limits(comparison.threads)}
        with open(log, "ab") as file:
            return subprocess.run(words, cwd=here, env=environment, stdout=file, stderr=file).returncode

    task = ray.remote(num_cpus=comparison.threads, num_gpus=gpus_of_a_run(comparison), max_retries=0)(work)

    def start(run: Run, slot: int) -> Process:
        prepare_folder(run)
        return _RayTask(
            ray, task.options(name=f"{run.method}-{run.config.seed}").remote(command(comparison, run), str(run.log))
        )

    return Launcher(comparison.jobs or sys.maxsize, start)  # Ray itself waits for free CPUs and GPUs


class _RayTask:
    def __init__(self, ray: Any, reference: Any) -> None:
        self._ray, self._reference = ray, reference

    def poll(self) -> int | None:
        ready, _ = self._ray.wait([self._reference], timeout=0)
        if not ready:
            return None
        try:
            return int(self._ray.get(self._reference))
        except self._ray.exceptions.TaskCancelledError:
            return 1
        except self._ray.exceptions.RayError as error:
            print(f"Ray: {str(error).splitlines()[0]}", file=sys.stderr)
            return 1

    def stop(self) -> None:
        self._ray.cancel(self._reference)  # interrupts the task, which ends its process

    def kill(self) -> None:
        self._ray.cancel(self._reference, force=True)


LAUNCHERS: dict[str, Callable[[Comparison, int], Launcher]] = {"local": local_launcher, "ray": ray_launcher}


@dataclass
class Job:
    """A run in flight."""

    run: Run
    slot: int
    process: Process
    began: float = field(default_factory=time.perf_counter)


def execute(runs: list[Run], launcher: Launcher, board: Board) -> list[Run]:
    """Carry out all runs; return those that failed. An interruption stops what is in flight and is passed on."""
    queue, running, failed = deque(runs), list[Job](), list[Run]()
    try:
        while queue or running:
            while queue and len(running) < launcher.slots:
                slot = min(set(range(len(running) + 1)) - {job.slot for job in running})
                run = queue.popleft()
                running.append(Job(run, slot, launcher.start(run, slot)))
            time.sleep(POLL_SECONDS)
            for job in list(running):
                code = job.process.poll()
                if code is None:
                    continue
                running.remove(job)
                why = unfinished(job.run.folder) if code == 0 else f"exit code {code}, {last_line(job.run.log)}"
                if why is not None:
                    failed.append(job.run)
                board.finished(job, why)
            board.draw(running)
    finally:
        stop(running)
        board.clear()
    return failed


def stop(running: list[Job]) -> None:
    """Ask all to end, wait for them together, and end those that do not."""
    for job in running:
        job.process.stop()
    deadline = time.perf_counter() + STOP_SECONDS
    while time.perf_counter() < deadline and any(job.process.poll() is None for job in running):
        time.sleep(POLL_SECONDS)
    for job in running:
        if job.process.poll() is None:
            job.process.kill()


def last_line(log: Path) -> str:
    """The last line of a log that says something."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()] if log.is_file() else []
    return lines[-1] if lines else "the log is empty"


class Board:
    """What the user sees: a live table on a terminal, one line for each finished run elsewhere."""

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
