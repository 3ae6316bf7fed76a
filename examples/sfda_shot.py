"""Source-free domain adaptation: SHOT with natural selection on its pseudo-labels.

    python examples/sfda_shot.py [CONFIG.yaml] [source=DOMAIN target=DOMAIN key=value ...] [--help | --dry-run | --print-config]

The story of one pair, top to bottom: train on the labelled source, put the data away, and adapt to the target with labels
that the network makes for itself. Where a group's members stand in their composite decides what their pseudo-labels count.
The same command again goes on where a run stopped. All pairs of domains: examples/sfda_table.py.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from sfda_config import SfdaConfig, load_sfda, source_folder
from sfda_data import check_same_classes, classes_of, in_order, make_loader, make_plan, open_domain, to_input
from sfda_source import train_source
from shot import ShotNet, create_sgd, decay, information_maximisation, load_state, look, read_published
from torch import Tensor

from ns_data import ClassStats, GroupedBatch, Layout
from ns_data.losses import create_loss
from ns_data.scoring.weighting import mean_weight
from ns_data.training.command import run_command, split_arguments
from ns_data.training.config import help_text, to_yaml
from ns_data.training.distributed import World, default_device
from ns_data.training.notes import Notes
from ns_data.training.optim import set_lr
from ns_data.training.progress import EpochClock, epoch_line, progress_bar
from ns_data.training.run import RunFolder, rng_state, set_rng_state
from ns_data.training.weigher import Weigher

DEFAULT_CONFIG = Path(__file__).parents[1] / "configs" / "sfda" / "digits.yaml"
DASHED = ("--help", "--dry-run", "--print-config")


def main(arguments: list[str]) -> None:
    words, dashed = split_arguments(arguments, DASHED)
    if "--help" in dashed:
        print(f"{__doc__}\nWithout CONFIG it is configs/sfda/{DEFAULT_CONFIG.name}. Settings:\n\n{help_text(SfdaConfig)}")
        return
    path = words.pop(0) if words and "=" not in words[0] else DEFAULT_CONFIG
    config = load_sfda(path, words)
    if "--print-config" in dashed:
        print(to_yaml(config), end="")
    elif "--dry-run" in dashed:
        print(describe(config))
    else:
        print(summary_text(run_pair(config)))


def run_pair(config: SfdaConfig) -> dict[str, Any]:
    """The summary of a pair: of its run folder if that is done, else after training whatever is missing."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError("this runs in one process: start it without torchrun, one pair of domains on each GPU")
    run = RunFolder(str(config.run_dir))
    run.check(config)
    if config.fresh or run.summary is None:
        device = torch.device(config.device or default_device())
        target = open_domain(config, config.target, training=False)  # first, so that mistakes show before the training
        classes = classes_of(target, config.target)
        if config.training.weights is None:
            state, source_classes = train_source(config, device)
            check_same_classes(source_classes, classes, config)
        else:
            state = read_published(config.training.weights)
        adapt(config, run, state, target, device)
    return dict(run.summary or {})


