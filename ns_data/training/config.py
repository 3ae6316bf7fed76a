"""Config: every setting of a run, as typed dataclasses read from YAML and ``key=value`` words through OmegaConf."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, overload

from omegaconf import OmegaConf

from ns_data.training.layers import Layers, leaves, merge_layers, read_words, read_yaml

T = TypeVar("T")


def setting(default: Any, help: str, *, free: bool = False) -> Any:
    """A field with its line in ``--help``; ``free`` if it changes no result: neither a run's name nor its folder minds it."""
    metadata = {"help": help, "free": free}
    if isinstance(default, (dict, list)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def free_settings(schema: type[Any]) -> set[str]:
    """Dotted names of the settings that change no result, and may change between two starts of the same run."""
    return {name for name, f in leaves(schema) if f.metadata.get("free")}


@dataclass
class DataConfig:
    source: str | None = setting("digits", "data source, written as shards under root on first use")
    options: dict[str, Any] = setting({}, "options of the source, or of the data set class")
    root: str = setting("data", "folder of prepared sources", free=True)
    path: str | None = setting(None, "instead of a source: a folder of shards, or of class folders under train/ and test/")
    dataset: str | None = setting(None, "instead of a source: 'package.module:Class', called with split= and options")
    train_split: str = setting("train", "split to train on")
    test_split: str = setting("test", "split to evaluate on")
    holdout: float = setting(0.0, "share of each training class to evaluate on instead of the test split, for tuning")
    image_size: int | None = setting(None, "images are scaled to squares of this side; null takes them as they are")
    eval_resize: int | None = setting(None, "in evaluation, scale the shorter side to this before the centre is cut out")
    augment: str = setting("none", "training transform: none, crop_flip, resized_crop_flip, stretch_crop_flip")
    augment_options: dict[str, Any] = setting({}, "options of the training transform")
    mean: list[float] = setting([0.5], "subtracted from images in [0, 1], one value or one a channel")
    std: list[float] = setting([0.5], "divides them")
    workers: int = setting(0, "loader processes", free=True)
    resident: bool | None = setting(None, "decode once and keep in memory; null: shards of up to 1 GiB of pixels", free=True)
    on_error: str = setting("raise", "a sample of a shard that cannot be read: raise, or skip and count it")


@dataclass
class NSConfig:
    weighting: str = setting("ns", "ns, own, shuffled, constant, inverse_frequency, or none for the baseline")
    sigma: float = setting(1.5, "weight = sigma + rho * score")
    rho: float = setting(-1.0, "+1 strengthens winners (NS-WS), -1 focuses on losers (NS-LF)")
    sigma_end: float | None = setting(None, "sigma in the last epoch, reached linearly; null keeps it")
    rho_end: float | None = setting(None, "rho in the last epoch, reached linearly; null keeps it")
    start_epoch: int = setting(0, "weights are 1 before this epoch")
    normalize: bool = setting(False, "divide weights by their mean, which keeps the learning rate")
    layout: str = setting("2x2", "rows x columns of a competition group")
    order: str = setting("column", "filling order of the layout: column (the paper's) or row")
    grouping: str = setting("random", "who competes: random, class_mixed, same_class, head_tail")
    surplus: str = setting("relax", "what a grouping cannot place: relax or drop")
    batch_norm: str = setting("batch", "BatchNorm in the scoring pass: batch, running, paper")
    every: int = setting(1, "score every so many steps; between, members compete with their last scores")
    scale: float = setting(1.0, "side of the composites beside the images', for networks that take any size")
    placements: int = setting(1, "average the scores of so many placements of a group in its picture")


@dataclass
class SamplingConfig:
    name: str = setting("instance", "instance, cbs, srs, pbs")
    options: dict[str, Any] = setting({}, "options of the sampler")


@dataclass
class ModelConfig:
    name: str = setting("small_cnn", "a name in ns_data.MODELS or of torchvision")
    options: dict[str, Any] = setting({}, "options of the model")


@dataclass
class LossConfig:
    name: str = setting("cross_entropy", "a name in ns_data.LOSSES")
    options: dict[str, Any] = setting({}, "options of the loss")


@dataclass
class OptimizerConfig:
    name: str = setting("sgd", "sgd, adamw")
    lr: float = setting(0.1, "peak learning rate")
    options: dict[str, Any] = setting({}, "options of the optimiser, such as momentum and weight_decay")
    groups: dict[str, Any] = setting({}, "factors on lr for parts of the network, such as {head: 10}; 0 freezes")


@dataclass
class ScheduleConfig:
    name: str = setting("cosine", "constant, cosine, multi_step, poly, shot")
    options: dict[str, Any] = setting({}, "options of the schedule, such as warmup_epochs, milestones, factor, power or gamma")


@dataclass
class Config:
    """All settings of a run."""

    base: str | None = setting(None, "another config file, relative to this one, that this one changes")
    name: str | None = setting(None, "of the run; by default the config's and its overrides", free=True)
    run_dir: str | None = setting(None, "run folder; by default runs/NAME", free=True)
    seed: int = setting(2024, "of initialisation, plan and augmentation")
    epochs: int = setting(40, "epochs of training")
    batch_size: int = setting(64, "samples of a step over all processes, a multiple of the group size")
    drop_last: bool = setting(False, "leave out a short last batch")
    eval_batch_size: int = setting(256, "samples of an evaluation step", free=True)
    device: str | None = setting(None, "cuda, mps or cpu; by default the first of them that is there", free=True)
    amp: str | None = setting(None, "bf16 or fp16 for automatic mixed precision, or null")
    channels_last: bool = setting(False, "channels-last memory format")
    compile: bool = setting(False, "compile the network with torch.compile")
    accumulate: int = setting(1, "parts that a step's batch is cut into, each of whole groups, to save memory")
    clip_grad: float | None = setting(None, "largest norm of the gradient")
    checkpoint_every: int | None = setting(
        None, "also save a checkpoint every so many steps; null: after every epoch", free=True
    )
    tensorboard: bool | None = setting(None, "log for TensorBoard in the run folder; null: when it is installed", free=True)
    keep_every: int | None = setting(
        None, "keep the checkpoint of every so many epochs as epoch-N.pt; null: the last only", free=True
    )
    log_every: int | None = setting(None, "also print a line every so many steps; null: after every epoch", free=True)
    plots: bool = setting(True, "draw plots at the end", free=True)
    fresh: bool = setting(False, "start anew, removing what is in the run folder", free=True)
    data: DataConfig = field(default_factory=DataConfig, metadata={"help": ""})
    ns: NSConfig = field(default_factory=NSConfig, metadata={"help": ""})
    sampling: SamplingConfig = field(default_factory=SamplingConfig, metadata={"help": ""})
    model: ModelConfig = field(default_factory=ModelConfig, metadata={"help": ""})
    loss: LossConfig = field(default_factory=LossConfig, metadata={"help": ""})
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig, metadata={"help": ""})
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig, metadata={"help": ""})


