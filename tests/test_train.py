"""train.py as its users start it, on the digits: finished, repeated, killed and started again, and with mistakes."""

import contextlib
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import train
from ns_data import create_model

ROOT = Path(__file__).parent.parent
PLOTS = {"curves.png", "scores_by_class.png", "score_against_class_size.png", "weights.png", "composites.png"}


def run(folder, *words, plots=False):
    """Run ``main`` in this process with ``folder`` as working directory; return what it prints. Drawing takes its time."""
    out = io.StringIO()
    here = Path.cwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(out):
            train.main([*map(str, words), *([] if plots or "--help" in words else ["plots=false"])])
    finally:
        os.chdir(here)
    return out.getvalue()


def start(folder, *words):
    """Start a process of its own, as a user does."""
    command = [sys.executable, str(ROOT / "train.py"), *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with the digits prepared, and one finished run in it."""
    folder = tmp_path_factory.mktemp("workplace")
    run(folder, "epochs=2", "run_dir=first", plots=True)
    return folder


def metrics(run_dir):
    """The lines of metrics.jsonl without the clock's numbers."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    clock = ("second", "waiting", "scoring", "gpu")
    return [{key: value for key, value in line.items() if not any(word in key for word in clock)} for line in lines]


def same_results(one, other):
    a, b = (torch.load(folder / "last.pt", weights_only=True)["training"] for folder in (one, other))
    assert a["model"].keys() == b["model"].keys()
    for x, y in ((a["model"], b["model"]), (a["notes"]["ledger"], b["notes"]["ledger"])):
        for name in x:
            torch.testing.assert_close(x[name], y[name], rtol=0, atol=0, equal_nan=True)
    assert torch.equal(a["rng"]["cpu"][0], b["rng"]["cpu"][0])
    assert metrics(one) == metrics(other)
    with np.load(one / "scores.npz") as x, np.load(other / "scores.npz") as y:
        for name in x.files:
            np.testing.assert_array_equal(x[name], y[name])


def test_a_run_leaves_a_folder_and_a_summary(workplace):
    folder = workplace / "first"
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml",
        "env.json",
        "metrics.jsonl",
        "scores.npz",
        "last.pt",
        "tensorboard",
        "plots",
        "done",
    }
    assert {path.name for path in (folder / "plots").iterdir()} == PLOTS
    lines = metrics(folder)
    assert [line["epoch"] for line in lines] == [0, 1]
    assert all(line["samples"] == 417 and line["dropped"] == 0 for line in lines)
    assert lines[0]["mean_weight"] == pytest.approx(1.5 - 1 / 4, abs=1e-6)
    assert lines[0]["lr"] == pytest.approx(0.05 * (1 + math.cos(math.pi * (6 / 7) / 2)) / 2)  # the last of 7 steps
    assert torch.__version__ == json.loads((folder / "env.json").read_text())["torch"]
    ledger = np.load(folder / "scores.npz")
    assert (ledger["count"] == 2).all()


def test_a_line_can_be_printed_every_so_many_steps(workplace):
    out = run(
        workplace, "epochs=1", "run_dir=spoken", "log_every=3", "plots=false", "schedule.name=constant", "optimizer.lr=1e-9"
    )
    said = re.findall(r"^epoch 1/1, step (\d)/7  loss (\d\.\d{4})  \d+ images/s, waiting \d+%$", out, re.MULTILINE)
    assert [step for step, _ in said] == ["3", "6"]
    assert float(said[1][1]) == pytest.approx(metrics(workplace / "spoken")[0]["loss"], rel=0.02)  # nothing was learnt


def test_plots_can_be_left_out_and_matplotlib_with_them(workplace):
    code = "import sys, train; train.main(sys.argv[1:]); sys.exit('matplotlib' in sys.modules)"
    words = ["epochs=1", "run_dir=bare", "plots=false"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code, *words], cwd=workplace, check=True, capture_output=True, env=environment)
    assert not (workplace / "bare" / "plots").exists()
    assert (workplace / "bare" / "done").exists()


def test_every_number_of_the_metrics_is_explained(workplace):
    explained = set(re.findall(r"`(\w+)`", (ROOT / "docs" / "training.md").read_text()))
    lines = [json.loads(line) for line in (workplace / "first" / "metrics.jsonl").read_text().splitlines()]
    assert lines[0].keys() <= explained
    asked_for = {"lr", "mean_weight", "tied_groups", "relaxed", "ungrouped", "samples_per_second", "waiting_share"}
    assert asked_for | {"scoring_share", "top5_accuracy", "balanced_accuracy", "recall", "many_shot"} <= lines[0].keys()
    assert {"calibration_error", "medium_shot", "few_shot"} <= lines[0].keys()


