"""The source model of an adaptation: a ShotNet trained on one labelled domain, once for all targets and methods."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sfda_config import SfdaConfig, source_folder
from sfda_data import classes_of, in_order, make_loader, open_domain, to_input
from shot import ShotNet, create_sgd, decay
from torch import Tensor

from ns_data import ClassStats, GroupingBatchSampler, ShuffleSampler
from ns_data.losses import create_loss
from ns_data.shards.dataset import PartDataset
from ns_data.training.config import to_yaml
from ns_data.training.distributed import World
from ns_data.training.evaluate import evaluate
from ns_data.training.optim import set_lr
from ns_data.training.progress import progress_bar
from ns_data.training.run import RunFolder, rng_state, set_rng_state


def train_source(config: SfdaConfig, device: torch.device) -> tuple[dict[str, Tensor], list[str]]:
    """The source model's state and its classes: trained now, or before for another pair or method.

    90 % of the samples are trained on; the others choose the best of ten points in time.
    """
    folder, settings = RunFolder(source_folder(config)), config.training
    saved = folder.read_checkpoint()
    if folder.summary is not None and saved is not None:
        return saved["model"], saved["classes"]
    sets = [open_domain(config, config.source, training=training) for training in (True, False)]
    classes = classes_of(sets[0], config.source)
    rows = np.random.default_rng([config.seed, 21]).permutation(len(sets[0]))
    held = round(settings.holdout * len(rows))
    if not 0 < held < len(rows):
        raise ValueError(f"training.holdout={settings.holdout} of {len(rows)} samples leaves none on one side: choose another")
    train, test = PartDataset(sets[0], np.sort(rows[held:])), PartDataset(sets[1], np.sort(rows[:held]))
    stats = ClassStats.from_labels(train.labels, len(classes))
    batches = GroupingBatchSampler(
        ShuffleSampler(len(train), seed=config.seed), settings.batch_size, labels=train.labels, layout="1x1", seed=config.seed
    )
    loader = make_loader(config, train, batches, device)
    test_loader = make_loader(config, test, in_order(len(test), config.eval_batch_size), device)

    torch.manual_seed(config.seed)
    model = ShotNet(config.model.name, len(classes), bottleneck=config.bottleneck, **config.model.options).to(device)
    optimizer = create_sgd(model, **vars(settings.optimizer))
    loss = create_loss("label_smoothing", {"smoothing": settings.smoothing})
    best: dict[str, Any] = {"accuracy": -1.0}
    first, lone, world, prepared = 0, 0, World(0, 1, device), to_input(config, device)
    if saved is not None:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        set_rng_state(saved["rng"], world)
        best, lone, first = saved["best"], saved["lone"], saved["epoch"]
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.write("settings.yaml", to_yaml(config))
    max_it = settings.epochs * len(batches)
    between = max(1, max_it // settings.evaluations)
    for epoch in range(first, settings.epochs):
        batches.set_epoch(epoch)
        bar = progress_bar(loader, f"{config.source} {epoch + 1}/{settings.epochs}", 0, len(batches), world)
        for number, batch in enumerate(bar):
            it = epoch * len(batches) + number + 1
            set_lr(optimizer, settings.optimizer.lr * decay(it, max_it))
            batch = batch.to(device, non_blocking=True)
            if len(batch.labels) == 1:  # has no batch statistics
                lone += 1
            else:
                optimizer.zero_grad(set_to_none=True)
                loss(model.train()(prepared(batch.images)), batch.labels).mean().backward()
                optimizer.step()
            if it % between == 0 or it == max_it:
                numbers = evaluate(model, test_loader, prepared, stats)
                if settings.keep == "last" or numbers["accuracy"] >= best["accuracy"]:
                    best = {"accuracy": numbers["accuracy"], "step": it, "state": _copy(model.state_dict())}
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": rng_state(world)}
        folder.save_checkpoint({**state, "best": best, "lone": lone, "epoch": epoch + 1})
    folder.save_checkpoint({"model": best["state"], "classes": classes})
    steps = {"step": best["step"], "steps": max_it, "skipped_batches": lone}
    folder.finish({"held_out_accuracy": best["accuracy"], **steps})
    return best["state"], classes


def _copy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
