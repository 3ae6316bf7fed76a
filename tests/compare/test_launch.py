"""A comparison end to end on tiny digits: tuned, interrupted, continued, repeated; slow: as processes, as Ray tasks."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import train
from ns_data.compare import board, jobs, launch
from ns_data.compare.config import load_comparison, make_run, written_methods
from ns_data.compare.tuning import choose_rates, tuning_runs

ROOT = Path(__file__).parents[2]
THREE = """
base: base.yaml
folder: out
seeds: [1, 2]
controls: none
methods: {baseline: , ns_lf: {weighting: ns}, gce: {loss: gce}}
"""
BASE = "epochs: 1\ndata: {options: {imbalance: 50}, image_size: 8}\noptimizer: {lr: 0.05}\n"


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "c.yaml").write_text(THREE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ns_data.compare.report.draw", lambda *_: {})
    monkeypatch.setattr("ns_data.compare.budget.start_seconds", lambda: 1.0)
    return tmp_path


class Here:
    """Runs in this process, one after the other; ``fail`` and ``interrupt`` name the start that goes wrong."""

    def __init__(self, monkeypatch, fail=None, interrupt=None):
        self.started, self.fail, self.interrupt = [], fail, interrupt
        monkeypatch.setitem(jobs.LAUNCHERS, "local", lambda comparison, lock: jobs.Launcher(1, self.start(comparison)))

    def start(self, comparison):
        def start(run, slot):
            self.started.append(board.title(run))
            if self.started[-1] == self.interrupt:
                raise KeyboardInterrupt
            run.folder.parent.mkdir(parents=True, exist_ok=True)
            with run.log.open("a") as log, contextlib.redirect_stdout(log):
                try:
                    if self.started[-1] == self.fail:
                        raise ValueError("out of luck")
                    train.main([comparison.base, *run.words])
                    code = 0
                except ValueError as error:
                    log.write(f"error: {error}\n")
                    code = 1
            return Ended(code)

        return start


class Ended:
    def __init__(self, code):
        self.code = code

    def poll(self):
        return self.code

    def stop(self):
        self.code = self.code or 75

    def kill(self):
        raise AssertionError("it has ended")


def compare(*words):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        launch.main(["c.yaml", *words])
    return out.getvalue()


def test_three_methods_two_seeds_failed_interrupted_continued_and_finished(workplace, monkeypatch):
    here = Here(monkeypatch, fail="gce seed 1", interrupt="ns_lf seed 2")
    with pytest.raises(KeyboardInterrupt):
        compare()
    assert here.started == ["baseline seed 1", "ns_lf seed 1", "gce seed 1", "baseline seed 2", "ns_lf seed 2"]
    kept = (workplace / "out/runs/baseline/1/done").stat().st_mtime_ns
    here = Here(monkeypatch, fail="gce seed 1")
    with pytest.raises(ValueError, match=r"1 runs failed \(gce seed 1\), see .*gce/1.log: the same command repeats them"):
        compare()
    assert here.started == ["gce seed 1", "ns_lf seed 2", "gce seed 2"]  # seeds outside, methods inside
    markdown = (workplace / "out/report/report.md").read_text()
    assert "1 runs are missing (gce, seed 1: no run folder)" in markdown
    here = Here(monkeypatch)
    out = compare()
    assert here.started == ["gce seed 1"]
    assert "3 methods, 0 of them controls, x 2 seeds = 6 runs, 5 finished before" in out
    assert "to do: 1 runs, 7 steps" in out  # 417 samples in batches of 64
    assert "[1/1] gce seed 1  accuracy" in out
    markdown = (workplace / "out/report/report.md").read_text()
    assert "missing" not in markdown
    assert "Controls, as asked: none." in markdown
    assert (workplace / "out/runs/baseline/1/done").stat().st_mtime_ns == kept
    here = Here(monkeypatch)
    compare()
    assert here.started == []
    with pytest.raises(ValueError, match=r"runs/baseline/1 holds a run with other settings \(epochs is 1 there, 2 here\)"):
        compare("set.epochs=2")


def test_rates_are_tuned_on_held_out_training_samples_then_used(workplace, monkeypatch):
    here = Here(monkeypatch)
    words = ["tuning.lr=[0.05,1e30]", "tuning.seeds=[7]", "tuning.metric=accuracy", "seeds=[1]", "only=[gce]", "set.epochs=2"]
    out = compare(*words)
    assert here.started == [
        "baseline lr 0.05 seed 7", "baseline lr 1e+30 seed 7", "gce lr 0.05 seed 7", "gce lr 1e+30 seed 7",
        "baseline seed 1", "gce seed 1",
    ]  # fmt: skip
    assert "tuning: 2 methods x 2 rates x 1 seeds = 4 runs" in out
    tuned = yaml.safe_load((workplace / "out/tuning/gce/lr=0.05/7/config.yaml").read_text())
    assert (tuned["data"]["holdout"], tuned["optimizer"]["lr"]) == (0.2, 0.05)
    final = yaml.safe_load((workplace / "out/runs/gce/1/config.yaml").read_text())
    assert (final["data"]["holdout"], final["optimizer"]["lr"]) == (0.0, 0.05)
    markdown = (workplace / "out/report/report.md").read_text()
    assert markdown.startswith("The learning rate of every method was tuned on one grid (0.05, 1e+30)")
    assert "Diverged while tuning, and out: baseline at 1e+30, gce at 1e+30." in markdown
    assert "edge of the grid for baseline, gce" in markdown
    here = Here(monkeypatch)
    compare(*words)
    assert here.started == []  # a rate that diverged is a result, not a failure


def test_a_comparison_whose_baseline_failed_says_both(workplace, monkeypatch):
    Here(monkeypatch, fail="baseline seed 1")
    out = io.StringIO()
    with pytest.raises(ValueError, match=r"1 runs failed \(baseline seed 1\)"), contextlib.redirect_stdout(out):
        launch.main(["c.yaml", "seeds=[1]", "only=[gce]"])
    assert "failed: exit code 1, error: out of luck (log: out/runs/baseline/1.log)" in out.getvalue()
    assert "the baseline baseline has no finished run" in out.getvalue()


def test_a_crash_while_tuning_stops_before_the_comparison(workplace, monkeypatch):
    here = Here(monkeypatch, fail="gce lr 0.05 seed 7")
    with pytest.raises(ValueError, match="1 runs failed"):
        compare("tuning.lr=[0.05]", "tuning.seeds=[7]", "only=[gce]")
    assert here.started[-1] == "gce lr 0.05 seed 7"
    assert not (workplace / "out/runs").exists()


def test_the_best_mean_wins_and_of_equals_the_lower_rate(workplace):
    comparison = load_comparison("c.yaml", ["tuning.lr=[0.1,0.01,0.001]", "tuning.seeds=[1,2]", "only=[gce]"])
    runs = tuning_runs(comparison, written_methods(comparison))
    score = {0.1: [0.5, 0.9], 0.01: [0.7, 0.7], 0.001: [0.2, 0.9]}
    for run in runs:
        run.folder.mkdir(parents=True)
        value = score[run.lr][run.config.seed - 1]
        (run.folder / "metrics.jsonl").write_text(json.dumps({"balanced_accuracy": value}) + "\n")
        (run.folder / "done").write_text('{"epochs": 1}')
    assert choose_rates(comparison, runs)["gce"] == {
        "lr": 0.01, "score": {"0.001": 0.55, "0.01": 0.7, "0.1": 0.7}, "diverged": [], "edge": False,
    }  # fmt: skip


def test_a_folder_that_a_killed_start_left_is_used_again_and_others_are_not(workplace):
    comparison = load_comparison("c.yaml")
    run = make_run(comparison, written_methods(comparison)[0], 1, None)
    (run.folder / "plots").mkdir(parents=True)
    (run.folder / "env.json").touch()
    jobs.prepare_folder(run)
    assert not run.folder.exists()
    run.folder.mkdir()
    (run.folder / "thesis.txt").touch()
    jobs.prepare_folder(run)
    assert (run.folder / "thesis.txt").exists()


def test_a_folder_in_use_is_refused(workplace):
    with launch.locked(workplace), pytest.raises(ValueError, match="is in use"), launch.locked(workplace):
        pass


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dryrun"], "unknown option --dryrun"),
        (["--launcher"], "needs a name: local, ray"),
        (["--launcher", "ry"], "unknown launcher 'ry': did you mean 'ray'"),
        (["methods.x.ns.sigma=0.5", "methods.x.weighting=ns"], "method x: sigma=0.5 and rho=-1"),
        (["methods.x.loss.options.gamma=1", "methods.x.loss.name=gce"], "method x: unknown option of loss 'gce' 'gamma'"),
        (["set.data.source=digit"], "did you mean 'digits'"),
        (["methods.x.data.holdout=0.5", "tuning.lr=[0.1]"], "method x sets data.holdout, which tuning sets"),
        (["--report", "folder=nowhere"], "nowhere holds no comparison.json"),
    ],
)
def test_mistakes_are_one_sentence(workplace, words, message):
    with pytest.raises(ValueError, match=message) as error:
        compare(*words)
    assert "\n" not in str(error.value)
    assert not (workplace / "out/runs").exists()


def test_dry_run_counts_and_starts_nothing(workplace, monkeypatch):
    here = Here(monkeypatch)
    out = compare("--dry-run", "tuning.lr=[0.1,0.2]", "controls=all", "set.epochs=3")
    assert "7 methods, 4 of them controls, x 2 seeds = 14 runs" in out
    # 14 runs of 3 epochs of 7 steps, and 28 of tuning with 0.8 * 417 samples in 6 steps
    assert f"to do: 42 runs, {14 * 21 + 28 * 18} steps" in out
    assert here.started == []


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_live_table_shows_progress_accuracy_and_time_left(workplace, monkeypatch):
    monkeypatch.setattr("time.perf_counter", lambda: 100.0)
    monkeypatch.setenv("COLUMNS", "120")
    comparison = load_comparison("c.yaml", ["set.epochs=4"])
    run = make_run(comparison, written_methods(comparison)[1], 1, None)
    run.folder.mkdir(parents=True)
    line = json.dumps({"epoch": 0, "accuracy": 0.25, "balanced_accuracy": 0.2})
    (run.folder / "metrics.jsonl").write_text(line + "\n" + line[:10])  # a line that is being written
    terminal = Terminal()
    shown = board.Board(lambda run: 10.0, [run, run], 1, terminal)
    job = board.Job(run, 0, Ended(None), began=95.0)
    shown.draw([job])
    first, second = terminal.getvalue().splitlines()
    assert first == "0/2 runs, 0 failed, about 15 s left"
    assert second.split() == ["ns_lf", "seed", "1", "###.........", "1/4", "25.00%", "balanced", "20.00%", "15", "s", "left"]
    shown.finished(job, None)
    assert "\x1b[2F\x1b[J[1/2] ns_lf seed 1  accuracy 25.00%" in terminal.getvalue()
    assert shown.left([]) == "about 5 s left"  # the first took half of its estimate


def processes(workplace, *words):
    command = [sys.executable, "-m", "ns_data.compare.launch", "c.yaml", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("RAY_ADDRESS", None)  # a local cluster of its own
    return subprocess.Popen(command, cwd=workplace, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_processes_are_stopped_with_their_launcher_and_go_on(workplace):
    first = processes(workplace, "set.epochs=100", "seeds=[1]", "jobs=2", "only=[gce]")
    logs = [workplace / f"out/runs/{name}/1/metrics.jsonl" for name in ("baseline", "gce")]
    while not all(log.exists() and log.stat().st_size for log in logs) and first.poll() is None:
        time.sleep(0.1)
    first.send_signal(signal.SIGTERM)
    _, err = first.communicate()
    assert (first.returncode, err.strip()) == (1, "interrupted: the same command goes on where it stopped")
    with launch.locked(workplace / "out"):  # nothing is left that holds it
        pass
    reached = [len(log.read_text().splitlines()) for log in logs]
    assert max(reached) < 100
    again = processes(workplace, "set.epochs=100", "seeds=[1]", "jobs=2", "only=[gce]")
    out, err = again.communicate()
    assert (again.returncode, err) == (0, "")
    assert "[2/2]" in out
    assert "going on in" in (workplace / "out/runs/gce/1.log").read_text()


@pytest.mark.slow
def test_ray_tasks_give_the_same_results(workplace):
    pytest.importorskip("ray")
    for folder, words in (("by-ray", ["--launcher", "ray"]), ("local", [])):
        process = processes(workplace, f"folder={folder}", "seeds=[1]", "only=[gce]", *words)
        out, err = process.communicate()
        assert process.returncode == 0, (out, err)
    for method in ("baseline", "gce"):
        ray, local = (json.loads((workplace / f / "runs" / method / "1" / "done").read_text()) for f in ("by-ray", "local"))
        assert (ray["accuracy"], ray["test_loss"]) == (local["accuracy"], local["test_loss"])