@overload
def load_config(path: str | Path, overrides: Iterable[str] = ()) -> Config: ...
@overload
def load_config(path: str | Path, overrides: Iterable[str] = (), *, schema: type[T]) -> T: ...
def load_config(path: str | Path, overrides: Iterable[str] = (), *, schema: type[Any] = Config) -> Any:
    """Read a config file, the ``base`` it changes, and ``key=value`` overrides, in this order of growing weight.

    ``schema`` is another dataclass for a task with settings of its own; it needs ``base``, ``name`` and ``run_dir``.
    Raises ``ValueError`` in one sentence for unknown keys (naming the nearest) and values of the wrong type.
    """
    overrides = list(overrides)
    config = merge_layers(schema, [*read_files(path), *read_words(overrides, "epochs=3")])
    config.base = None
    if "num_classes" in getattr(config, "model", ModelConfig()).options:
        raise ValueError(f"{path}: model.options.num_classes is given by the data's classes: leave it out")
    free = free_settings(schema)
    if config.name is None:
        config.name = "-".join(
            [Path(path).stem, *(word.replace("/", "_") for word in overrides if word.partition("=")[0] not in free)]
        )
    if config.run_dir is None:
        config.run_dir = str(Path("runs") / config.name)
    for options in _free_options(config):
        for key in [key for key, value in options.items() if value is None]:
            del options[key]  # null takes an option of the base away
    return config


def read_files(path: str | Path) -> Layers:
    """A config file after the ``base`` that it changes, and so on, as layers of settings."""
    return [(str(file), content) for file, content in _with_bases(Path(path), ())]


def _with_bases(path: Path, above: tuple[Path, ...]) -> Iterator[tuple[Path, Any]]:
    if not path.is_file():
        raise ValueError(f"there is no config file {path}")
    if path.resolve() in above:
        raise ValueError(f"config {path} is its own base")
    content = read_yaml(path)
    if content.get("base"):
        yield from _with_bases(path.parent / content.base, (*above, path.resolve()))
    yield path, content


def _free_options(config: Any) -> Iterator[dict[str, Any]]:
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if isinstance(value, dict):
            yield value
        elif dataclasses.is_dataclass(value):
            yield from _free_options(value)


def to_yaml(config: Any) -> str:
    """The config as YAML, itself a config file."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def help_text(schema: type[Any] = Config) -> str:
    """One line a setting: name, default and meaning."""
    lines = []
    for name, f in leaves(schema):
        default: Any = f.default_factory() if callable(f.default_factory) else f.default
        shown = "null" if default is None else str(default).lower() if isinstance(default, bool) else default
        lines.append(f"  {name + '=' + str(shown):<34} {f.metadata['help']}")
    return "\n".join(lines)
