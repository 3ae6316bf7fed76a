"""Source-free adaptation as its users start it, on the digits' domains with tiny settings."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import sfda_shot
import sfda_source
import sfda_table
import torch
import yaml
from sfda_config import load_sfda, source_folder
from sfda_data import open_domain

from ns_data import WEIGHTINGS, ScoreLedger, write_shards
from ns_data.compare.formats import to_csv

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "sfda"
TINY = ("epochs=2", "training.epochs=2", "model.options.width=4", "bottleneck=16", "device=cpu")


def run(folder, *words, script=sfda_shot):
    """Run ``main`` of a script in this process with ``folder`` as working directory; return what it prints."""
    out, here = io.StringIO(), Path.cwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(out):
            script.main([str(word) for word in words])
    finally:
        os.chdir(here)
    return out.getvalue()


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with one finished run in it, and so with the source model of `plain`."""
    folder = tmp_path_factory.mktemp("workplace")
    run(folder, *TINY, "run_dir=first")
    return folder


def lines_of(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    clock = ("second", "waiting", "scoring")
    return [{key: value for key, value in line.items() if not any(word in key for word in clock)} for line in lines]


def same_results(one, other):
    a, b = (torch.load(folder / "last.pt", weights_only=True) for folder in (one, other))
    for name, tensor in a["training"]["model"].items():
        assert torch.equal(tensor, b["training"]["model"][name]), name
    assert torch.equal(a["labels"], b["labels"])
    assert lines_of(one) == lines_of(other)
    with np.load(one / "scores.npz") as x, np.load(other / "scores.npz") as y:
        for name in x.files:
            np.testing.assert_array_equal(x[name], y[name])


def test_a_run_leaves_a_folder_and_a_summary(workplace):
    folder = workplace / "first"
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml", "env.json", "metrics.jsonl", "tensorboard", "scores.npz", "last.pt", "done"
    }  # fmt: skip
    lines, summary = lines_of(folder), json.loads((folder / "done").read_text())
    assert [line["epoch"] for line in lines] == [0, 1]
    assert [line["lr"] for line in lines] == pytest.approx([0.01 * (1 + 10 * it / 14) ** -0.75 for it in (7, 14)])
    assert all(line["mean_weight"] == pytest.approx(0.6 + 1 / 4) for line in lines)
    assert all(line["test_samples"] == line["samples"] == 447 for line in lines)
    assert summary["accuracy"] == lines[-1]["accuracy"]
    assert (ScoreLedger.load(folder / "scores.npz").mean_by_sample() > 0).all()


def test_the_source_model_is_kept_for_other_methods_and_other_targets(workplace):
    (place,) = (workplace / "runs" / "sfda" / "sources").iterdir()
    stamp = (place / "last.pt").stat().st_mtime_ns
    out = run(workplace, *TINY, "run_dir=baseline", "ns.weighting=none", "epochs=1")
    run(workplace, *TINY, "run_dir=noisy", "target=noisy", "epochs=1")
    assert (place / "last.pt").stat().st_mtime_ns == stamp
    assert "source model" in out
    first, baseline = (json.loads((workplace / name / "done").read_text()) for name in ("first", "baseline"))
    assert first["source_only_accuracy"] == baseline["source_only_accuracy"]
    config = load_sfda(CONFIGS / "digits.yaml", TINY)
    folders = {source_folder(config)}
    for word in (
        "seed=1",
        "training.epochs=3",
        "training.optimizer.lr=0.1",
        "bottleneck=8",
        "source=noisy",
        "data.augment=none",
    ):
        folders.add(source_folder(load_sfda(CONFIGS / "digits.yaml", [*TINY, word])))
    assert len(folders) == 7


def test_the_same_command_again_trains_nothing_and_another_is_refused(workplace):
    before = (workplace / "first" / "last.pt").stat().st_mtime_ns
    assert "adapted" in run(workplace, *TINY, "run_dir=first")
    assert (workplace / "first" / "last.pt").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r"first holds a run with other settings \(ns.sigma was 0.6, is 0.7\)"):
        run(workplace, *TINY, "run_dir=first", "ns.sigma=0.7")


def test_the_classifier_of_the_source_stays_and_the_rest_adapts(workplace):
    (place,) = (workplace / "runs" / "sfda" / "sources").glob("plain-*")
    source = torch.load(place / "last.pt", weights_only=True)
    adapted = torch.load(workplace / "first" / "last.pt", weights_only=True)["training"]["model"]
    assert source["classes"] == [str(k) for k in range(10)]
    for name, tensor in source["model"].items():
        changed = not torch.equal(tensor, adapted[name])
        assert changed == (not name.startswith("classifier")), name


class PowerCutError(Exception):
    """The process ends here."""