def test_what_was_loaded_is_said_once(workplace):
    torch.save(create_model("small_cnn", 7).state_dict(), workplace / "seven.pt")
    words = ["epochs=1", "model.options={weights: seven.pt}", "run_dir=tuned", "optimizer.groups={features: 0}"]
    out = run(workplace, *words)
    (said,) = [line for line in out.splitlines() if line.startswith("small_cnn: ")]
    assert "tensors loaded from seven.pt; 2 replaced for another number of classes (head.weight, head.bias)" in said
    before = torch.load(workplace / "seven.pt")
    after = torch.load(workplace / "tuned" / "last.pt", weights_only=True)["training"]["model"]
    assert torch.equal(after["features.0.weight"], before["features.0.weight"])  # frozen
    assert not torch.equal(after["features.1.running_mean"], before["features.1.running_mean"])
    (workplace / "tuned" / "done").unlink()
    assert "tensors loaded" not in run(workplace, *words)  # the checkpoint replaced them


def test_a_diverged_run_names_a_checkpoint_that_is_good(workplace):
    """The rate explodes in step 5 of 7 of the second epoch; the loss shows it in step 6, after which a checkpoint is due."""
    words = ["epochs=3", "run_dir=diverged", "keep_every=1", "checkpoint_every=3", "schedule.name=multi_step"]
    explode = ["schedule.options={milestones: [1.55], factor: 1e30}"]
    with pytest.raises(ValueError, match="not a finite number") as error:
        run(workplace, *words, *explode)
    assert "in step 6 of epoch 2: lower optimizer.lr (now 0.05)" in str(error.value)
    assert "the last checkpoint, diverged/last.pt, is from step 3 of epoch 2" in str(error.value)
    assert str(error.value).endswith("kept: epoch-1.pt")
    for name, at in (("last.pt", (1, 3)), ("epoch-1.pt", (1, 0))):
        state = torch.load(workplace / "diverged" / name, weights_only=True)
        assert (state["plan"]["epoch"], state["plan"]["batches"]) == at
        assert all(value.isfinite().all() for value in state["training"]["model"].values())


def test_the_same_command_again_prints_the_summary_and_trains_nothing(workplace):
    before = (workplace / "first" / "last.pt").stat().st_mtime_ns
    out = run(workplace, "epochs=2", "run_dir=first")
    assert "done already" in out
    assert "balanced accuracy" in out
    assert "first/plots" in out
    assert (workplace / "first" / "last.pt").stat().st_mtime_ns == before


def test_two_runs_with_one_seed_are_bit_equal_and_the_recorded_config_repeats_them(workplace):
    run(workplace, "epochs=2", "run_dir=second")
    same_results(workplace / "first", workplace / "second")
    run(workplace, "first/config.yaml", "run_dir=third")
    same_results(workplace / "first", workplace / "third")
    run(workplace, "epochs=2", "run_dir=other-seed", "seed=1")
    assert metrics(workplace / "other-seed") != metrics(workplace / "first")


def test_workers_change_nothing(workplace):
    run(workplace, "epochs=2", "run_dir=workers", "data.workers=2")
    same_results(workplace / "first", workplace / "workers")


@pytest.mark.parametrize("sampling", ["instance", "cbs"])
def test_a_killed_run_goes_on_to_the_same_end(workplace, sampling):
    """SIGKILL in the middle of an epoch; checkpoints every two steps; BatchNorm and dropout in the network."""
    words = ["model.name=mobilenet_v2", "epochs=2", f"sampling.name={sampling}", "data.image_size=8", "checkpoint_every=2"]
    words += ["plots=false", "tensorboard=false"]
    undisturbed = start(workplace, *words, f"run_dir=undisturbed-{sampling}")
    assert undisturbed.wait() == 0
    killed = workplace / f"killed-{sampling}"
    process = start(workplace, *words, f"run_dir={killed.name}")
    while not (killed / "last.pt").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    plan = torch.load(killed / "last.pt", weights_only=True)["plan"]
    assert plan["epoch"] < 2
    again = start(workplace, *words, f"run_dir={killed.name}")
    out, _ = again.communicate()
    assert again.returncode == 0
    assert f"going on in {killed.name} at epoch {plan['epoch'] + 1}, step {plan['batches'] + 1}" in out
    same_results(workplace / f"undisturbed-{sampling}", killed)


