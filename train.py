"""Train a classifier with natural selection.

    python train.py [CONFIG.yaml] [key=value ...] [--help | --dry-run | --print-config]

The story of one run, top to bottom: read the config, open the data, plan batches of competition groups, and in every step
score the groups, weigh the losses and learn. The same command again goes on where a run stopped.
"""

from __future__ import annotations

import math
import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from ns_data import WEIGHTINGS, GroupedBatch, GroupingBatchSampler, Layout, NSCollator, NSScorer, ScoreLedger, create_model
from ns_data.augment import normalize
from ns_data.choose import choose, construct
from ns_data.compare.plots import plot_composites, plot_run
from ns_data.losses import create_loss
from ns_data.sampling import SAMPLINGS
from ns_data.scoring.weighting import Step, Strength, mean_weight
from ns_data.training.config import Config, help_text, load_config, to_yaml
from ns_data.training.data import Data, load_data
from ns_data.training.dry_run import describe
from ns_data.training.evaluate import evaluate
from ns_data.training.optim import create_optimizer, create_schedule, set_lr
from ns_data.training.progress import EpochSums, Stopwatch, default_device, epoch_line, summarize, summary_text
from ns_data.training.run import RunFolder, rng_state, set_rng_state

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "digits_lt.yaml"
DASHED = ("--help", "--dry-run", "--print-config")


def main(arguments: list[str]) -> None:
    dashed = [word for word in arguments if word.startswith("-")]
    words = [word for word in arguments if not word.startswith("-")]
    for word in dashed:
        if word not in DASHED:
            raise ValueError(f"unknown option {word}: there are {', '.join(DASHED)}; settings are written key=value")
    if "--help" in dashed:
        print(f"{__doc__}\nWithout CONFIG it is configs/{DEFAULT_CONFIG.name}. Settings and their defaults:\n\n{help_text()}")
        return
    path = words.pop(0) if words and "=" not in words[0] else DEFAULT_CONFIG
    config = load_config(path, words)
    if "--print-config" in dashed:
        print(to_yaml(config), end="")
        return
    if "--dry-run" in dashed:
        data = load_data(config.data, config.seed)
        batches = make_batches(config, data)
        print(describe(config, data, batches))
        picture = Path(f"{config.run_dir}-dry-run.png")
        plot_composites(first_batch(data, batches, epoch=1), batches.layout, data.classes, picture)
        print(f"{'picture':<18} {picture}")
        return
    run = RunFolder(str(config.run_dir))
    run.check(config)
    if config.fresh or run.summary is None:
        train(config, load_data(config.data, config.seed), run)
    else:
        print(f"{run.path} is done already; fresh=true starts anew.")
    print(summary_text(run.summary or {}))


def make_batches(config: Config, data: Data) -> GroupingBatchSampler:
    """The plan: which samples an epoch holds, and who competes with whom."""
    facts = {"labels": data.train.labels, "num_epochs": config.epochs, "seed": config.seed}
    return GroupingBatchSampler(
        construct(SAMPLINGS, config.sampling.name, "sampling", {**facts, **config.sampling.options}),
        config.batch_size,
        config.drop_last,
        labels=data.train.labels,
        layout=Layout.parse(config.ns.layout, config.ns.order),
        grouping=config.ns.grouping,
        surplus=config.ns.surplus,
        seed=config.seed,
    )


