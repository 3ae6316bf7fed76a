"""Budget: what a comparison will cost, before it starts: steps counted, seconds measured on a few steps of each network."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch

from ns_data.augment import normalize
from ns_data.choose import choose
from ns_data.compare.config import Run
from ns_data.compare.jobs import train_script
from ns_data.layout import Layout
from ns_data.losses import create_loss
from ns_data.models import create_model
from ns_data.scoring.weighting import WEIGHTINGS, Strength
from ns_data.training.config import Config
from ns_data.training.data import Data
from ns_data.training.distributed import default_device
from ns_data.training.optim import create_optimizer

PROBE_SECONDS = 0.5
PROBE_STEPS = 20


def steps(config: Config, data: Data) -> int:
    """Training steps of a run; a grouping that drops samples makes somewhat fewer."""
    samples = len(data.train) * (1 - config.data.holdout)
    return config.epochs * math.ceil(samples / config.batch_size)


def estimator(data_of: Callable[[Config], Data], threads: int) -> Callable[[Run], float]:
    """A function that estimates a run's seconds from steps timed now, once for each network, data and batch size."""
    timed: dict[str, float] = {}
    start = start_seconds()

    def seconds(run: Run) -> float:
        config = run.config
        data = data_of(config)
        key = repr((config.model, config.data.source, config.data.path, config.data.dataset, config.data.image_size))
        key += repr((config.batch_size, config.device, config.amp))
        if key not in timed:
            timed[key] = step_seconds(config, data, threads)
        composites = WEIGHTINGS[config.ns.weighting].composites
        scoring = 1 / (3 * Layout.parse(config.ns.layout).group_size) if composites else 0.0
        tested = len(data.train) * config.data.holdout if config.data.holdout else len(data.test)
        evaluation = config.epochs * tested / config.batch_size / 3  # a forward pass is a third of a step
        return start + timed[key] * (steps(config, data) * (1 + scoring) + evaluation)

    return seconds


def start_seconds() -> float:
    """Seconds that a process takes before it trains."""
    began = time.perf_counter()
    subprocess.run([sys.executable, str(train_script()), "--help"], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def step_seconds(config: Config, data: Data, threads: int) -> float:
    """Mean seconds of a baseline step after the first, data included, with the threads that a run gets."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    state = torch.get_rng_state()
    try:
        return _time_steps(config, data)
    finally:
        torch.set_num_threads(before)
        torch.set_rng_state(state)


def _time_steps(config: Config, data: Data) -> float:
    device = torch.device(config.device or default_device())
    model = create_model(config.model.name, data.stats.num_classes, **config.model.options).to(device)
    optimizer = create_optimizer(
        config.optimizer.name, model, config.optimizer.lr, config.optimizer.options, config.optimizer.groups
    )
    rows = range(min(config.batch_size, len(data.train)))
    began, done = 0.0, -1
    while done < PROBE_STEPS and (done < 1 or time.perf_counter() - began < PROBE_SECONDS):
        if done == 0:  # the first step prepares, and does not count
            began = time.perf_counter()
        images, labels, _ = torch.utils.data.default_collate([data.train[row] for row in rows])
        images = normalize(images.to(device), config.data.mean, config.data.std)
        torch.nn.functional.cross_entropy(model(images), labels.to(device)).backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        done += 1
    return (time.perf_counter() - began) / max(done, 1)


def check_method(config: Config, data: Data) -> None:
    """Refuse what a run of this config would refuse as it starts: its loss and its weights."""
    facts: dict[str, Any] = {"stats": data.stats, "num_samples": len(data.train), "seed": config.seed}
    create_loss(config.loss.name, config.loss.options, **facts)
    ns = config.ns
    choose(WEIGHTINGS, ns.weighting, "weighting")
    Strength(ns.sigma, ns.rho, ns.start_epoch, ns.sigma_end, ns.rho_end)


def total_steps(runs: Iterable[Run], data_of: Callable[[Config], Data]) -> int:
    return sum(steps(run.config, data_of(run.config)) for run in runs)