def interrupt(monkeypatch, owner, name, call):
    """Let the ``call``-th call of a function fail."""
    original, calls = getattr(owner, name), []

    def failing(*args, **kwargs):
        calls.append(None)
        if len(calls) == call:
            raise PowerCutError
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, failing)


@pytest.mark.parametrize(
    ("owner", "name", "call"), [(sfda_source, "evaluate", 2), (sfda_shot.Adaptation, "step", 11)], ids=["source", "target"]
)
def test_an_interrupted_run_goes_on_to_the_same_end(workplace, monkeypatch, owner, name, call):
    """In the second epoch on the source, or on the target; a truncated loss that remembers every sample."""
    words = (
        *TINY,
        "training.evaluations=4",
        "loss.name=gce",
        "loss.options={k: 0.1, start_prune: 1}",
        "ns.grouping=class_mixed",
    )
    if not (workplace / "whole").exists():
        run(workplace, *words, "run_dir=whole", "sources_dir=whole-sources")
    parts = [*words, f"run_dir=parts-{name}", f"sources_dir=parts-{name}-sources"]
    with monkeypatch.context() as patch:
        interrupt(patch, owner, name, call)
        with pytest.raises(PowerCutError):
            run(workplace, *parts)
    out = run(workplace, *parts)
    assert ("going on in" in out) == (name == "step")
    same_results(workplace / "whole", workplace / f"parts-{name}")
    kept = torch.load(workplace / f"parts-{name}" / "last.pt", weights_only=True)["training"]["loss"]
    assert (kept["last_p"] < 1).all()
    assert not kept["kept"].all()


