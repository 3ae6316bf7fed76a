"""Run folder: what a run leaves behind, and where it goes on after an interruption.

config.yaml    all settings, itself a config file      last.pt       checkpoint to go on from
env.json       versions and machine                    epoch-N.pt    checkpoints that keep_every keeps
metrics.jsonl  one line an epoch                       plots/        pictures
tensorboard/   the same numbers for TensorBoard        done          summary, written at the end
scores.npz     the score ledger
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import ns_data
from ns_data.training.config import free_settings, load_config, to_yaml
from ns_data.training.distributed import World
from ns_data.training.events import open_events, write_events


class RunFolder:
    """The folder of one run. Files appear whole: they are written under a temporary name and renamed."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._events: Any = None

    def check(self, config: Any) -> None:
        """Refuse the folder of a run with other settings, naming them; ``fresh=true`` takes any run's folder."""
        if not self.path.exists() or not any(self.path.iterdir()):
            return
        if not (self.path / "config.yaml").is_file():
            raise ValueError(f"{self.path} is not a run folder: name another run_dir")
        different = (
            [] if config.fresh else _differences(asdict(load_config(self.path / "config.yaml", schema=type(config))), config)
        )
        if different:
            raise ValueError(
                f"{self.path} holds a run with other settings ({', '.join(different)}): name another run_dir, or start "
                "anew with fresh=true"
            )

    def start(self, config: Any) -> None:
        """Make the folder, or open it to go on."""
        self.check(config)
        if config.fresh and self.path.exists():
            shutil.rmtree(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        if not (self.path / "config.yaml").is_file():
            self.write("env.json", json.dumps(_environment(), indent=1) + "\n")
            self.write("config.yaml", to_yaml(replace(config, fresh=False)))

    def write(self, name: str, text: str) -> None:
        partial = self.path / (name + ".partial")
        partial.write_text(text)
        partial.replace(self.path / name)

    @property
    def summary(self) -> dict[str, Any] | None:
        """What ``finish`` wrote, or ``None`` for a run that has not ended."""
        done = self.path / "done"
        return json.loads(done.read_text()) if done.is_file() else None

    def finish(self, summary: dict[str, Any]) -> None:
        if self._events is not None:
            self._events.close()
        self.write("done", json.dumps(summary, indent=1) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        path = self.path / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []

    def open_logs(self, first_epoch: int, tensorboard: bool | None) -> None:
        """Forget the metrics of epochs that are trained again, and open TensorBoard's log as the config says."""
        kept = [json.dumps(line) + "\n" for line in self.metrics() if line["epoch"] < first_epoch]
        self.write("metrics.jsonl", "".join(kept))
        self._events = open_events(self.path / "tensorboard", tensorboard, first_epoch)

    def log(self, line: dict[str, Any]) -> None:
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        if self._events is not None:
            write_events(self._events, line)

    def save_checkpoint(self, state: dict[str, Any], keep_as: str | None = None) -> None:
        """Write last.pt, and a copy under the name ``keep_as``."""
        partial = self.path / "last.pt.partial"
        torch.save(state, partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(self.path / "last.pt")
        if keep_as is not None:
            shutil.copyfile(self.path / "last.pt", self.path / (keep_as + ".partial"))
            (self.path / (keep_as + ".partial")).replace(self.path / keep_as)

    def read_checkpoint(self) -> dict[str, Any] | None:
        """What last.pt holds, on the CPU, or ``None``. Tensors and plain values only: nothing in the file is executed."""
        path = self.path / "last.pt"
        if not path.is_file():
            return None
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"checkpoint {path} cannot be read ({reason}): start anew with fresh=true") from None
        return state

    def load_checkpoint(self, config: Any, network: nn.Module) -> dict[str, Any] | None:
        """The last checkpoint of this run, with ``config``, ``training`` and ``plan``, or ``None``.

        Raises ``ValueError`` for a file that cannot be read, or that another config or network has made, saying what differs.
        """
        state, path = self.read_checkpoint(), self.path / "last.pt"
        if state is None:
            return None
        if not isinstance(state, dict) or not {"config", "training", "plan"} <= state.keys():
            raise ValueError(f"{path} is not a checkpoint of this program: start anew with fresh=true")
        different = _differences(state["config"], config)
        if different:
            raise ValueError(f"checkpoint {path} is of another run ({', '.join(different)}): start anew with fresh=true")
        then, now = (_shapes(tensors) for tensors in (state["training"]["model"], network.state_dict()))
        different = [
            f"{name} was {then.get(name, 'not there')}, is {now.get(name, 'not there')}"
            for name in now | then
            if then.get(name) != now.get(name)
        ]
        if different:
            raise ValueError(
                f"checkpoint {path} is of another network, as of other classes in the data ({', '.join(different[:3])}"
                f"{f' and {len(different) - 3} more' if len(different) > 3 else ''}): start anew with fresh=true"
            )
        return state

    def checkpoints(self) -> str:
        """Where a run can be taken up from, for people."""
        path = self.path / "last.pt"
        if not path.is_file():
            return "no checkpoint was saved before it"
        plan = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["plan"]
        place = (
            f"step {plan['batches']} of epoch {plan['epoch'] + 1}" if plan["batches"] else f"the end of epoch {plan['epoch']}"
        )
        kept = sorted(self.path.glob("epoch-*.pt"), key=lambda file: int(file.stem.partition("-")[2]))
        also = f"; also kept: {', '.join(file.name for file in kept)}" if kept else ""
        return f"the last checkpoint, {path}, is from {place}{also}"


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _differences(old: dict[str, Any], new: Any) -> list[str]:
    def flat(value: Any, prefix: str = "") -> dict[str, Any]:
        if not isinstance(value, dict):
            return {prefix[:-1]: value}
        return {key: v for name, inner in value.items() for key, v in flat(inner, f"{prefix}{name}.").items()}

    then, now = flat(old), flat(asdict(new))
    keys = sorted((then.keys() | now.keys()) - free_settings(type(new)))
    return [f"{key} was {then.get(key)}, is {now.get(key)}" for key in keys if then.get(key) != now.get(key)]


def _environment() -> dict[str, Any]:
    cuda = torch.cuda.is_available()
    return {
        "ns_data": ns_data.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if cuda else None,
    }


def rng_state(world: World) -> dict[str, list[torch.Tensor]]:
    """States of torch's generators, which dropout and the like draw from, of every process by rank."""
    states = {"cpu": world.gather(torch.get_rng_state())}
    if world.device.type == "cuda":
        states["cuda"] = world.gather(torch.cuda.get_rng_state(world.device))
    return states


def set_rng_state(states: dict[str, list[torch.Tensor]], world: World) -> None:
    """Go on with this process's generators; with another number of processes they go on as freshly seeded."""
    if len(states["cpu"]) != world.size:
        return
    torch.set_rng_state(states["cpu"][world.rank])
    if "cuda" in states and world.device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"][world.rank], world.device)
