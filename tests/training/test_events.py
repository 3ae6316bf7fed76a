"""TensorBoard's log, read back with TensorBoard."""

import json
import sys

import pytest

from ns_data.training.config import Config
from ns_data.training.run import RunFolder

LINES = [
    {"epoch": 0, "loss": 2.25, "samples": 417, "recall": [0.5, None, 0.75]},
    {"epoch": 1, "loss": 1.5, "samples": 417, "recall": [0.5, None, 1.0]},
    {"epoch": 2, "loss": float("nan"), "samples": 417, "recall": [None, None, None]},
]


def written(folder):
    """{name: [(step, value)]} as TensorBoard shows it, and the names of histograms."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "histograms": 0})
    events.Reload()
    tags = events.Tags()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in tags["scalars"]}, tags["histograms"], events


def start(run, first_epoch, tensorboard=None):
    run.start(Config(name="a", run_dir=str(run.path)))
    run.open_logs(first_epoch, tensorboard)
    return run


def test_the_numbers_are_those_of_the_metrics(tmp_path):
    run = start(RunFolder(tmp_path / "run"), 0)
    for line in LINES:
        run.log(line)
    scalars, histograms, events = written(run.path)
    assert scalars.keys() == {"loss", "samples"}
    assert scalars["samples"] == [(0, 417), (1, 417), (2, 417)]
    assert scalars["loss"][:2] == [(line["epoch"], line["loss"]) for line in run.metrics()[:2]]
    assert str(scalars["loss"][2][1]) == "nan"
    assert histograms == ["recall"]
    histogram = events.Histograms("recall")[1].histogram_value
    assert (histogram.num, histogram.sum, histogram.max) == (2, 1.5, 1)


def test_epochs_that_are_trained_again_are_there_once(tmp_path):
    folder = tmp_path / "run"
    for loss in (2.25, 1.25):  # killed after the line of epoch 1 was written, before its checkpoint was
        run = start(RunFolder(folder), 0 if loss == 2.25 else 1)
        for epoch in range(0 if loss == 2.25 else 1, 2 if loss == 2.25 else 3):
            run.log({"epoch": epoch, "loss": loss})
        run._events.close()
    scalars, _, _ = written(folder)
    assert scalars["loss"] == [(0, 2.25), (1, 1.25), (2, 1.25)]
    assert [(line["epoch"], line["loss"]) for line in run.metrics()] == scalars["loss"]


def test_without_the_package_or_by_setting_nothing_is_written(tmp_path, monkeypatch):
    off = start(RunFolder(tmp_path / "off"), 0, tensorboard=False)
    off.log(LINES[0])
    assert not (off.path / "tensorboard").exists()
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # as if it were not installed
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    absent = start(RunFolder(tmp_path / "absent"), 0)
    absent.log(LINES[0])
    assert not (absent.path / "tensorboard").exists()
    assert json.loads((absent.path / "metrics.jsonl").read_text()) == LINES[0]
    with pytest.raises(ValueError, match="tensorboard=true needs the package tensorboard: pip install tensorboard"):
        start(RunFolder(tmp_path / "wanted"), 0, tensorboard=True)