@pytest.mark.slow
def test_a_killed_process_goes_on_to_the_same_end(tmp_path):
    """SIGKILL after the first epochs on the target; dropout in the network, whose draws go on, too."""
    words = ["model.name=mobilenet_v2", "model.options={}", "epochs=4", "training.epochs=1", "device=cpu"]
    command = [sys.executable, str(ROOT / "examples" / "sfda_shot.py"), *words]
    whole = subprocess.run([*command, "run_dir=whole"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "adapted" in whole.stdout
    process = subprocess.Popen([*command, "run_dir=parts"], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (tmp_path / "parts" / "last.pt").is_file():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "parts" / "done").exists()
    again = subprocess.run([*command, "run_dir=parts"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "going on in parts at epoch" in again.stdout
    same_results(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_every_weighting_adapts(workplace, weighting):
    run(workplace, *TINY, f"run_dir=w-{weighting}", f"ns.weighting={weighting}", "epochs=1", "batch_size=224")
    (line,) = lines_of(workplace / f"w-{weighting}")
    mean = 1 if weighting == "none" else 0.85
    assert line["mean_weight"] == pytest.approx(mean, rel=0.2 if weighting == "inverse_frequency" else 1e-5)


def test_the_labels_of_the_target_decide_nothing(workplace, monkeypatch):
    """With wrong true labels the same network comes out."""

    def mislabelled(config, domain, *, training):
        dataset = open_domain(config, domain, training=training)
        if domain == config.target:
            dataset.labels = np.roll(dataset.labels, 1)
        return dataset

    monkeypatch.setattr(sfda_shot, "open_domain", mislabelled)
    run(workplace, *TINY, "run_dir=mislabelled")
    a, b = (torch.load(workplace / name / "last.pt", weights_only=True)["training"] for name in ("first", "mislabelled"))
    assert all(torch.equal(a["model"][name], b["model"][name]) for name in a["model"])
    assert lines_of(workplace / "first")[-1]["accuracy"] != lines_of(workplace / "mislabelled")[-1]["accuracy"]


def test_a_batch_of_one_is_skipped_and_counted(workplace):
    """`noisy` has 445 samples."""
    out = run(workplace, *TINY, "run_dir=lone", "target=noisy", "batch_size=148", "epochs=1", "training.batch_size=37")
    (line,) = lines_of(workplace / "lone")
    assert line["skipped_batches"] == 1
    assert line["samples"] == 445
    assert "skipped batches 1" in out
    places = [json.loads((place / "done").read_text()) for place in (workplace / "runs" / "sfda" / "sources").iterdir()]
    assert {place["skipped_batches"] for place in places} == {0}


def test_the_best_of_ten_looks_at_the_held_out_source_is_kept(workplace, monkeypatch):
    """By the accuracies that the looks had: the latest of the best, its own weights; and the last with keep=last."""
    looks, states = [0.2, 0.9, 0.4, 0.9, 0.1], []

    def look(model, loader, to_input, stats):
        states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return {"accuracy": looks[len(states) - 1]}

    monkeypatch.setattr(sfda_source, "evaluate", look)
    for keep, chosen in (("best", 3), ("last", 4)):
        states.clear()
        words = [
            *TINY,
            "training.epochs=5",
            "training.evaluations=5",
            f"training.keep={keep}",
            f"data.root={workplace / 'data'}",
        ]
        config = load_sfda(CONFIGS / "digits.yaml", [*words, f"sources_dir={workplace / keep}"])
        state, classes = sfda_source.train_source(config, torch.device("cpu"))
        assert len(classes) == 10
        assert len(states) == 5
        assert all(torch.equal(state[name], states[chosen][name]) for name in state)
        assert not torch.equal(state["features.features.0.weight"], states[chosen - 1]["features.features.0.weight"])
        done = json.loads((source_folder(config) / "done").read_text())
        assert (done["held_out_accuracy"], done["step"], done["steps"]) == (looks[chosen], 7 * (chosen + 1), 35)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ns.sigmma=1"], r"ns.sigmma=1: unknown setting 'ns.sigmma': did you mean 'ns.sigma'\?"),
        (["training.optimizer.ir=1"], "did you mean 'training.optimizer.lr'"),
        (["target=rotatd"], "unknown domain 'rotatd': did you mean 'rotated'"),
        (["target=plain"], "source and target are both plain"),
        (["epochs=0"], "epochs must be at least 1, got 0"),
        (["training.keep=first"], "training.keep must be best or last, got 'first'"),
        (["training.holdout=1"], "training.holdout must be between 0 and 1, got 1.0"),
        (["ns.weighting=nss", "fresh=true"], "unknown weighting 'nss': did you mean 'ns'"),
        (["loss.name=gec", "fresh=true"], "unknown loss 'gec': did you mean 'gce'"),
        (["data.evaluate=streched", "fresh=true"], "unknown evaluate 'streched': did you mean 'stretch'"),
        (["threshold=447", "fresh=true"], "no class has more than threshold=447 of the 447 target samples"),
        (["batch_size=2", "fresh=true"], "batch_size 2 cannot hold one group"),
        (["--dry"], "unknown option --dry: there are --help, --dry-run"),
        (["optimizer.lr=1e20", "fresh=true"], "not finite|not a finite number"),
    ],
)
def test_mistakes_are_one_sentence(workplace, words, message):
    with pytest.raises(ValueError, match=message) as error:
        run(workplace, *TINY, "run_dir=mistake", *words)
    assert "\n" not in str(error.value)


def write_domain(folder, classes, labels):
    rng = np.random.default_rng(0)
    samples = [(rng.integers(0, 255, (16, 16), dtype=np.uint8), label) for label in labels]
    write_shards(samples, folder, classes=classes, progress=False)


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (("ab", [0, 1]), ("abc", [0, 1, 2]), "domain left lacks the class 'c' that right has"),
        (("abc", [0, 1, 2]), ("ab", [0, 1]), "domain right lacks the class 'c' that left has"),
        (("abc", [0, 1, 1]), ("abc", [0, 1, 2]), "domain left has no sample of the class 'c'"),
        (("abc", [0, 1, 2]), ("abc", [0, 0, 2]), "domain right has no sample of the class 'b'"),
        (("abc", [0, 1, 2]), ("bac", [0, 1, 2]), "left and right number their classes differently"),
        (
            None,
            ("ab", [0, 1]),
            r"there are no shards of domain left in .*: write them, .* ns-data shards officehome",
        ),
    ],
)
def test_domains_that_do_not_fit_are_one_sentence(tmp_path, source, target, message):
    for name, domain in (("left", source), ("right", target)):
        if domain is not None:
            write_domain(tmp_path / "domains" / name, list(domain[0]), 12 * domain[1])
    words = ["data.path=domains", "data.domains=[left,right]", "source=left", "target=right"]
    with pytest.raises(ValueError, match=message) as error:
        run(tmp_path, *TINY, *words)
    assert "\n" not in str(error.value)


def test_help_dry_run_and_printed_config(workplace):
    assert re.search(r"^  ns.sigma=0.6 +\w", run(workplace, "--help"), re.MULTILINE)
    out = run(workplace, *TINY, "--dry-run", "target=noisy", "batch_size=148")
    assert "445 target samples of 10 classes" in out
    assert "2 epochs of 4 steps, the last of 1 samples" in out
    assert "mean 0.85" in out
    printed = run(workplace, *TINY, "--print-config")
    (workplace / "printed.yaml").write_text(printed)
    assert run(workplace, "printed.yaml", "--print-config") == printed


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configs_load_and_open_with_their_command(path):
    text = path.read_text()
    if path.stem.startswith("table"):
        table = sfda_table.load_table(path, [])
        runs = sfda_table.plan(table, path)
        assert len({run.config.run_dir for run in runs}) == len(runs) == 12 * 3 * len(table.methods)
        assert len({source_folder(run.config) for run in runs if run.config.seed == 2024}) == 4
        assert "python examples/sfda_table.py" in text
    else:
        config = load_sfda(path)
        assert (config.ns.sigma, config.ns.rho, config.ns.layout, config.pseudo_weight) == (0.6, 1.0, "2x2", 0.3)
        assert "python examples/sfda_shot.py" in text


def test_office_home_runs_from_its_folders(tmp_path):
    """Pictures in the folders of its domains, one spelt as it comes, through the shipped config with a small network."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for domain in ("Art", "Real World"):
        for name in ("Alarm_Clock", "Backpack"):
            folder = tmp_path / "home" / domain / name
            folder.mkdir(parents=True)
            for number in range(12):
                Image.fromarray(rng.integers(0, 255, (40, 30, 3), dtype=np.uint8)).save(folder / f"{number:05d}.jpg")
    words = ["source=Art", "target=RealWorld", "data.options.path=home", "data.workers=0", "device=cpu", "run_dir=pair"]
    small = ["data.image_size=16", "data.augment_options.resize=20", "data.evaluate_options.resize=20", "model.name=small_cnn"]
    config = tmp_path / "small.yaml"
    config.write_text(
        f"base: {CONFIGS / 'officehome.yaml'}\nepochs: 1\nbatch_size: 8\ntraining: {{epochs: 1, batch_size: 8}}\n"
    )
    run(tmp_path, config, *words, *small, "model.options.weights=null")
    (line,) = lines_of(tmp_path / "pair")
    assert line["samples"] == line["test_samples"] == 24


def test_a_table_of_the_papers_form(workplace):
    table = workplace / "table.yaml"
    methods = {"shot": {"weighting": "none"}, "ns": {"weighting": "ns"}}
    settings = {"epochs": 1, "training.epochs": 2, "model.options.width": 4, "bottleneck": 16, "device": "cpu"}
    content = {"base": str(CONFIGS / "digits.yaml"), "seeds": [2024], "methods": methods, "set": settings, "folder": "table"}
    table.write_text(yaml.safe_dump(content, sort_keys=False))
    assert "24 runs, 0 of them done" in run(workplace, "table.yaml", "--dry-run", script=sfda_table)
    out = run(workplace, "table.yaml", "pairs=[P>R]", script=sfda_table)
    assert "| method | P>R | average | average - shot |" in out
    assert "24 runs, 2 of them done" in run(workplace, "table.yaml", "--dry-run", script=sfda_table)
    again = run(workplace, "table.yaml", "pairs=[P>R]", script=sfda_table)
    assert "2 runs, 2 of them done" in again
    summary = json.loads((workplace / "table" / "ns" / "plain-rotated" / "2024" / "done").read_text())
    assert f"| ns | {100 * summary['accuracy']:.2f} (1) |" in again
    with pytest.raises(ValueError, match="unknown pair of domains 'P>X': did you mean"):
        run(workplace, "table.yaml", "pairs=[P>X]", script=sfda_table)
    with pytest.raises(ValueError, match=r"method ns: .* unknown setting 'ns.sigmma': did you mean 'ns.sigma'"):
        run(workplace, "table.yaml", "methods.ns.ns.sigmma=1", script=sfda_table)


def test_the_table_averages_over_pairs_before_seeds():
    """By hand: averages 50 and 70 of `shot`, 55 and 65 of `ns`; a seed that lacks a pair counts in its column alone."""
    shot = {"A>C": {1: 40.0, 2: 80.0, 3: 10.0}, "C>A": {1: 60.0, 2: 60.0}}
    ns = {"A>C": {1: 50.0, 2: 70.0}, "C>A": {1: 60.0, 2: 60.0}}
    table = sfda_table.make_table({"shot": shot, "ns": ns}, ["A>C", "C>A"], "shot")
    assert table.columns == ["method", "A>C", "C>A", "average", "average - shot"]
    assert [str(cell) for cell in table.rows[0]] == [
        "shot",
        "43.33 ± 35.12 (3)",
        "60.00 ± 0.00 (2)",
        "60.00 ± 14.14 (2)",
        "None",
    ]
    assert [str(cell) for cell in table.rows[1]][3:] == ["60.00 ± 7.07 (2)", "0.00 ± 7.07 (2)"]
    assert to_csv(table).splitlines()[0].startswith("method,A>C mean,A>C std,A>C n,C>A mean")


def test_the_stand_in_is_a_shift_that_shot_closes(tmp_path):
    """Half the shipped epochs, plain to noisy: far below on arrival, far above after adaptation."""
    run(tmp_path, "target=noisy", "training.epochs=15", "epochs=8", "run_dir=x", "device=cpu")
    summary = json.loads((tmp_path / "x" / "done").read_text())
    assert summary["source_only_accuracy"] < 0.6
    assert summary["accuracy"] > summary["source_only_accuracy"] + 0.2