class Training:
    """What a run changes as it goes: the network, its optimiser, the scores; and how one step changes it."""

    def __init__(self, config: Config, data: Data) -> None:
        self.config, self.data = config, data
        self.device = torch.device(config.device or default_device())
        if config.amp not in (None, "bf16"):
            raise ValueError(f"amp must be bf16 or null, got {config.amp!r}")
        self.memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        self.layout = Layout.parse(config.ns.layout, config.ns.order)
        torch.manual_seed(config.seed)
        model = create_model(config.model.name, data.stats.num_classes, **config.model.options)
        self.model = model.to(self.device, memory_format=self.memory_format)
        facts = {"stats": data.stats, "num_samples": len(data.train), "seed": config.seed}
        self.loss = create_loss(config.loss.name, config.loss.options, **facts).to(self.device)
        self.optimizer = create_optimizer(config.optimizer.name, self.model, config.optimizer.lr, config.optimizer.options)
        self.schedule = create_schedule(config.schedule.name, config.epochs, config.schedule.options)
        self.scorer = NSScorer(self.model, layout=self.layout, batch_norm=config.ns.batch_norm)
        self.weighting = choose(WEIGHTINGS, config.ns.weighting, "weighting")
        ns = config.ns
        self.strength = Strength(ns.sigma, ns.rho, ns.start_epoch, ns.sigma_end, ns.rho_end)
        self.ledger = ScoreLedger(len(data.train))
        self.sums, self.scoring_time = EpochSums(self.device), Stopwatch(self.device)

    def input(self, images: Tensor) -> Tensor:
        """Images on the device, normalised."""
        images = normalize(images.to(self.device, non_blocking=True), self.config.data.mean, self.config.data.std)
        return images.to(memory_format=self.memory_format)

    def step(self, batch: GroupedBatch, epoch: int, number: int, share: float) -> None:
        """One step: score, learn, note. ``share`` of the epoch has passed."""
        batch = batch.to(self.device, non_blocking=True)
        images = self.input(batch.images)
        lr = self.config.optimizer.lr * self.schedule(epoch + share)
        set_lr(self.optimizer, lr)
        self.loss.set_lr(lr)
        weights, scores, logits = self.weigh(images, batch, epoch, number)
        losses = self.loss(logits, batch.labels, ids=batch.ids)
        self.optimizer.zero_grad(set_to_none=True)
        objective = (weights * losses).mean() + self.loss.regularizer(self.model)
        objective.backward()
        self.optimizer.step()
        self.ledger.update(batch.ids, scores, batch.labels, epoch)
        samples = torch.ones_like(losses).sum()
        self.sums.add(samples=samples, loss=losses.sum(), weight=weights.sum(), skipped=batch.skipped)

    def weigh(self, images: Tensor, batch: GroupedBatch, epoch: int, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """(weights_B, scores_B, logits_BK) of a batch: the pass over composites, then the training pass."""
        weighting = self.weighting if epoch >= self.config.ns.start_epoch else WEIGHTINGS["none"]
        sigma, rho = self.strength.at(epoch, self.config.epochs)
        amp = torch.autocast(self.device.type, torch.bfloat16) if self.config.amp else nullcontext()
        with amp:
            scores = None
            if weighting.composites:  # before the training pass, whose activations would add to its memory
                with self.scoring_time():
                    scores = self.scorer(images, batch.labels, batch.groups, batch.ids)
            logits = self.model(images)
        seed = np.random.SeedSequence([self.config.seed, epoch, number]).generate_state(1)
        generator = torch.Generator().manual_seed(int(seed[0]))
        step = Step(scores, logits.detach(), batch.labels, batch.groups, self.layout, sigma, rho, self.data.stats, generator)
        weights, scores = weighting.weigh(step)
        if self.config.ns.normalize:
            weights = weights / mean_weight(sigma, rho, self.layout.group_size)
        return weights, scores, logits

    def count_scorer(self) -> None:
        """Move the scorer's counts into the sums of the epoch."""
        self.sums.add(**{name: torch.tensor(count) for name, count in self.scorer.report().items()})

    def state_dict(self) -> dict[str, Any]:
        self.count_scorer()
        parts = {name: getattr(self, name).state_dict() for name in ("model", "optimizer", "loss", "ledger", "sums")}
        return {**parts, "rng": rng_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in ("model", "optimizer", "loss", "ledger", "sums"):
            getattr(self, name).load_state_dict(state[name])
        set_rng_state(state["rng"])


def train(config: Config, data: Data, run: RunFolder) -> None:
    """Train, evaluating and saving after every epoch; end with plots and a summary."""
    batches = make_batches(config, data)
    training = Training(config, data)
    pinned = training.device.type == "cuda"
    loader_rng = torch.Generator().manual_seed(config.seed)  # leaves the generator that dropout uses alone
    options: dict[str, Any] = {"num_workers": config.data.workers, "pin_memory": pinned, "generator": loader_rng}
    loader = DataLoader(data.train, batch_sampler=batches, collate_fn=NSCollator(training.layout), **options)
    test_loader = DataLoader(data.test, config.eval_batch_size, **options)

    run.start(config)
    first = 0
    checkpoint = run.load_checkpoint()
    if checkpoint is not None:
        training.load_state_dict(checkpoint["training"])
        batches.load_state_dict(checkpoint["plan"])
        first = checkpoint["plan"]["batches"]
        print(f"going on in {run.path} at epoch {batches.epoch + 1}, step {first + 1}")
    run.keep_metrics_before(batches.epoch)

    for epoch in range(batches.epoch, config.epochs):
        batches.set_epoch(epoch)
        training.loss.start_epoch(epoch, config.epochs)
        began = time.perf_counter()
        title = f"epoch {epoch + 1}/{config.epochs}"
        bar = tqdm(loader, title, total=len(batches), initial=first, leave=False, disable=None)
        for number, batch in enumerate(bar, first):
            training.step(batch, epoch, number, number / len(batches))
            done = number + 1
            if config.checkpoint_every and done % config.checkpoint_every == 0 and done < len(batches):
                run.save_checkpoint({"training": training.state_dict(), "plan": batches.state_dict(done)})
        line = {"epoch": epoch, "train_seconds": time.perf_counter() - began, "scoring_seconds": training.scoring_time.read()}
        line |= epoch_numbers(training, batches, epoch)
        line |= evaluate(training.model, test_loader, training.input, data.stats.num_classes)
        run.log(line)
        tqdm.write(epoch_line(line, config.epochs))
        training.sums, first = EpochSums(training.device), 0
        run.save_checkpoint({"training": training.state_dict(), "plan": batches.state_dict(len(batches))})

    training.ledger.save(run.path / "scores.npz")
    plot_run(run.path, data.stats, data.classes)
    batch = first_batch(data, batches, config.epochs).to(training.device)
    with torch.no_grad():
        weights, scores, _ = training.weigh(training.input(batch.images), batch, config.epochs - 1, 0)
    picture = run.path / "plots" / "composites.png"
    plot_composites(batch.to("cpu"), training.layout, data.classes, picture, scores.cpu(), weights.cpu())
    run.finish(summarize(config, run.metrics(), training.device))


def epoch_numbers(training: Training, batches: GroupingBatchSampler, epoch: int) -> dict[str, Any]:
    """What the steps of an epoch gave; a loss that is not a number ends the run."""
    training.count_scorer()
    counts = {name: int(training.sums.values[name]) for name in ("skipped", "invalid_groups", "lone_composites")}
    loss, config = training.sums.mean("loss"), training.config
    if not math.isfinite(loss):
        raise ValueError(
            f"the loss became {loss} in epoch {epoch + 1}: lower optimizer.lr (now {config.optimizer.lr:g}); the last good "
            f"checkpoint, of the epoch before, is in {config.run_dir}"
        )
    sigma, rho = training.strength.at(epoch, config.epochs)
    lr = training.optimizer.param_groups[0]["lr"]
    mean = training.sums.mean("weight")
    return {"loss": loss, "mean_weight": mean, "lr": lr, "sigma": sigma, "rho": rho, **vars(batches.report), **counts}


def first_batch(data: Data, batches: GroupingBatchSampler, epoch: int) -> GroupedBatch:
    """The first batch of an epoch, read without a loader."""
    batches.set_epoch(epoch)
    return NSCollator(batches.layout)(data.train.__getitems__(next(iter(batches))))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ValueError as error:
        if "NS_TRACEBACK" in os.environ:
            raise
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\ninterrupted: the same command goes on from the last checkpoint")
