"""Train a classifier of texts with natural selection.

    python examples/text_classification.py [CONFIG.yaml] [key=value ...] [--help | --dry-run | --print-config]

The story of one run, top to bottom: read texts, make a vocabulary, plan batches of competition groups, and in every step join
the texts of each group to one, score it, weigh the losses and learn. The same command again goes on where a run stopped.
Source: "Darwinian Optimization: Training Deep Networks with Natural Selection", appendix H.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from text_config import TextConfig, check_settings
from text_data import TimedJoin, describe_texts, join_of, load_texts
from text_tokens import batch_of, inputs_of
from torch import Tensor

from ns_data import GroupedBatch, GroupingBatchSampler
from ns_data.choose import choose
from ns_data.losses import create_loss
from ns_data.training.command import run_command, split_arguments
from ns_data.training.config import help_text, load_config, to_yaml
from ns_data.training.distributed import World, start_world
from ns_data.training.dry_run import describe
from ns_data.training.evaluate import evaluate
from ns_data.training.loaders import make_batches
from ns_data.training.notes import Notes
from ns_data.training.optim import create_optimizer, create_schedule, set_lr
from ns_data.training.preempt import Preemption, PreemptionFlag
from ns_data.training.progress import EpochClock, epoch_line, progress_bar, summarize, summary_text
from ns_data.training.run import RunFolder, rng_state, set_rng_state
from ns_data.training.weigher import Weigher

DEFAULT_CONFIG = Path(__file__).parents[1] / "configs" / "text" / "docstrings_textcnn.yaml"
DASHED = ("--help", "--dry-run", "--print-config")
AMP = {"bf16": torch.bfloat16}
VOCABULARY = "vocabulary.txt"  # in the run folder

# A TextConfig and TextData: what is shared with train.py reads of them what its own have as well.
Settings = Any
Data = Any


def main(arguments: list[str]) -> None:
    words, dashed = split_arguments(arguments, DASHED)
    if "--help" in dashed:
        print(f"{__doc__}\nWithout CONFIG it is {DEFAULT_CONFIG.name}. Settings and their defaults:\n\n{help_text(TextConfig)}")
        return
    path = words.pop(0) if words and "=" not in words[0] else DEFAULT_CONFIG
    config: Settings = load_config(path, words, schema=TextConfig)
    check_settings(config)
    if "--print-config" in dashed:
        print(to_yaml(config), end="")
        return
    world = start_world(config.device)
    if world.size > 1:
        raise ValueError(f"texts are trained by one process, not by {world.size}: start without torchrun")
    run = RunFolder(str(config.run_dir))
    if "--dry-run" in dashed:
        data: Data = load_texts(config, None)
        print(describe(config, data, make_batches(config, data, world)), describe_texts(config, data), sep="\n")
        return
    run.check(config)
    if config.fresh or run.summary is None:
        train(config, load_texts(config, None if config.fresh else run.path / VOCABULARY), run, world)
    else:
        print(f"{run.path} is done already; fresh=true starts anew.")
    print(summary_text(run.summary or {}))


class Training:
    """What a run changes as it goes: the network, its optimiser, the scores; and how one step changes it."""

    STATEFUL = ("model", "optimizer", "loss", "weigher", "notes")

    def __init__(self, config: Settings, data: Data, batches: GroupingBatchSampler, world: World) -> None:
        self.config, self.data, self.world, ns = config, data, world, config.ns
        self.layout, self.amp_dtype = batches.layout, choose(AMP, config.amp, "amp") if config.amp else None
        self.model = data.network.model.to(world.device)
        torch.manual_seed(config.seed)
        facts = {"stats": data.stats, "num_samples": len(data.train), "seed": config.seed}
        self.loss = create_loss(config.loss.name, config.loss.options, **facts).to(world.device)
        optimizer = config.optimizer
        self.optimizer = create_optimizer(optimizer.name, self.model, optimizer.lr, optimizer.options, optimizer.groups)
        self.schedule = create_schedule(config.schedule.name, config.epochs, config.schedule.options)
        self.join = TimedJoin(join_of(data.tokenizer, data.network, ns.length or config.data.length, ns.fit), world.device)
        self.weigher = Weigher(config, self.model, data.stats, len(data.train), world, self.join)
        self.notes = Notes(config, self.weigher, world)

    def batches(self, planned: Iterator[list[int]]) -> Iterator[GroupedBatch]:
        """Batches of tokens, cut from the columns of the training texts."""
        for ids in planned:
            yield batch_of(self.data.train, ids, self.data.form, self.layout.group_size, trim=self.data.network.trim)

    def test_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The test texts in order."""
        test, size = self.data.test, self.config.eval_batch_size
        for ids in np.array_split(np.arange(len(test)), range(size, len(test), size)):
            yield inputs_of(test, ids, self.data.form, trim=self.data.network.trim), torch.from_numpy(test.labels[ids])

    def step(self, batch: GroupedBatch, epoch: int, number: int, share: float) -> None:
        """One step: score, learn, note. ``share`` of the epoch has passed."""
        lr = self.config.optimizer.lr * self.schedule(epoch + share)
        set_lr(self.optimizer, lr)
        self.loss.set_lr(lr)
        blank = torch.tensor((self.data.train.sizes[batch.ids] == 0).sum())
        batch = batch.to(self.world.device, non_blocking=True)
        weights, scores, logits = self.weigh(batch, epoch, number)
        losses = self.loss(logits, batch.labels, ids=batch.ids)
        objective = (weights * losses).mean() + self.loss.regularizer(self.model)
        self.optimizer.zero_grad(set_to_none=True)
        objective.backward()
        if self.config.clip_grad is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_grad)
        self.optimizer.step()
        self.notes.enter(batch, weights, scores, losses, epoch, number)
        self.notes.sums.add(blank_texts=blank)

    def weigh(self, batch: GroupedBatch, epoch: int, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """(weights_B, scores_B, logits_BK) of a batch: the pass over composites, then the training pass."""
        with torch.autocast(self.world.device.type, self.amp_dtype, enabled=self.amp_dtype is not None):
            scores = self.weigher.score(batch.images, batch, epoch)
            logits = self.model(batch.images)
        return *self.weigher.weigh(scores, logits, batch, epoch, number), logits

    def numbers(self, epoch: int) -> dict[str, Any]:
        """The epoch's line of metrics: of the steps, then of the test texts."""
        sigma, rho = self.weigher.strength.at(epoch, self.config.epochs)
        line = {"epoch": epoch, "lr": self.optimizer.param_groups[0]["lr"], "sigma": sigma, "rho": rho}
        line |= {**self.notes.numbers(), "joining_seconds": self.join.time.read()}
        return line | evaluate(self.model, self.test_batches(), lambda tokens: tokens.to(self.world.device), self.data.stats)

    def state_dict(self) -> dict[str, Any]:
        """Everything but the plan."""
        parts = {name: getattr(self, name).state_dict() for name in self.STATEFUL}
        return {**parts, "rng": rng_state(self.world), "vocabulary": self.data.tokenizer.digest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["vocabulary"] != self.data.tokenizer.digest:
            raise ValueError(
                f"the vocabulary of {self.data.tokenizer.size} tokens is not the one that the network in "
                f"{self.config.run_dir} was trained with: put it back, or start anew with fresh=true"
            )
        for name in self.STATEFUL:
            getattr(self, name).load_state_dict(state[name])
        set_rng_state(state["rng"], self.world)


def train(config: Settings, data: Data, run: RunFolder, world: World) -> None:
    """Train, evaluating and saving after every epoch; end with plots and a summary."""
    batches = make_batches(config, data, world)
    training = Training(config, data, batches, world)
    run.start(config)
    checkpoint, first, stop = run.load_checkpoint(config, training.model), 0, False
    if checkpoint is not None:
        training.load_state_dict(checkpoint["training"])
        batches.load_state_dict(checkpoint["plan"])
        first = checkpoint["plan"]["batches"]
        print(f"going on in {run.path} at epoch {batches.epoch + 1}, step {first + 1}")
    run.open_logs(batches.epoch, config.tensorboard)
    if data.words is not None:
        run.write(VOCABULARY, "".join(f"{word}\n" for word in data.words))

    def save(batches_done: int) -> None:
        run.save_checkpoint(
            {"config": asdict(config), "training": training.state_dict(), "plan": batches.state_dict(batches_done)}
        )

    with PreemptionFlag() as preempted:
        for epoch in range(batches.epoch, config.epochs):
            batches.set_epoch(epoch)
            training.loss.start_epoch(epoch, config.epochs)
            clock = EpochClock()
            waiting, title = clock.waiting(training.batches(iter(batches))), f"epoch {epoch + 1}/{config.epochs}"
            bar = progress_bar(waiting, title, first, len(batches), world)
            for number, batch in enumerate(bar, first):
                stop = preempted.is_set
                training.step(batch, epoch, number, number / len(batches))
                done = number + 1
                due = config.checkpoint_every is not None and done % config.checkpoint_every == 0
                if (stop or due) and done < len(batches):
                    save(done)
                    if stop:
                        raise Preemption
            line = {**batches.report.counts(), **training.numbers(epoch)}
            line |= clock.read(line["scoring_seconds"], world)
            run.log(line)
            print(epoch_line(line, config.epochs), flush=True)
            first = 0
            save(len(batches))
            if stop and epoch + 1 < config.epochs:
                raise Preemption

    training.weigher.ledger.save(run.path / "scores.npz")
    if config.plots:
        from ns_data.compare.plots import plot_run  # only here: matplotlib takes its time

        plot_run(run.path, data.stats, data.classes)
    run.finish(summarize(config, run.metrics(), world.device))


if __name__ == "__main__":
    run_command(main)
