import pickle

import pytest
import torch

from ns_data.training.config import Config
from ns_data.training.run import RunFolder


class Marker:
    """Would leave a file behind if it were unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.fixture
def config(tmp_path):
    return Config(name="a", run_dir=str(tmp_path / "run"))


def test_metrics_of_epochs_that_are_trained_again_are_forgotten(config):
    run = RunFolder(config.run_dir)
    run.start(config)
    for epoch in range(4):
        run.log({"epoch": epoch, "loss": 1.0})
    run.keep_metrics_before(2)
    run.log({"epoch": 2, "loss": 0.5})
    assert [(line["epoch"], line["loss"]) for line in run.metrics()] == [(0, 1.0), (1, 1.0), (2, 0.5)]


def test_a_checkpoint_executes_nothing_and_says_what_to_do(config, tmp_path):
    run = RunFolder(config.run_dir)
    run.start(config)
    assert run.load_checkpoint() is None
    torch.save({"training": Marker(tmp_path / "marker")}, run.path / "last.pt")
    with pytest.raises(ValueError, match=r"last.pt cannot be read .* fresh=true"):
        run.load_checkpoint()
    (run.path / "last.pt").write_bytes(pickle.dumps(Marker(tmp_path / "marker")))
    with pytest.raises(ValueError, match="cannot be read"):
        run.load_checkpoint()
    assert not (tmp_path / "marker").exists()


def test_every_kth_checkpoint_is_kept(config):
    run = RunFolder(config.run_dir)
    run.start(config)
    run.save_checkpoint({"epoch": 1})
    run.save_checkpoint({"epoch": 2}, keep_as="epoch-2.pt")
    run.save_checkpoint({"epoch": 3})
    assert run.load_checkpoint() == {"epoch": 3}
    assert torch.load(run.path / "epoch-2.pt", weights_only=True) == {"epoch": 2}
    assert not list(run.path.glob("*.partial"))


def test_settings_that_change_no_result_may_differ(config):
    run = RunFolder(config.run_dir)
    run.start(config)
    config.data.workers, config.device = 3, "cpu"
    run.check(config)
    config.ns.sigma = 2.0
    with pytest.raises(ValueError, match=r"ns.sigma was 1.5, is 2.0"):
        run.check(config)
