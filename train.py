"""Train a classifier with natural selection.

    python train.py [CONFIG.yaml] [key=value ...] [--help | --dry-run | --print-config]
    torchrun --nproc-per-node N train.py ...

The story of one run, top to bottom: read the config, open the data, plan batches of competition groups, and in every step
score the groups, weigh the losses and learn. The same command again goes on where a run stopped.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ns_data import GroupedBatch, GroupingBatchSampler, create_model
from ns_data.augment import normalize
from ns_data.choose import choose
from ns_data.losses import create_loss
from ns_data.training.command import run_command, split_arguments
from ns_data.training.config import Config, help_text, load_config, to_yaml
from ns_data.training.data import Data, load_data, open_data
from ns_data.training.distributed import World, leave_world, start_world
from ns_data.training.dry_run import describe
from ns_data.training.evaluate import evaluate
from ns_data.training.loaders import first_batch, make_batches, make_loaders, parts_of
from ns_data.training.memory import memory_advice
from ns_data.training.notes import Notes
from ns_data.training.optim import create_optimizer, create_schedule, set_lr
from ns_data.training.preempt import Preemption, PreemptionFlag
from ns_data.training.progress import EpochClock, epoch_line, progress_bar, summarize, summary_text
from ns_data.training.run import RunFolder, rng_state, set_rng_state
from ns_data.training.weigher import Weigher

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "digits_lt.yaml"
DASHED = ("--help", "--dry-run", "--print-config")
AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}


def main(arguments: list[str]) -> None:
    words, dashed = split_arguments(arguments, DASHED)
    if "--help" in dashed:
        print(f"{__doc__}\nWithout CONFIG it is configs/{DEFAULT_CONFIG.name}. Settings and their defaults:\n\n{help_text()}")
        return
    path = words.pop(0) if words and "=" not in words[0] else DEFAULT_CONFIG
    config = load_config(path, words)
    if "--print-config" in dashed:
        print(to_yaml(config), end="")
        return
    world = start_world(config.device)
    if "--dry-run" in dashed:
        data = load_data(config.data, config.seed)
        batches = make_batches(config, data, world)
        print(describe(config, data, batches))
        from ns_data.compare.plots import plot_composites  # only here: matplotlib takes its time

        picture = Path(f"{config.run_dir}-dry-run.png")
        plot_composites(first_batch(data, batches, epoch=1), batches.layout, data.classes, picture)
        print(f"{'picture':<18} {picture}")
        return
    run = RunFolder(str(config.run_dir))
    run.check(config)
    if config.fresh or run.summary is None:
        train(config, open_data(config.data, config.seed, world), run, world)
    elif world.is_main:
        print(f"{run.path} is done already; fresh=true starts anew.")
    if world.is_main:
        print(summary_text(run.summary or {}))


class Training:
    """What a run changes as it goes: the network, its optimiser, the scores; and how one step changes it."""

    STATEFUL = ("model", "optimizer", "loss", "scaler", "weigher", "notes")

    def __init__(self, config: Config, data: Data, world: World) -> None:
        self.config, self.data, self.world = config, data, world
        self.memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        self.amp_dtype = choose(AMP, config.amp, "amp") if config.amp else None
        torch.manual_seed(config.seed)
        model = create_model(config.model.name, data.stats.num_classes, **config.model.options)
        self.model = model.to(world.device, memory_format=self.memory_format)
        optimizer = config.optimizer
        self.optimizer = create_optimizer(optimizer.name, self.model, optimizer.lr, optimizer.options, optimizer.groups)
        network: Any = torch.compile(self.model) if config.compile else self.model
        self.network: torch.nn.Module = world.wrap(network)
        torch.manual_seed(config.seed + world.rank)
        facts = {"stats": data.stats, "num_samples": len(data.train), "seed": config.seed}
        self.loss = create_loss(config.loss.name, config.loss.options, **facts).to(world.device)
        self.schedule = create_schedule(config.schedule.name, config.epochs, config.schedule.options)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=self.amp_dtype == torch.float16)
        self.weigher = Weigher(config, self.model, data.stats, len(data.train), world)
        self.notes = Notes(config, self.weigher, world)

    def input(self, images: Tensor) -> Tensor:
        """Images on the device, normalised."""
        images = normalize(images.to(self.world.device, non_blocking=True), self.config.data.mean, self.config.data.std)
        return images.to(memory_format=self.memory_format)

    def step(self, batch: GroupedBatch, epoch: int, number: int, share: float, global_size: int) -> None:
        """One step: score, learn, note. ``share`` of the epoch has passed; all processes hold ``global_size`` samples."""
        self.lr = self.config.optimizer.lr * self.schedule(epoch + share)
        set_lr(self.optimizer, self.lr)
        self.loss.set_lr(self.lr)
        self.optimizer.zero_grad(set_to_none=True)
        parts = parts_of(batch.to(self.world.device, non_blocking=True), self.config.accumulate)
        for part in parts:
            with self.world.no_sync(self.network, last=part is parts[-1]):
                weights, scores, logits = self.weigh(self.input(part.images), part, epoch, number)
                losses = self.loss(logits, part.labels, ids=part.ids)
                # Gradients are averaged over processes: size * local sum / global count is the mean over all samples.
                objective = self.world.size * (weights * losses).sum() / global_size
                if part is parts[-1]:
                    objective = objective + self.loss.regularizer(self.model)
                self.scaler.scale(objective).backward()
            self.notes.enter(part, weights, scores, losses, epoch, number)
        if self.config.clip_grad is not None:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def weigh(self, images: Tensor, batch: GroupedBatch, epoch: int, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """(weights_B, scores_B, logits_BK) of a batch: the pass over composites, then the training pass."""
        with torch.autocast(self.world.device.type, self.amp_dtype, enabled=self.amp_dtype is not None):
            scores = self.weigher.score(images, batch, epoch)
            logits = self.network(images)
        return *self.weigher.weigh(scores, logits, batch, epoch, number), logits

    def state_dict(self) -> dict[str, Any]:
        """Everything but the plan; all processes take part."""
        return {**{name: getattr(self, name).state_dict() for name in self.STATEFUL}, "rng": rng_state(self.world)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in self.STATEFUL:
            getattr(self, name).load_state_dict(state[name])
        set_rng_state(state["rng"], self.world)


def train(config: Config, data: Data, run: RunFolder, world: World) -> None:
    """Train, evaluating and saving after every epoch; end with plots and a summary."""
    batches = make_batches(config, data, world)
    training = Training(config, data, world)
    loader, test_loader = make_loaders(config, data, batches, world)
    if world.is_main:
        run.start(config)
    world.wait()

    def save(batches_done: int, keep_as: str | None = None) -> None:
        state = {"config": asdict(config), "training": training.state_dict(), "plan": batches.state_dict(batches_done)}
        if world.is_main:
            run.save_checkpoint(state, keep_as)

    first, stop = 0, False
    checkpoint = run.load_checkpoint(config, training.model)
    if checkpoint is not None:
        training.load_state_dict(checkpoint["training"])
        batches.load_state_dict(checkpoint["plan"])
        first = checkpoint["plan"]["batches"]
    if world.is_main:
        run.open_logs(batches.epoch, config.tensorboard)
        if checkpoint is not None:
            print(f"going on in {run.path} at epoch {batches.epoch + 1}, step {first + 1}")
        elif hasattr(training.model, "weights_report"):
            print(f"{config.model.name}: {training.model.weights_report}")

    with PreemptionFlag() as preempted:
        for epoch in range(batches.epoch, config.epochs):
            batches.set_epoch(epoch)
            training.loss.start_epoch(epoch, config.epochs)
            clock = EpochClock()
            bar = progress_bar(clock.waiting(loader), f"epoch {epoch + 1}/{config.epochs}", first, len(batches), world)
            for number, batch in enumerate(bar, first):
                global_size, stop = world.sum(torch.tensor([len(batch.labels), int(preempted.is_set)])).tolist()
                with memory_advice(config, world, "training"):
                    training.step(batch, epoch, number, number / len(batches), global_size)
                done = number + 1
                if world.is_main and config.log_every is not None and done % config.log_every == 0:
                    place = f"epoch {epoch + 1}/{config.epochs}, step {done}/{len(batches)}"
                    print(f"{place}  loss {training.notes.mean_loss():.4f}  {clock.so_far()}", flush=True)
                due = config.checkpoint_every is not None and done % config.checkpoint_every == 0
                if (stop or due) and done < len(batches):
                    save(done)
                    if stop:
                        raise Preemption
            sigma, rho = training.weigher.strength.at(epoch, config.epochs)
            line = {"epoch": epoch, "lr": training.lr, "sigma": sigma, "rho": rho}
            line |= {**training.notes.numbers(), **batches.report.counts()}
            line |= clock.read(line["scoring_seconds"], world)
            with memory_advice(config, world, "evaluation"):
                line |= evaluate(training.model, test_loader, training.input, data.stats)
            if world.is_main:
                run.log(line)
                print(epoch_line(line, config.epochs), flush=True)
            first = 0
            keep = config.keep_every is not None and (epoch + 1) % config.keep_every == 0
            save(len(batches), f"epoch-{epoch + 1}.pt" if keep else None)
            if stop and epoch + 1 < config.epochs:
                raise Preemption

    leave_world()
    if world.is_main:
        finish(config, training, batches, run)


def finish(config: Config, training: Training, batches: GroupingBatchSampler, run: RunFolder) -> None:
    """Scores, plots and the summary, by the main process alone."""
    training.weigher.ledger.save(run.path / "scores.npz")
    if config.plots:
        from ns_data.compare.plots import plot_composites, plot_run  # only here: matplotlib takes its time

        data = training.data
        plot_run(run.path, data.stats, data.classes)
        batch = first_batch(data, batches, config.epochs).to(training.world.device)
        training.network = training.model  # the other processes are gone
        with torch.no_grad():
            weights, scores, _ = training.weigh(training.input(batch.images), batch, config.epochs - 1, 0)
        picture = run.path / "plots" / "composites.png"
        plot_composites(batch.to("cpu"), batches.layout, data.classes, picture, scores.cpu(), weights.cpu())
    run.finish({**summarize(config, run.metrics(), training.world.device), "classes": training.data.classes})


if __name__ == "__main__":
    run_command(main)
