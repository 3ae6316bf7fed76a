"""docs/imagenet.md and examples/slurm.sh: commands on small stand-ins for ImageNet's tars, figures from the real sizes."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ns_data import GroupingBatchSampler, ShuffleSampler
from ns_data.cli import main
from ns_data.training.config import load_config
from tests.standins import imagenet_tars

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "imagenet.md").read_text()
LINES = [line.partition(" # ")[0] for block in re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL) for line in block.splitlines()]


def words_after(line, program):
    words = shlex.split(line)
    return words[words.index(program) + 1 :]


def test_the_guides_data_commands_work_on_tars_like_the_real_ones(tmp_path, monkeypatch, capsys):
    imagenet_tars(tmp_path / "tars", per_class=8)
    monkeypatch.chdir(tmp_path)
    commands = [words_after(line, "ns-data") for line in LINES if line.startswith("ns-data")]
    assert [command[0] for command in commands] == ["shards", "inspect", "verify"]
    for command in commands:
        assert main([word.replace("=/data/imagenet", "=tars").replace("workers=8", "workers=0") for word in command]) == 0
    out = capsys.readouterr().out
    assert "data/imagenet: train 24, val 6 samples of 3 classes in 2 shards" in out
    assert "data/imagenet: 4 files intact, 0 damaged" in out


@pytest.mark.parametrize("line", [line for line in LINES if "train.py" in line or "slurm.sh" in line])
def test_the_guides_training_commands_are_understood(line):
    script = "examples/slurm.sh" if "slurm.sh" in line else "train.py"
    words = [word for word in words_after(line, script) if word != "--dry-run"]
    config = load_config(ROOT / words[0], words[1:])
    assert config.data.path == "data/imagenet"
    processes = int(re.search(r"--nproc-per-node (\d+)|$", line)[1] or 1) * int(re.search(r"--nnodes (\d+)|$", line)[1] or 1)
    assert config.batch_size % (processes * 4) == 0  # whole groups for each


def test_the_guides_figures_are_those_of_a_million_images():
    labels = np.arange(1_281_167) % 1000
    batches = GroupingBatchSampler(ShuffleSampler(labels), 256, labels=labels, layout="2x2")
    sizes = [len(batch) for batch in batches]
    report = batches.report
    assert f"({len(sizes)} and {report.groups:,})" in GUIDE
    assert f"| `ungrouped` | {report.ungrouped}," in GUIDE
    expected = 1 - np.prod(1 - np.arange(4) / 1000)  # of drawing four of a thousand classes
    assert f"about {expected:.1%} of `groups`".replace("%", " %") in GUIDE


SRUN = """#!{python}
# Stands for srun: starts the tasks, hands SIGUSR1 on to each, and returns the highest status. When the first task ends it
# ends the others: at once under --kill-on-bad-exit if it failed, else after --wait seconds.
import os, signal, subprocess, sys, time
options = {{word.partition("=")[0]: int(word.partition("=")[2]) for word in sys.argv[1:] if word.startswith("--")}}
command = [word for word in sys.argv[1:] if not word.startswith("--")]
tasks = [
    subprocess.Popen(command, env={{**os.environ, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}})
    for rank in range(int(os.environ["SLURM_NTASKS"]))
]
signal.signal(signal.SIGUSR1, lambda *_: [task.send_signal(signal.SIGUSR1) for task in tasks])
first = None
while any(task.poll() is None for task in tasks):
    ended = [task.poll() for task in tasks if task.poll() is not None]
    first = first or (time.monotonic() if ended else None)
    if ended and (options["--kill-on-bad-exit"] and any(ended) or time.monotonic() - first > options["--wait"]):
        [task.kill() for task in tasks if task.poll() is None]
    time.sleep(0.05)
sys.exit(max(task.returncode if task.returncode >= 0 else 128 - task.returncode for task in tasks))
"""
SCONTROL = """#!/bin/bash
[ "$1" = show ] && echo 127.0.0.1 && exit
echo "$@" >> requeued
"""


@pytest.mark.slow
def test_the_slurm_script_saves_requeues_and_goes_on(tmp_path):
    """Two tasks on the digits, with programs that stand for Slurm's: SIGUSR1, status 75, the queue, the end."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("srun", SRUN.format(python=sys.executable)), ("scontrol", SCONTROL)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    for name in ("train.py", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    environment = {
        **os.environ,
        "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        **{"SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "here", "SLURM_NTASKS": "2"},
    }
    words = ["configs/digits_lt.yaml", "epochs=12", "run_dir=run", "checkpoint_every=2", "device=cpu"]

    def start():
        command = ["bash", str(ROOT / "examples" / "slurm.sh"), *words]
        return subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)

    job = start()
    while not (tmp_path / "run" / "last.pt").exists():
        assert job.poll() is None
        time.sleep(0.02)
    (srun,) = subprocess.run(["pgrep", "-P", str(job.pid)], capture_output=True, text=True, check=True).stdout.split()
    os.kill(int(srun), signal.SIGUSR1)
    out, _ = job.communicate()
    assert job.returncode == 75
    assert "pre-empted: job 4711 queues again" in out
    assert (tmp_path / "requeued").read_text() == "requeue 4711\n"
    assert not (tmp_path / "run" / "done").exists()
    job = start()
    out, _ = job.communicate()
    assert job.returncode == 0
    assert "going on in run" in out
    assert (tmp_path / "requeued").read_text() == "requeue 4711\n"
    words.append("epcohs=3")
    job = start()
    job.communicate()
    assert job.returncode == 1
    assert (tmp_path / "requeued").read_text() == "requeue 4711\n"