class Adaptation:
    """What the adaptation changes as it goes, and how one step changes it."""

    STATEFUL = ("model", "optimizer", "loss", "weigher", "notes")

    def __init__(self, config: SfdaConfig, model: ShotNet, num_samples: int, world: World) -> None:
        self.config, self.model, self.world = config, model, world
        self.input = to_input(config, world.device)
        model.freeze_classifier()
        self.optimizer = create_sgd(model, **vars(config.optimizer))
        stats = ClassStats.from_labels([0], model.classifier.out_features)  # pseudo-labels take their place
        self.weigher = Weigher(config, model, stats, num_samples, world)
        self.notes = Notes(config, self.weigher, world)
        self.loss: Any = None

    def start_epoch(self, epoch: int, labels_N: Tensor) -> None:
        """New pseudo-labels: the loss keeps what it has learnt and takes their counts; only F and B are in training mode."""
        self.weigher.stats = ClassStats.from_labels(labels_N, self.model.classifier.out_features)
        facts = {"stats": self.weigher.stats, "num_samples": len(labels_N), "seed": self.config.seed}
        loss = create_loss(self.config.loss.name, self.config.loss.options, **facts).to(self.world.device)
        if self.loss is not None:
            loss.load_state_dict(self.loss.state_dict())
        self.loss = loss
        self.loss.start_epoch(epoch, self.config.epochs)
        self.model.train()
        self.model.classifier.eval()

    def step(self, batch: GroupedBatch, epoch: int, number: int, it: int, max_it: int) -> None:
        """One step on a batch with pseudo-labels: weights on their term alone, information maximisation beside it."""
        lr = self.config.optimizer.lr * decay(it, max_it)
        set_lr(self.optimizer, lr)
        self.loss.set_lr(lr)
        weights, scores, logits = self.weigh(self.input(batch.images), batch, epoch, number)
        losses = self.loss(logits, batch.labels, ids=batch.ids)
        pseudo = (weights * losses).mean() + self.loss.regularizer(self.model)
        objective = self.config.pseudo_weight * pseudo + self.config.im_weight * information_maximisation(logits)
        self.optimizer.zero_grad(set_to_none=True)
        objective.backward()
        self.optimizer.step()
        self.notes.enter(batch, weights, scores, losses.detach(), epoch, number)

    def weigh(self, images: Tensor, batch: GroupedBatch, epoch: int, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """(weights_B, scores_B, logits_BK): the pass over composites, if the weighting asks for it, then the training pass."""
        scores = self.weigher.score(images, batch, epoch)
        logits = self.model(images)
        return *self.weigher.weigh(scores, logits, batch, epoch, number), logits


def adapt(config: SfdaConfig, run: RunFolder, state: dict[str, Tensor], target: Any, device: torch.device) -> None:
    """Adapt to the target: pseudo-labels before each epoch, and the last epoch's model reported."""
    torch.manual_seed(config.seed)
    options = {**config.model.options, "weights": None} if "weights" in config.model.options else config.model.options
    model = ShotNet(config.model.name, len(target.classes), bottleneck=config.bottleneck, **options)
    load_state(model, state, config.training.weights or source_folder(config))
    world = World(0, 1, device)
    adaptation = Adaptation(config, model.to(device), len(target), world)
    train = open_domain(config, config.target, training=True)
    stats = ClassStats.from_labels(target.labels, len(target.classes))
    test_loader = make_loader(config, target, in_order(len(target), config.eval_batch_size), device)

    def see() -> tuple[Tensor, dict[str, Any]]:
        return look(model, test_loader, adaptation.input, stats, config.threshold)

    run.start(config)
    saved, first = run.load_checkpoint(config, model), 0
    if saved is None:
        labels_N, before = see()
    else:
        labels_N, before, first = saved["labels"].to(device), saved["before"], saved["plan"]["epoch"]
        adaptation.start_epoch(first - 1, labels_N)
        for name in Adaptation.STATEFUL:
            getattr(adaptation, name).load_state_dict(saved["training"][name])
        set_rng_state(saved["training"]["rng"], world)
        print(f"going on in {run.path} at epoch {first + 1}")
    run.open_logs(first, config.tensorboard)
    for epoch in range(first, config.epochs):
        adaptation.start_epoch(epoch, labels_N)
        batches = make_plan(config, labels_N)
        batches.set_epoch(epoch)
        clock, lone, max_it = EpochClock(), 0, config.epochs * len(batches)
        loader = clock.waiting(make_loader(config, train, batches, device))
        bar = progress_bar(loader, f"{config.target} {epoch + 1}/{config.epochs}", 0, len(batches), world)
        for number, batch in enumerate(bar):
            batch = batch.to(device, non_blocking=True)
            if len(batch.labels) == 1:  # has no batch statistics
                lone += 1
                continue
            pseudo = batch._replace(labels=labels_N[batch.ids])  # the true labels go no further
            adaptation.step(pseudo, epoch, number, epoch * len(batches) + number + 1, max_it)
        if lone == len(batches):
            raise ValueError(f"every batch of {config.target} has a single sample: adapt to a domain with more")
        line = {"epoch": epoch, "lr": adaptation.optimizer.param_groups[0]["lr"]}
        line |= dict(zip(("sigma", "rho"), adaptation.weigher.strength.at(epoch, config.epochs), strict=True))
        line |= {"unlabelled_classes": int(adaptation.weigher.stats.empty_classes.size), "skipped_batches": lone}
        line |= {"pseudo_label_accuracy": float((labels_N.cpu().numpy() == target.labels).mean())}
        line |= {**adaptation.notes.numbers(), **batches.report.counts()}
        line |= clock.read(line["scoring_seconds"], world)
        labels_N, numbers = see()  # the next epoch's
        line |= numbers
        run.log(line)
        print(epoch_line(line, config.epochs) + _counts(line), flush=True)
        state = {name: getattr(adaptation, name).state_dict() for name in Adaptation.STATEFUL}
        state = {"config": asdict(config), "training": {**state, "rng": rng_state(world)}}
        plan = {"epoch": epoch + 1, "batches": 0}
        run.save_checkpoint({**state, "plan": plan, "labels": labels_N.cpu(), "before": before})
    adaptation.weigher.ledger.save(run.path / "scores.npz")
    run.finish(summarize(config, before, run.metrics()))


def _counts(line: dict[str, Any]) -> str:
    names = [name for name in ("unlabelled_classes", "skipped_batches") if line[name]]
    return "".join(f"  {name.replace('_', ' ')} {line[name]}" for name in names)


def summarize(config: SfdaConfig, before: dict[str, Any], metrics: list[dict[str, Any]]) -> dict[str, Any]:
    """Accuracy on the target before and after; the last epoch's, since the target has no labels to choose by."""
    run = {name: getattr(config, name) for name in ("name", "run_dir", "source", "target", "seed", "epochs")}
    after = {name: metrics[-1][name] for name in ("accuracy", "balanced_accuracy", "pseudo_label_accuracy")}
    seconds = {name: sum(line[name] for line in metrics) for name in ("train_seconds", "scoring_seconds")}
    return {**run, "source_only_accuracy": before["accuracy"], **after, **seconds}


def summary_text(summary: dict[str, Any]) -> str:
    return (
        f"\n{summary['source']} > {summary['target']}, seed {summary['seed']}: the last of {summary['epochs']} epochs\n"
        f"  source model       {summary['source_only_accuracy']:.2%}\n"
        f"  adapted            {summary['accuracy']:.2%}\n"
        f"  run folder         {summary['run_dir']}"
    )


def describe(config: SfdaConfig) -> str:
    """The dry run's text."""
    target, ns, folder = open_domain(config, config.target, training=False), config.ns, source_folder(config)
    num_classes, N = len(classes_of(target, config.target)), len(target)
    steps = len(make_plan(config, torch.from_numpy(target.labels)))
    done = "is there" if RunFolder(folder).summary is not None else f"{config.training.epochs} epochs on {config.source}"
    mean = 1.0 if ns.weighting == "none" or ns.normalize else mean_weight(ns.sigma, ns.rho, Layout.parse(ns.layout).group_size)
    rows = [
        ("pair", f"{config.source} > {config.target}: {N} target samples of {num_classes} classes"),
        ("source model", config.training.weights or f"{folder}: {done}"),
        ("adaptation", f"{config.epochs} epochs of {steps} steps, the last of {N - (steps - 1) * config.batch_size} samples"),
        ("objective", f"{config.pseudo_weight:g} weight * {config.loss.name} + {config.im_weight:g} information maximisation"),
        ("weight", f"{ns.weighting}: {ns.sigma:g} {ns.rho:+g} s, mean {mean:g}" if ns.weighting != "none" else "1"),
        ("run folder", config.run_dir),
    ]
    return "\n".join(f"{name:<18} {value}" for name, value in rows)


if __name__ == "__main__":
    run_command(main)
