"""Checkpoint: the network of a run folder, or of a bare file of weights, with its settings and class names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import nn

from ns_data.models import create_model
from ns_data.models.weights import classes_of_state, load_weights, read_weights
from ns_data.scoring.ledger import ScoreLedger
from ns_data.training.config import Config, load_config, merge_layers, read_words

WAYS_TO_DATA = ("data.path", "data.source", "data.dataset")


class Checkpoint(NamedTuple):
    """A network ready to evaluate. ``classes`` and ``training_counts`` only if the run folder tells them."""

    path: Path
    config: Config
    model: nn.Module
    num_classes: int
    classes: list[str] | None
    training_counts: np.ndarray | None


def open_checkpoint(place: Path, config_file: str | None, words: Sequence[str]) -> Checkpoint:
    """Open a run folder (its ``last.pt``), a checkpoint in one, or a file of weights with a config file or ``model.name=``.

    ``words`` are further settings; one of ``WAYS_TO_DATA`` among them replaces the run's data.
    Raises ``ValueError`` in one sentence for what is missing or does not fit.
    """
    path = place / "last.pt" if place.is_dir() else place
    run = path.parent if config_file is None and (path.parent / "config.yaml").is_file() else None
    if place.is_dir() and run is None:
        raise ValueError(f"{place} is not a run folder, it has no config.yaml: name one, or a file of weights")
    if not path.is_file():
        raise ValueError(f"there is no checkpoint {path}" + (": has the run ended its first epoch?" if place.is_dir() else ""))
    if run is not None:
        config = _with_other_data(run / "config.yaml", words)
    elif config_file is not None:
        config = _with_other_data(Path(config_file), words)
    else:
        config = _without_a_file(path, words)
    config.model.options = {k: v for k, v in config.model.options.items() if k not in ("weights", "weights_key")}
    model, num_classes = _network(path, config)
    classes = _classes(run) if run is not None else None
    counts = _training_counts(run, num_classes) if run is not None else None
    return Checkpoint(path, config, model, num_classes, classes, counts)


def _with_other_data(file: Path, words: Sequence[str]) -> Config:
    """The config, in which data named by ``words`` takes the place of the file's, options of its source included."""
    keys = {word.partition("=")[0] for word in words}
    given = [key for key in WAYS_TO_DATA if key in keys]
    cleared = [f"{key}=null" for key in WAYS_TO_DATA if given and key not in given]
    if "data.source" in given or "data.dataset" in given:
        options = load_config(file).data.options
        cleared += [f"data.options.{name}=null" for name in options if f"data.options.{name}" not in keys]
    return load_config(file, [*cleared, *words])


def _without_a_file(path: Path, words: Sequence[str]) -> Config:
    keys = {word.partition("=")[0] for word in words}
    if "model.name" not in keys or not keys & set(WAYS_TO_DATA):
        raise ValueError(
            f"{path} is in no run folder: name its config file, or its network and data with model.name= and data.path="
        )
    cleared = [f"{key}=null" for key in WAYS_TO_DATA if key not in keys]
    return merge_layers(Config, read_words([*cleared, *words], "model.name=resnet18"))


def _network(path: Path, config: Config) -> tuple[nn.Module, int]:
    """The network with the weights in ``path``, for as many classes as they are; every tensor of it must be there."""
    state, source = read_weights(path)
    num_classes = classes_of_state(create_model(config.model.name, 2, **config.model.options), state)
    if num_classes is None:
        raise ValueError(
            f"{source} has no head of {config.model.name}, so it cannot classify: name the network it was made with"
        )
    model = create_model(config.model.name, num_classes, **config.model.options)
    load_weights(model, state, num_classes, source)
    return model.eval(), num_classes


def _classes(run: Path) -> list[str] | None:
    done = run / "done"
    return json.loads(done.read_text()).get("classes") if done.is_file() else None


def _training_counts(run: Path, num_classes: int) -> np.ndarray | None:
    """Training samples of each class, by the labels that the run scored."""
    if not (run / "scores.npz").is_file():
        return None
    labels = ScoreLedger.load(run / "scores.npz").labels()
    counts = np.bincount(labels[labels >= 0], minlength=num_classes)
    return counts if counts.size == num_classes else None
