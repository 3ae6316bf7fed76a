"""Jobs: carry out runs as processes of ``train.py``, some at a time, here or as Ray tasks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ns_data.compare.board import Board, Job, Process
from ns_data.compare.config import Comparison, Run
from ns_data.compare.results import LEFT_BY_A_KILLED_START, unfinished

POLL_SECONDS = 0.05
STOP_SECONDS = 30.0  # to finish a step and write a checkpoint


def train_script() -> Path:
    """train.py of the checkout that this package lies in."""
    path = Path(__file__).resolve().parents[2] / "train.py"
    if not path.is_file():
        raise ValueError(f"a comparison starts train.py, which is not in {path.parent}: run it from a checkout of ns_data")
    return path


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
