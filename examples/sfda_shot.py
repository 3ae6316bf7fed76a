"""Source-free domain adaptation: SHOT with natural selection on its pseudo-labels.

    python examples/sfda_shot.py [CONFIG.yaml] [source=DOMAIN target=DOMAIN key=value ...] [--help | --dry-run | --print-config]

The story of one pair, top to bottom: train on the labelled source, put the data away, and adapt to the target with labels
that the network makes for itself. Where a group's members stand in their composite decides what their pseudo-labels count.
The same command again goes on where a run stopped. All pairs of domains: examples/sfda_table.py.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sfda_config import SfdaConfig, load_sfda, source_folder
from sfda_data import BAR, check_same_classes, classes_of, in_order, make_loader, make_plan, open_domain, to_input
from sfda_source import train_source
from shot import ShotNet, create_sgd, decay, information_maximisation, load_state, look, read_published, set_rates
from torch import Tensor
from tqdm import tqdm

from ns_data import WEIGHTINGS, ClassStats, GroupedBatch, Layout, NSScorer, ScoreLedger
from ns_data.choose import choose
from ns_data.losses import create_loss
from ns_data.scoring.weighting import Step, Strength, mean_weight
from ns_data.training.config import help_text, to_yaml
from ns_data.training.distributed import World, default_device
from ns_data.training.notes import Notes
from ns_data.training.progress import EpochClock, epoch_line
from ns_data.training.run import RunFolder, rng_state, set_rng_state

DEFAULT_CONFIG = Path(__file__).parents[1] / "configs" / "sfda" / "digits.yaml"
DASHED = ("--help", "--dry-run", "--print-config")


def main(arguments: list[str]) -> None:
    dashed = [word for word in arguments if word.startswith("-")]
    words = [word for word in arguments if not word.startswith("-")]
    for word in dashed:
        if word not in DASHED:
            raise ValueError(f"unknown option {word}: there are {', '.join(DASHED)}; settings are written key=value")
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
    run = RunFolder(str(config.run_dir), load_sfda)
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

    STATEFUL = ("model", "optimizer", "loss", "scorer", "notes")

    def __init__(self, config: SfdaConfig, model: ShotNet, num_samples: int, device: torch.device) -> None:
        self.config, self.model, self.device, ns = config, model, device, config.ns
        self.input = to_input(config, device)
        self.layout = Layout.parse(ns.layout, ns.order)
        model.freeze_classifier()
        self.optimizer = create_sgd(model, **vars(config.optimizer))
        self.weighting = choose(WEIGHTINGS, ns.weighting, "weighting")
        self.strength = Strength(ns.sigma, ns.rho, ns.start_epoch, ns.sigma_end, ns.rho_end)
        ledger = ScoreLedger(num_samples, device=device)
        every = {"every": ns.every, "ledger": ledger if ns.every > 1 else None}
        options = {"layout": self.layout, "batch_norm": ns.batch_norm, "scale": ns.scale, "placements": ns.placements}
        self.scorer = NSScorer(model, **options, **every)
        self.notes = Notes(config, ledger, self.scorer, World(0, 1, device))
        self.loss: Any = None

    def start_epoch(self, epoch: int, labels_N: Tensor) -> None:
        """New pseudo-labels: the loss keeps what it has learnt and takes their counts; only F and B are in training mode."""
        self.stats = ClassStats.from_labels(labels_N, self.model.classifier.out_features)
        facts = {"stats": self.stats, "num_samples": len(labels_N), "seed": self.config.seed}
        loss = create_loss(self.config.loss.name, self.config.loss.options, **facts).to(self.device)
        if self.loss is not None:
            loss.load_state_dict(self.loss.state_dict())
        self.loss = loss
        self.loss.start_epoch(epoch, self.config.epochs)
        self.model.train()
        self.model.classifier.eval()

    def step(self, batch: GroupedBatch, epoch: int, number: int, it: int, max_it: int) -> None:
        """One step on a batch with pseudo-labels: weights on their term alone, information maximisation beside it."""
        self.loss.set_lr(set_rates(self.optimizer, decay(it, max_it)))
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
        weighting = self.weighting if epoch >= self.config.ns.start_epoch else WEIGHTINGS["none"]
        sigma, rho = self.strength.at(epoch, self.config.epochs)
        scores = None
        if weighting.composites:
            with self.notes.scoring_time():
                scores = self.scorer(images, batch.labels, batch.groups, batch.ids)
        logits = self.model(images)
        seed = np.random.SeedSequence([self.config.seed, epoch, number]).generate_state(1)
        generator = torch.Generator().manual_seed(int(seed[0]))
        step = Step(scores, logits.detach(), batch.labels, batch.groups, self.layout, sigma, rho, self.stats, generator)
        weights, scores = weighting.weigh(step)
        if self.config.ns.normalize:
            weights = weights / mean_weight(sigma, rho, self.layout.group_size)
        return weights, scores, logits


def adapt(config: SfdaConfig, run: RunFolder, state: dict[str, Tensor], target: Any, device: torch.device) -> None:
    """Adapt to the target: pseudo-labels before each epoch, and the last epoch's model reported."""
    torch.manual_seed(config.seed)
    options = {**config.model.options, "weights": None} if "weights" in config.model.options else config.model.options
    model = ShotNet(config.model.name, len(target.classes), bottleneck=config.bottleneck, **options)
    load_state(model, state, config.training.weights or source_folder(config))
    adaptation = Adaptation(config, model.to(device), len(target), device)
    train = open_domain(config, config.target, training=True)
    stats = ClassStats.from_labels(target.labels, len(target.classes))
    test_loader = make_loader(config, target, in_order(len(target), config.eval_batch_size), device)

    def see() -> tuple[Tensor, dict[str, Any]]:
        return look(model, test_loader, adaptation.input, stats, config.threshold)

    run.start(config)
    saved, first, world = run.load_checkpoint(), 0, World(0, 1, device)
    if saved is None:
        labels_N, before = see()
    else:
        labels_N, before, first = saved["labels"].to(device), saved["before"], saved["epoch"]
        adaptation.start_epoch(first - 1, labels_N)
        for name in Adaptation.STATEFUL:
            getattr(adaptation, name).load_state_dict(saved[name])
        set_rng_state(saved["rng"], world)
        print(f"going on in {run.path} at epoch {first + 1}")
    run.keep_metrics_before(first)
    for epoch in range(first, config.epochs):
        adaptation.start_epoch(epoch, labels_N)
        batches = make_plan(config, labels_N)
        batches.set_epoch(epoch)
        clock, lone, max_it = EpochClock(), 0, config.epochs * len(batches)
        loader = clock.waiting(make_loader(config, train, batches, device))
        for number, batch in enumerate(tqdm(loader, f"{config.target} {epoch + 1}/{config.epochs}", len(batches), **BAR)):
            batch = batch.to(device, non_blocking=True)
            if len(batch.labels) == 1:  # has no batch statistics
                lone += 1
                continue
            pseudo = batch._replace(labels=labels_N[batch.ids])  # the true labels go no further
            adaptation.step(pseudo, epoch, number, epoch * len(batches) + number + 1, max_it)
        if lone == len(batches):
            raise ValueError(f"every batch of {config.target} has a single sample: adapt to a domain with more")
        line = {"epoch": epoch, "lr": adaptation.optimizer.param_groups[0]["lr"]}
        line |= dict(zip(("sigma", "rho"), adaptation.strength.at(epoch, config.epochs), strict=True))
        line |= {"unlabelled_classes": int(adaptation.stats.empty_classes.size), "skipped_batches": lone}
        line |= {"pseudo_label_accuracy": float((labels_N.cpu().numpy() == target.labels).mean())}
        line |= {**adaptation.notes.numbers(), **batches.report.counts(), **clock.read(batches.report.samples)}
        labels_N, numbers = see()  # the next epoch's
        line |= numbers
        run.log(line)
        tqdm.write(epoch_line(line, config.epochs) + _counts(line))
        state = {name: getattr(adaptation, name).state_dict() for name in Adaptation.STATEFUL}
        run.save_checkpoint({**state, "labels": labels_N.cpu(), "before": before, "epoch": epoch + 1, "rng": rng_state(world)})
    adaptation.notes.ledger.save(run.path / "scores.npz")
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
    try:
        main(sys.argv[1:])
    except ValueError as error:
        if "NS_TRACEBACK" in os.environ:
            raise
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\ninterrupted: the same command goes on from the last checkpoint")
