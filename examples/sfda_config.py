"""Settings of a source-free adaptation, and where the model of its source domain lies."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ns_data.choose import unknown
from ns_data.training.config import LossConfig, ModelConfig, NSConfig, free_settings, read_files, setting, to_yaml
from ns_data.training.layers import merge_layers, read_words


@dataclass
class DomainsConfig:
    on_error = "raise"  # every target sample needs its pseudo-label

    source: str | None = setting("digits_domain", "data source, written as shards on first use, one folder for each domain")
    options: dict[str, Any] = setting({}, "options of the source, beside domain=")
    root: str = setting("data", "folder of prepared sources", free=True)
    path: str | None = setting(None, "instead of a source: a folder with a folder of shards for each domain")
    domains: list[str] = setting(["plain", "inverted", "rotated", "noisy"], "all domains")
    image_size: int = setting(16, "images are cut to squares of this side")
    augment: str = setting("none", "training transform: none, crop_flip, resized_crop_flip, stretch_crop_flip")
    augment_options: dict[str, Any] = setting({}, "options of the training transform")
    evaluate: str = setting("fit", "transform of evaluation and pseudo-labels: fit, stretch")
    evaluate_options: dict[str, Any] = setting({}, "options of that transform")
    mean: list[float] = setting([0.5], "subtracted from images in [0, 1], one value or one a channel")
    std: list[float] = setting([0.5], "divides them")
    workers: int = setting(0, "loader processes", free=True)
    resident: bool | None = setting(None, "decode once and keep in memory; null: shards of up to 1 GiB of pixels", free=True)


@dataclass
class SGDConfig:
    lr: float = setting(0.01, "learning rate of the bottleneck, and of the head on the source")
    features: float = setting(0.1, "rate of the network before the bottleneck, as a share of lr")
    momentum: float = setting(0.9, "Nesterov momentum")
    weight_decay: float = setting(0.001, "of all trained parameters")


@dataclass
class SourceConfig:
    epochs: int = setting(50, "epochs on the source domain")
    batch_size: int = setting(64, "samples of a step")
    smoothing: float = setting(0.1, "label smoothing")
    holdout: float = setting(0.1, "share of the source samples, drawn at random, that choose the model")
    evaluations: int = setting(10, "how often they are looked at")
    keep: str = setting("best", "best of these times (the latest of equals), or last")
    weights: str | None = setting(None, "instead of training: a folder with source_F.pt, source_B.pt and source_C.pt")
    optimizer: SGDConfig = field(default_factory=SGDConfig, metadata={"help": ""})


@dataclass
class WinnersConfig(NSConfig):
    sigma: float = setting(0.6, "weight = sigma + rho * score, on the pseudo-label term alone")
    rho: float = setting(1.0, "+1 strengthens winners (NS-WS), -1 focuses on losers (NS-LF)")


@dataclass
class SfdaConfig:
    """All settings of one pair of domains."""

    base: str | None = setting(None, "another config file, relative to this one, that this one changes")
    name: str | None = setting(None, "of the run; by default the config's and its overrides", free=True)
    run_dir: str | None = setting(None, "run folder; by default runs/sfda/NAME", free=True)
    sources_dir: str = setting(
        "runs/sfda/sources", "where models of the source domains are kept, for all pairs and methods", free=True
    )
    source: str = setting("plain", "domain with labels")
    target: str = setting("rotated", "domain without")
    seed: int = setting(2024, "of initialisation, plan and augmentation")
    epochs: int = setting(15, "epochs on the target domain")
    batch_size: int = setting(64, "samples of a step, a multiple of the group size")
    eval_batch_size: int = setting(256, "samples of an evaluation step", free=True)
    device: str | None = setting(None, "cuda, mps or cpu; by default the first of them that is there", free=True)
    tensorboard: bool | None = setting(None, "log for TensorBoard in the run folder; null: when it is installed", free=True)
    fresh: bool = setting(False, "start anew, removing what is in the run folder; models of source domains stay", free=True)
    bottleneck: int = setting(256, "features after the bottleneck")
    pseudo_weight: float = setting(0.3, "of the pseudo-label term")
    im_weight: float = setting(1.0, "of information maximisation")
    threshold: int = setting(0, "a class needs more predicted samples than this to have a centroid")
    data: DomainsConfig = field(default_factory=DomainsConfig, metadata={"help": ""})
    model: ModelConfig = field(default_factory=ModelConfig, metadata={"help": ""})
    ns: WinnersConfig = field(default_factory=WinnersConfig, metadata={"help": ""})
    loss: LossConfig = field(default_factory=LossConfig, metadata={"help": ""})
    optimizer: SGDConfig = field(default_factory=SGDConfig, metadata={"help": ""})
    training: SourceConfig = field(default_factory=SourceConfig, metadata={"help": ""})


def load_sfda(path: str | Path, overrides: Iterable[str] = ()) -> SfdaConfig:
    """Read a config file, the ``base`` it changes, and ``key=value`` words; ``ValueError`` in one sentence for mistakes."""
    words = list(overrides)
    config = merge_layers(SfdaConfig, [*read_files(path), *read_words(words, "source=plain")])
    config.base = None
    if config.name is None:
        free = free_settings(SfdaConfig)
        named = [word.replace("/", "_") for word in words if word.partition("=")[0] not in free]
        config.name = "-".join([Path(path).stem, *named])
    if config.run_dir is None:
        config.run_dir = str(Path("runs", "sfda", config.name))
    for domain in (config.source, config.target):
        if domain not in config.data.domains:
            raise ValueError(unknown(domain, config.data.domains, "domain"))
    if config.source == config.target:
        raise ValueError(f"source and target are both {config.source}: name two domains")
    if config.training.keep not in ("best", "last"):
        raise ValueError(f"training.keep must be best or last, got {config.training.keep!r}")
    if not 0 < config.training.holdout < 1:
        raise ValueError(f"training.holdout must be between 0 and 1, got {config.training.holdout}")
    for name, value in (("epochs", config.epochs), ("training.epochs", config.training.epochs)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    return config


def source_folder(config: SfdaConfig) -> Path:
    """Where the model of the source domain lies: the folder's name tells everything that decides it."""
    data = dataclasses.replace(config.data, root="", workers=0, domains=[])
    what = dataclasses.replace(
        SfdaConfig(), data=data, model=config.model, bottleneck=config.bottleneck, training=config.training
    )
    return Path(config.sources_dir) / f"{config.source}-seed={config.seed}-{zlib.crc32(to_yaml(what).encode()):08x}"