def test_weights_of_one_equal_the_baseline_bit_by_bit_and_others_do_not(workplace):
    run(workplace, "epochs=2", "run_dir=forced", "ns.sigma=1", "ns.rho=0")
    run(workplace, ROOT / "configs" / "digits_baseline.yaml", "epochs=2", "run_dir=baseline")
    names = ("forced", "first", "baseline")
    states = [torch.load(workplace / name / "last.pt", weights_only=True)["training"]["model"] for name in names]
    forced, weighed, baseline = states
    assert all(torch.equal(forced[key], baseline[key]) for key in baseline)
    assert not torch.equal(weighed["head.weight"], baseline["head.weight"])


@pytest.mark.parametrize("weighting", ["own", "shuffled", "constant", "inverse_frequency"])
def test_every_control_trains(workplace, weighting):
    run(workplace, "epochs=1", f"ns.weighting={weighting}", f"run_dir={weighting}")
    line = metrics(workplace / weighting)[0]
    assert line["mean_weight"] == pytest.approx(1.25, rel=1e-3)


def test_settings_of_the_step(workplace):
    run(workplace, "epochs=3", "ns.start_epoch=1", "ns.sigma_end=1.0", "ns.rho_end=0.0", "run_dir=ramp")
    assert [round(line["mean_weight"], 4) for line in metrics(workplace / "ramp")] == [1, 1.25, 1]
    run(workplace, "epochs=1", "ns.normalize=true", "amp=bf16", "channels_last=true", "sampling.name=srs", "run_dir=mixed")
    assert metrics(workplace / "mixed")[0]["mean_weight"] == pytest.approx(1, abs=1e-6)


def test_other_settings_in_the_same_folder_are_refused_and_fresh_starts_anew(workplace):
    with pytest.raises(ValueError, match=r"other settings \(epochs was 2, is 3\)"):
        run(workplace, "epochs=3", "run_dir=first")
    run(workplace, "epochs=1", "run_dir=again")
    run(workplace, "epochs=1", "run_dir=again", "seed=5", "fresh=true")
    assert yaml.safe_load((workplace / "again" / "config.yaml").read_text())["seed"] == 5
    (workplace / "precious").mkdir()
    (workplace / "precious" / "thesis.txt").touch()
    with pytest.raises(ValueError, match="not a run folder"):
        run(workplace, "run_dir=precious", "fresh=true")
    assert (workplace / "precious" / "thesis.txt").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["epcohs=3"], "did you mean 'epochs'"),
        (["nowhere.yaml"], "no config file nowhere.yaml"),
        (["--dryrun"], "unknown option --dryrun: there are --help, --dry-run"),
        (["ns.sigma=0.5"], "sigma must be at least 1"),
        (["ns.weighting=nss"], "unknown weighting 'nss'"),
        (["model.name=small_cn"], "did you mean 'small_cnn'"),
        (["batch_size=2"], "cannot hold one group"),
        (["batch_size=30"], "use 28 or 32"),
        (["ns.surplus=drop", "ns.layout=3x4", "batch_size=60"], "12 different classes from 10 classes"),
        (["amp=fp8"], "unknown amp 'fp8': did you mean 'fp16'"),
        (["optimizer.lr=1e30", "epochs=2"], "the loss was not a finite number in step"),
    ],
)
def test_mistakes_are_one_sentence(workplace, words, message):
    with pytest.raises(ValueError, match=message) as error:
        run(workplace, *words, "run_dir=mistake", "fresh=true")
    assert "\n" not in str(error.value)


def test_a_mistake_ends_the_process_with_one_line_and_no_traceback(workplace):
    process = start(workplace, "epcohs=3")
    out, err = process.communicate()
    assert process.returncode == 1
    assert (out, err) == ("", "error: epcohs=3: unknown setting 'epcohs': did you mean 'epochs'?\n")


def test_help_print_config_and_dry_run(workplace):
    assert "ns.sigma=1.5" in run(workplace, "--help")
    printed = run(workplace, "--print-config", "epochs=7")
    assert yaml.safe_load(printed)["epochs"] == 7
    out = run(workplace, ROOT / "configs" / "digits_lt.yaml", "--dry-run", "run_dir=dry")
    assert "150 97 62 40 26 17 11 7 4 3" in out
    assert "from 0.5 to 1.5, mean 1.25, as learning rate x 1.25 under SGD" in out
    assert "8.3% of a step" in out
    assert (workplace / "dry-dry-run.png").is_file()
    assert not (workplace / "dry").exists()


@pytest.mark.slow
@pytest.mark.parametrize("config", sorted((ROOT / "configs").glob("digits*.yaml")), ids=lambda path: path.stem)
def test_shipped_digits_configs_learn(workplace, config):
    run(workplace, config, f"run_dir=shipped-{config.stem}")
    last = metrics(workplace / f"shipped-{config.stem}")[-1]
    assert last["balanced_accuracy"] > 0.8
