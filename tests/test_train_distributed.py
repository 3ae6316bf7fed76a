"""train.py under torchrun: several gloo processes, killed and pre-empted, against one process."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from ns_data.training.distributed import warn_of_stale_addresses
from ns_data.training.preempt import EXIT_STATUS

ROOT = Path(__file__).parent.parent
# A network without BatchNorm, which falls apart into samples; 48 divides by 1, 2 and 4 processes of whole groups.
WORDS = ["epochs=2", "batch_size=48", "model.options={width: 8, batch_norm: false}", "optimizer.lr=0.02"]
WORDS += ["plots=false", "tensorboard=false"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def launch(folder, options, words, environment=ENVIRONMENT):
    """Start torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", *options, str(ROOT / "train.py"), *words]
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def start(folder, size, *words, restarts=0):
    options = ["--standalone", f"--nproc-per-node={size}", f"--max-restarts={restarts}"]
    return launch(folder, options, [*WORDS, *words])


def children(process):
    found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
    return [int(child) for child in found.stdout.split()]


def kill_rank(process):
    """SIGKILL for the last process of a launcher."""
    os.kill(children(process)[-1], signal.SIGKILL)


def run(folder, size, *words):
    process = start(folder, size, *words)
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out


def start_alone(folder, *words):
    command = [sys.executable, str(ROOT / "train.py"), *WORDS, *words]
    return subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_checkpoint(folder, process):
    while not (folder / "last.pt").exists() and process.poll() is None:
        time.sleep(0.01)
    assert process.poll() is None


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def same_numbers(one, other):
    """Loss to 1e-5, counts exactly, scores and test results up to the order of additions."""
    for a, b in zip(lines(one), lines(other), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
        assert a["mean_weight"] == pytest.approx(b["mean_weight"], abs=1e-6)
        assert a["test_loss"] == pytest.approx(b["test_loss"], abs=1e-4)
        for name in ("samples", "groups", "ungrouped", "relaxed", "dropped", "tied_groups", "skipped"):
            assert a[name] == b[name], name
    with np.load(one / "scores.npz") as a, np.load(other / "scores.npz") as b:
        np.testing.assert_array_equal(a["count"], b["count"])
        np.testing.assert_allclose(a["last"], b["last"], atol=1e-3)


def same_bits(one, other):
    a, b = (torch.load(folder / "last.pt", weights_only=True)["training"]["model"] for folder in (one, other))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """One process and two processes, undisturbed."""
    folder = tmp_path_factory.mktemp("distributed")
    alone = start_alone(folder, "run_dir=one")
    assert alone.wait() == 0
    run(folder, 2, "run_dir=two")
    return folder


@pytest.mark.slow
def test_two_processes_train_what_one_does(workplace):
    same_numbers(workplace / "one", workplace / "two")


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_a_killed_rank_is_restarted_and_the_run_ends_the_same(workplace, size):
    undisturbed, elastic = workplace / ("two" if size == 2 else "four"), workplace / f"elastic-{size}"
    if not undisturbed.exists():
        run(workplace, size, f"run_dir={undisturbed.name}")
    process = start(workplace, size, f"run_dir={elastic.name}", "checkpoint_every=2", restarts=3)
    wait_for_checkpoint(elastic, process)
    kill_rank(process)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert f"going on in {elastic.name}" in out
    if size == 2:  # DDP packs gradients anew after its first step, and sums of more than two terms depend on the packing
        same_bits(undisturbed, elastic)
    same_numbers(undisturbed, elastic)
    same_numbers(workplace / "one", elastic)


@pytest.mark.slow
@pytest.mark.parametrize("kill", [False, True], ids=["undisturbed", "killed"])
def test_two_nodes_train_what_two_processes_of_one_do(workplace, kill):
    """Two launchers on this machine. Without a store of each start's own, a restart would meet addresses of the killed."""
    folder = workplace / f"nodes-{kill}"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    nodes = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}"]
    options = [*nodes, f"--rdzv-id={folder.name}", f"--max-restarts={3 * kill}"]
    words = [*WORDS, f"run_dir={folder.name}", "checkpoint_every=2"]
    environment = ENVIRONMENT | ({"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"} if kill else {})
    first, second = (launch(workplace, options, words, environment) for _ in range(2))
    if kill:
        wait_for_checkpoint(folder, second)
        kill_rank(second)
    for process in (first, second):
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE" not in err
    assert (folder / "done").exists()
    same_bits(workplace / "two", folder)
    same_numbers(workplace / "two", folder)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 4])
def test_a_preempted_run_goes_on_with_another_number_of_processes(workplace, size):
    folder = workplace / f"moved-{size}"
    process = start(workplace, 2, f"run_dir={folder.name}", "checkpoint_every=2")
    wait_for_checkpoint(folder, process)
    if size == 1:
        process.send_signal(signal.SIGTERM)  # which torchrun hands on
    else:
        os.kill(children(process)[-1], signal.SIGUSR1)  # one process tells the other
    process.communicate()
    assert not (folder / "done").exists()
    out = run(workplace, size, f"run_dir={folder.name}")
    assert f"going on in {folder.name}" in out
    same_numbers(workplace / "one", folder)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_preemption_saves_and_leaves_with_a_documented_status(tmp_path, number):
    folder = tmp_path / "run"
    words = ["epochs=40", "run_dir=run", "checkpoint_every=3"]
    process = start_alone(tmp_path, *words)
    wait_for_checkpoint(folder, process)
    process.send_signal(number)
    assert process.wait() == EXIT_STATUS
    plan = torch.load(folder / "last.pt", weights_only=True)["plan"]
    assert (plan["epoch"], plan["batches"]) > (0, 0)
    assert not (folder / "done").exists()


def test_a_batch_that_processes_cannot_share_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    world = train.World(0, 5, torch.device("cpu"))
    config = train.load_config(ROOT / "configs" / "digits_lt.yaml")
    data = train.load_data(config.data, 0)
    with pytest.raises(ValueError, match="batch_size 64 cannot be shared by 5 processes"):
        train.make_batches(config, data, world)


def test_a_port_in_use_is_one_sentence(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        place = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        command = [sys.executable, str(ROOT / "train.py"), *WORDS, "device=cpu"]
        result = subprocess.run(command, cwd=tmp_path, env={**ENVIRONMENT, **place}, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: the processes cannot meet at 127.0.0.1:{port} (")
    assert result.stderr.endswith("): choose another --master-port\n")
    assert result.stderr.count("\n") == 1


def test_several_machines_that_would_not_survive_a_kill_are_told_so(monkeypatch):
    for name, value in {"GROUP_WORLD_SIZE": 2, "TORCHELASTIC_MAX_RESTARTS": 3, "TORCHELASTIC_USE_AGENT_STORE": True}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.warns(UserWarning, match="set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        warn_of_stale_addresses()
    for name, harmless in {"TORCHELASTIC_MAX_RESTARTS": "0", "TORCHELASTIC_USE_AGENT_STORE": "False"}.items():
        with monkeypatch.context() as other, warnings.catch_warnings():
            warnings.simplefilter("error")
            other.setenv(name, harmless)
            warn_of_stale_addresses()
