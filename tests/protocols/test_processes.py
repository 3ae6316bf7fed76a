"""Trainers on two real processes: the ids that each rank trained on, against the plan of one process."""

import os
import subprocess
import sys
from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from ns_data import GroupingBatchSampler, ShuffleSampler
from tests.protocols.jobs.common import LABELS, OPTIONS, read

JOBS = Path(__file__).parent / "jobs"
EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = pytest.mark.slow


def run(*command, check=True):
    """Run a Python command beside the sources, one thread a process."""
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "NODE_RANK"):
        environment.pop(name, None)
    result = subprocess.run(
        [sys.executable, *map(str, command)], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert not check or result.returncode == 0, result.stderr[-3000:]
    return result


def torchrun(script, *arguments, processes=2):
    return run("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes, script, *arguments)


def planned(epoch, batch_size, drop_last=False):
    sampler = GroupingBatchSampler(ShuffleSampler(LABELS, seed=1), batch_size, drop_last, **OPTIONS)
    sampler.set_epoch(epoch)
    return [list(batch) for batch in sampler]


def test_plain_ddp_trains_on_the_batches_of_one_process(tmp_path):
    torchrun(JOBS / "ddp_job.py", tmp_path)
    ranks = read(tmp_path, 2)
    for epoch in range(2):
        joined = [a + b for a, b in zip(ranks[0][epoch], ranks[1][epoch], strict=True)]
        assert joined == planned(epoch, 16)[: len(joined)]
        assert len(joined) == 165 // 16  # the last batch has one group for two ranks: left out
    assert ranks[0][0] != ranks[0][1]


@pytest.mark.parametrize("mode", ["whole", "split"])
def test_accelerate_deals_our_batches_and_moves_our_epoch(tmp_path, mode):
    torchrun(JOBS / "accelerate_job.py", tmp_path, mode)
    ranks = read(tmp_path, 2)
    for epoch in range(2):
        batches = planned(epoch, 16, drop_last=True)
        if mode == "split":
            assert [a + b for a, b in zip(ranks[0][epoch], ranks[1][epoch], strict=True)] == batches
        else:
            assert ranks[0][epoch] == batches[0::2]
            assert ranks[1][epoch] == batches[1::2]


def test_lightning_trains_on_the_plan(tmp_path):
    run(JOBS / "lightning_job.py", tmp_path, "planned")
    ranks = read(tmp_path, 2)
    for epoch in range(2):
        joined = [a + b for a, b in zip(ranks[0][epoch], ranks[1][epoch], strict=True)]
        assert joined == planned(epoch, 16)[: len(joined)]
        assert len(joined) == 10


def test_lightning_may_put_its_own_sampler_into_ours(tmp_path):
    run(JOBS / "lightning_job.py", tmp_path, "replaced")
    ranks = read(tmp_path, 2)
    for epoch in range(2):
        assert len(ranks[0][epoch]) == len(ranks[1][epoch]) == 11  # 83 of 166 each
        seen = Counter(chain(*ranks[0][epoch], *ranks[1][epoch]))
        assert set(seen) == set(range(165))
        assert sorted(seen.values())[-2:] == [1, 2]  # one sample twice, to make the shares equal
        for batches in ranks:  # layout and grouping survive: of the 83 samples no more meet their own class than must
            counts = np.bincount(LABELS[list(chain(*batches[epoch]))])
            groups = LABELS[np.array(batches[epoch][:10])].reshape(20, 4)
            assert sum(4 - len(set(group)) for group in groups) == max(0, np.maximum(counts - 20, 0).sum() - 3)
    assert ranks[0][0] != ranks[0][1]


def test_lightning_refuses_a_loader_that_it_cannot_make_anew(tmp_path):
    result = run(JOBS / "lightning_job.py", tmp_path, "outside", check=False)
    assert result.returncode != 0
    assert "'labels' and 'layout'" in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["plain_ddp", "accelerate_plugin", "huggingface_trainer", "lightning_plugin"])
def test_examples_learn_on_one_process(name):
    output = run(EXAMPLES / f"{name}.py").stdout
    assert final_loss(output) < 1.0  # untrained: 2.3 times the mean weight 0.75


@pytest.mark.parametrize("name", ["plain_ddp", "accelerate_plugin"])
def test_examples_learn_on_two_processes(name):
    assert final_loss(torchrun(EXAMPLES / f"{name}.py").stdout) < 1.0


def test_lightning_example_learns_on_two_processes():
    assert final_loss(run(EXAMPLES / "lightning_plugin.py", "--devices", 2).stdout) < 1.0


def final_loss(output):
    words = output.split()
    last = len(words) - 1 - words[::-1].index("loss")
    return float(words[last + 1])
