"""Compare methods: run them all with every seed, tuned alike and with their controls, and report.

    ns-data compare CONFIG.yaml [key=value ...] [--dry-run | --report | --launcher local|ray | --help]

The story of a comparison, top to bottom: read the methods, add controls, count the cost, tune the learning rates on a
held-out part of the training set, run what has not finished, report. The same command again goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import fcntl
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ns_data.choose import choose
from ns_data.compare.board import Board, duration
from ns_data.compare.budget import check_method, estimator, total_steps
from ns_data.compare.config import (
    Comparison,
    Method,
    Run,
    help_lines,
    load_comparison,
    make_run,
    written_methods,
)
from ns_data.compare.controls import LONG_TAIL, with_controls
from ns_data.compare.jobs import LAUNCHERS, Launcher, execute
from ns_data.compare.manifest import write_manifest
from ns_data.compare.report import write_report
from ns_data.compare.results import is_done, unfinished
from ns_data.compare.tuning import choose_rates, diverged, tuning_runs
from ns_data.training.command import run_command
from ns_data.training.config import Config
from ns_data.training.data import Data, load_data

DASHED = ("--help", "--dry-run", "--report", "--launcher")


def main(arguments: list[str]) -> None:
    words, dashed = _words(arguments)
    if "--help" in dashed:
        print("\n".join([str(__doc__), "Settings:", "", *help_lines()]))
        return
    if not words or "=" in words[0]:
        raise ValueError("name a comparison file first, such as configs/compare/digits_lt.yaml")
    comparison = load_comparison(words[0], words[1:])
    folder = Path(str(comparison.folder))
    if "--report" in dashed:
        print(write_report(folder))
        return
    data_of = _data_reader()
    methods = plan_methods(comparison, data_of)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder) as lock, interruptible():
        failed = compare(comparison, methods, data_of, lock, dry="--dry-run" in dashed)
    if failed:
        names = ", ".join(f"{run.method} seed {run.config.seed}" for run in failed[:5])
        more = f" and {len(failed) - 5} more" if len(failed) > 5 else ""
        raise ValueError(f"{len(failed)} runs failed ({names}{more}), see {failed[0].log}: the same command repeats them")


def _words(arguments: list[str]) -> tuple[list[str], set[str]]:
    """Words and dashed words; ``--launcher ray`` is ``launcher=ray``."""
    words, dashed, rest = list[str](), set[str](), list(arguments)
    while rest:
        word, equals, value = rest.pop(0).partition("=")
        if not word.startswith("-"):
            words.append(word + equals + value)
        elif word not in DASHED:
            raise ValueError(f"unknown option {word}: there are {', '.join(DASHED)}; settings are written key=value")
        elif word == "--launcher":
            if not equals and not rest:
                raise ValueError(f"--launcher needs a name: {', '.join(LAUNCHERS)}")
            words.append(f"launcher={value if equals else rest.pop(0)}")
        else:
            dashed.add(word)
    return words, dashed


def _data_reader() -> Callable[[Config], Data]:
    """Data by config, opened (and prepared, so that parallel runs need not) once for each; whole, whatever is held out."""
    opened: dict[str, Data] = {}

    def data_of(config: Config) -> Data:
        whole = dataclasses.replace(config.data, holdout=0.0)
        if repr(whole) not in opened:
            opened[repr(whole)] = load_data(whole, seed=0)
        return opened[repr(whole)]

    return data_of


def plan_methods(comparison: Comparison, data_of: Callable[[Config], Data]) -> list[Method]:
    """All methods with their controls, each checked as a run would."""
    methods = written_methods(comparison)
    long_tailed = {}
    for method in methods:
        if method.config.data.holdout and comparison.tuning.lr:
            raise ValueError(f"method {method.name} sets data.holdout, which tuning sets: leave one of them out")
        try:
            data = data_of(method.config)
            check_method(method.config, data)
        except ValueError as error:
            raise ValueError(f"method {method.name}: {error}") from None
        long_tailed[method.name] = data.stats.imbalance_factor >= LONG_TAIL
    return with_controls(comparison, methods, long_tailed)


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Hold the comparison's folder; runs of an earlier command that still go on hold it, too."""
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"{folder} is in use: another comparison, or runs that one has left, go on there") from None
        yield file.fileno()


@contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGTERM end a comparison as Ctrl-C does: runs are stopped at once, and go on with the next command."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def compare(
    comparison: Comparison, methods: list[Method], data_of: Callable[[Config], Data], lock: int, *, dry: bool = False
) -> list[Run]:
    """Tune, run and report; return the runs that failed. ``dry`` prints the budget alone."""
    tuning = tuning_runs(comparison, methods)
    final = _final_runs(comparison, methods, {})
    tuning_todo = [run for run in tuning if not is_done(run) and not diverged(run)]
    if tuning_todo:  # the rates are not known yet, so the settings in the final folders cannot be checked
        final_todo = [run for run in final if unfinished(run.folder) is not None]
    else:
        final_todo = _todo(_final_runs(comparison, methods, _chosen(comparison, tuning)))
    seconds_of = estimator(data_of, comparison.threads) if tuning_todo or final_todo else lambda run: 0.0
    launcher = choose(LAUNCHERS, comparison.launcher, "launcher")(comparison, lock)
    print(_budget(comparison, methods, tuning, tuning_todo, final, final_todo, data_of, seconds_of, launcher), flush=True)
    if dry:
        return []
    failed = execute(tuning_todo, launcher, Board(seconds_of, tuning_todo, launcher.slots))
    failed = [run for run in failed if not diverged(run)]
    if failed:
        return failed  # a rate must not lose because its run crashed
    chosen = _chosen(comparison, tuning)
    final = _final_runs(comparison, methods, chosen)
    todo = _todo(final)
    write_manifest(comparison, methods, chosen, data_of)
    failed = execute(todo, launcher, Board(seconds_of, todo, launcher.slots))
    try:
        print(write_report(Path(str(comparison.folder))))
    except ValueError as error:
        if not failed:
            raise
        print(error)  # the runs that failed are the news
    return failed


def _todo(runs: list[Run]) -> list[Run]:
    return [run for run in runs if not is_done(run)]


def _chosen(comparison: Comparison, tuning: list[Run]) -> dict[str, dict[str, Any]]:
    return choose_rates(comparison, tuning) if tuning else {}


def _final_runs(comparison: Comparison, methods: list[Method], chosen: dict[str, dict[str, Any]]) -> list[Run]:
    """Seeds outside, methods inside: a comparison that is stopped early has whole pairs."""
    rates = {name: choice["lr"] for name, choice in chosen.items()}
    return [make_run(comparison, method, seed, rates.get(method.name)) for seed in comparison.seeds for method in methods]


def _budget(
    comparison: Comparison,
    methods: list[Method],
    tuning: list[Run],
    tuning_todo: list[Run],
    final: list[Run],
    final_todo: list[Run],
    data_of: Callable[[Config], Data],
    seconds_of: Callable[[Run], float],
    launcher: Launcher,
) -> str:
    """What is to be done and about how long it takes."""
    todo = [*tuning_todo, *final_todo]
    added = sum(method.control_of is not None for method in methods)
    grid, slots = comparison.tuning.lr, min(launcher.slots, max(1, len(todo)))
    lines = [
        f"{comparison.name}: {len(methods)} methods, {added} of them controls, x {len(comparison.seeds)} seeds = "
        f"{len(final)} runs, {len(final) - len(final_todo)} finished before",
        f"tuning: {len(methods)} methods x {len(grid)} rates x {len(comparison.tuning.seeds)} seeds = {len(tuning)} runs, "
        f"{len(tuning) - len(tuning_todo)} finished before"
        if grid
        else "tuning: none, and the report will say so (tuning.lr=[0.01,0.1] tunes)",
        f"to do: {len(todo)} runs, {total_steps(todo, data_of):,} steps, about "
        f"{duration(sum(map(seconds_of, todo)) / slots)} with {slots} at a time ({comparison.threads} threads each)",
    ]
    if comparison.controls == "none":
        lines.append("controls: none, as asked; the report will say so")
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main)
