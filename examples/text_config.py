"""Settings of text_classification.py: those of train.py that have an effect on texts, and those that only texts have."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ns_data.training.config import LossConfig, NSConfig, OptimizerConfig, SamplingConfig, ScheduleConfig, setting


@dataclass
class TextDataConfig:
    source: str | None = setting("docstrings", "data source of texts, written as shards under root on first use")
    options: dict[str, Any] = setting({}, "options of the source")
    root: str = setting("data", "folder of prepared sources", free=True)
    path: str | None = setting(None, "instead of a source: a folder of indexed shards of texts")
    train_split: str = setting("train", "split to train on")
    test_split: str = setting("test", "split to evaluate on")
    holdout: float = setting(0.0, "share of each training class to evaluate on instead of the test split, for tuning")
    length: int = setting(64, "tokens of an input, special ones included; longer texts are cut, and counted")
    tokenizer: str | None = setting(None, "folder of a tokenizer for transformers; null: words")
    vocabulary: str | None = setting(None, "file of words, one a line; null: the words of the training texts")
    min_count: int = setting(2, "times that a word occurs in the training texts to be in the vocabulary")
    max_words: int = setting(30000, "most words of the vocabulary, the most frequent ones")


@dataclass
class TextNSConfig(NSConfig):
    """Of images and texts alike; a layout of texts is one row."""

    layout: str = setting("1x4", "1 x texts of a competition group")
    fit: str = setting("share", "texts in a composite: share cuts each to its share, tail joins and cuts the end off")
    length: int | None = setting(None, "tokens of a composite; null: those of an input")


@dataclass
class NetworkConfig:
    name: str = setting("textcnn", "textcnn or bert")
    options: dict[str, Any] = setting({}, "of textcnn: dim, filters, widths...; of bert: folder, or sizes of a new one")


@dataclass
class TextConfig:
    """All settings of a run on texts."""

    base: str | None = setting(None, "another config file, relative to this one, that this one changes")
    name: str | None = setting(None, "of the run; by default the config's and its overrides", free=True)
    run_dir: str | None = setting(None, "run folder; by default runs/NAME", free=True)
    seed: int = setting(2024, "of initialisation and plan")
    epochs: int = setting(10, "epochs of training")
    batch_size: int = setting(64, "samples of a step, a multiple of the group size")
    drop_last: bool = setting(False, "leave out a short last batch")
    eval_batch_size: int = setting(256, "samples of an evaluation step", free=True)
    device: str | None = setting(None, "cuda, mps or cpu; by default the first of them that is there", free=True)
    amp: str | None = setting(None, "bf16 for automatic mixed precision, or null")
    clip_grad: float | None = setting(None, "largest norm of the gradient")
    checkpoint_every: int | None = setting(
        None, "also save a checkpoint every so many steps; null: after every epoch", free=True
    )
    plots: bool = setting(True, "draw plots at the end", free=True)
    tensorboard: bool | None = setting(None, "log for TensorBoard in the run folder; null: when it is installed", free=True)
    fresh: bool = setting(False, "start anew, removing what is in the run folder", free=True)
    data: TextDataConfig = field(default_factory=TextDataConfig, metadata={"help": ""})
    ns: TextNSConfig = field(default_factory=TextNSConfig, metadata={"help": ""})
    sampling: SamplingConfig = field(default_factory=SamplingConfig, metadata={"help": ""})
    model: NetworkConfig = field(default_factory=NetworkConfig, metadata={"help": ""})
    loss: LossConfig = field(default_factory=LossConfig, metadata={"help": ""})
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig, metadata={"help": ""})
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig, metadata={"help": ""})


def check_settings(config: TextConfig) -> None:
    """Refuse settings that would have no effect on texts."""
    plain = NSConfig()
    for name, other in (("order", "row"), ("scale", config.ns.scale), ("batch_norm", "running")):
        if getattr(config.ns, name) == other != getattr(plain, name):
            raise ValueError(f"ns.{name}={getattr(config.ns, name)} has no effect on texts: leave it out")
    if config.data.tokenizer is not None and config.data.vocabulary is not None:
        raise ValueError(
            "data.vocabulary has no effect beside data.tokenizer, which has a vocabulary of its own: leave one out"
        )
    if config.data.path is None and config.data.source is None:
        raise ValueError("no texts: set data.source or data.path")
