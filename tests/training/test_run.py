import pickle
from dataclasses import asdict, replace

import pytest
import torch
from torch import nn

from ns_data.training.config import Config, OptimizerConfig
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


@pytest.fixture
def network():
    return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 10))


def state_of(config, network, epoch=0, batches=0):
    """A checkpoint as train.py makes it, with what a run folder looks at."""
    return {
        "config": asdict(config),
        "training": {"model": network.state_dict()},
        "plan": {"epoch": epoch, "batches": batches},
    }


def test_metrics_of_epochs_that_are_trained_again_are_forgotten(config):
    run = RunFolder(config.run_dir)
    run.start(config)
    for epoch in range(4):
        run.log({"epoch": epoch, "loss": 1.0})
    run.open_logs(2, tensorboard=False)
    run.log({"epoch": 2, "loss": 0.5})
    assert [(line["epoch"], line["loss"]) for line in run.metrics()] == [(0, 1.0), (1, 1.0), (2, 0.5)]


def test_a_checkpoint_executes_nothing_and_says_what_to_do(config, network, tmp_path):
    run = RunFolder(config.run_dir)
    run.start(config)
    assert run.load_checkpoint(config, network) is None
    torch.save({"training": Marker(tmp_path / "marker")}, run.path / "last.pt")
    with pytest.raises(ValueError, match=r"last.pt cannot be read .* fresh=true"):
        run.load_checkpoint(config, network)
    (run.path / "last.pt").write_bytes(pickle.dumps(Marker(tmp_path / "marker")))
    with pytest.raises(ValueError, match="cannot be read"):
        run.load_checkpoint(config, network)
    assert not (tmp_path / "marker").exists()


def test_every_kth_checkpoint_is_kept(config, network):
    run = RunFolder(config.run_dir)
    run.start(config)
    assert run.checkpoints() == "no checkpoint was saved before it"
    for epoch in (9, 10):
        run.save_checkpoint(state_of(config, network, epoch), keep_as=f"epoch-{epoch}.pt")
    run.save_checkpoint(state_of(config, network, 10, 7))
    assert run.load_checkpoint(config, network)["plan"] == {"epoch": 10, "batches": 7}
    assert torch.load(run.path / "epoch-9.pt", weights_only=True)["plan"] == {"epoch": 9, "batches": 0}
    assert not list(run.path.glob("*.partial"))
    kept = "also kept: epoch-9.pt, epoch-10.pt"
    assert run.checkpoints() == f"the last checkpoint, {run.path}/last.pt, is from step 7 of epoch 11; {kept}"
    run.save_checkpoint(state_of(config, network, 11))
    assert f"is from the end of epoch 11; {kept}" in run.checkpoints()


def test_a_checkpoint_of_another_run_names_what_differs(config, network):
    run = RunFolder(config.run_dir)
    run.start(config)
    run.save_checkpoint(state_of(config, network))
    other = replace(config, batch_size=128, optimizer=OptimizerConfig(groups={"head": 10}))
    with pytest.raises(ValueError, match=r"batch_size was 64, is 128, optimizer.groups.head was None, is 10\): start anew"):
        run.load_checkpoint(other, network)
    classes = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 12))
    with pytest.raises(
        ValueError, match=r"other classes .*1.weight was \(10, 3\), is \(12, 3\), 1.bias was \(10,\), is \(12,\)"
    ):
        run.load_checkpoint(config, classes)
    with pytest.raises(ValueError, match=r"2.bias was not there, is \(4,\).* and 1 more\)"):
        run.load_checkpoint(config, nn.Sequential(*network, nn.Linear(10, 4), nn.Linear(4, 4, bias=False), nn.PReLU()))
    with pytest.raises(ValueError, match=r"1.weight was \(10, 3\), is not there"):
        run.load_checkpoint(config, network[:1])
    torch.save({"model": network.state_dict()}, run.path / "last.pt")
    with pytest.raises(ValueError, match=r"last.pt is not a checkpoint of this program: start anew with fresh=true"):
        run.load_checkpoint(config, network)


def test_settings_that_change_no_result_may_differ(config):
    run = RunFolder(config.run_dir)
    run.start(config)
    config.data.workers, config.device = 3, "cpu"
    run.check(config)
    config.ns.sigma = 2.0
    with pytest.raises(ValueError, match=r"ns.sigma was 1.5, is 2.0"):
        run.check(config)
