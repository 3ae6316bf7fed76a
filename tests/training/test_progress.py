import json
import subprocess
import sys
import time

import pytest
import torch

from ns_data import GroupedBatch
from ns_data.training.distributed import World
from ns_data.training.progress import EpochClock, epoch_line


def batch_of(size):
    return GroupedBatch(torch.zeros(size, 1), torch.zeros(size), None, torch.zeros(0, 4), torch.tensor(0))


def slow_loader():
    for _ in range(3):
        time.sleep(0.05)
        yield batch_of(10)


def test_the_clock_tells_waiting_from_steps_and_counts_what_came():
    clock = EpochClock()
    for _ in clock.waiting(slow_loader()):
        time.sleep(0.1)
    numbers = clock.read(scoring_seconds=0.09, world=World(0, 1, torch.device("cpu")))
    assert 0.15 <= numbers["waiting_seconds"] < 0.3 <= numbers["train_seconds"] - numbers["waiting_seconds"]
    assert numbers["waiting_share"] == numbers["waiting_seconds"] / numbers["train_seconds"]
    assert numbers["scoring_share"] == pytest.approx(0.09 / numbers["train_seconds"])
    assert numbers["samples_per_second"] == pytest.approx(30 / numbers["train_seconds"])
    assert "gpu_memory_gib" not in numbers


class Two(World):
    """Two processes: this one, and one that read 20 samples, waited 4 s and scored 1 s."""

    def gather(self, values):
        return [values, torch.tensor([20.0, 4.0, 1.0, 0.0], dtype=torch.float64)]


def test_of_several_processes_the_slowest_counts():
    clock = EpochClock()
    list(clock.waiting([batch_of(10)]))
    numbers = clock.read(scoring_seconds=2.0, world=Two(0, 2, torch.device("cpu")))
    assert (numbers["waiting_seconds"], numbers["scoring_seconds"]) == (4, 2)
    assert numbers["samples_per_second"] == pytest.approx(30 / numbers["train_seconds"])


def test_an_epochs_line_for_people():
    line = json.loads(
        '{"epoch": 4, "loss": 1.23456, "accuracy": 0.5, "balanced_accuracy": 0.25, "lr": 0.0123456, "mean_weight": 1.25, '
        '"tied_groups": 26, "groups": 104, "samples_per_second": 1234.5, "waiting_share": 0.031, "scoring_share": 0.09, '
        '"relaxed": 0, "ungrouped": 1, "gpu_memory_gib": 3.21}'
    )
    assert epoch_line(line, 40) == (
        "epoch  5/40  loss 1.2346  accuracy 50.00%  balanced 25.00%  lr 0.0123  mean weight 1.250  ties 25%  "
        "1234 images/s, waiting 3%, scoring 9%  GPU 3.2 GiB  ungrouped 1"
    )
    assert "ties" not in epoch_line({**line, "groups": 0}, 40)


def test_peak_memory_is_this_process_s_own_and_not_that_of_the_one_that_started_it():
    code = "import torch; from ns_data.training.progress import peak_memory; print(peak_memory(torch.device('cpu')))"
    ballast = torch.ones(150_000_000)  # 600 MB
    peak = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    more = code.replace("print", "x = torch.ones(150_000_000); print")
    higher = int(subprocess.run([sys.executable, "-c", more], capture_output=True, text=True, check=True).stdout)
    assert 50e6 < peak < ballast.nbytes
    assert higher - peak == pytest.approx(ballast.nbytes, rel=0.1)
