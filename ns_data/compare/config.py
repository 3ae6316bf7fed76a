"""Comparison: methods, seeds, controls and the grid of learning rates, as one YAML file; and the runs that follow from it.

A method changes settings of the ``base`` config. ``sampling``, ``loss`` and ``weighting`` may be given by name; everything
else is a setting of train.py, nested or dotted. A method without a weighting has none: it is compared, not selected.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ns_data.choose import unknown
from ns_data.training.config import Config, free_settings, load_config, setting
from ns_data.training.layers import merge_layers, read_words, read_yaml

CONTROLS = ("constant", "own", "shuffled", "inverse_frequency")
_SHORT = {"sampling": "sampling.name", "loss": "loss.name", "weighting": "ns.weighting"}
_OURS = ("seed", "run_dir", "name", "fresh", "base")  # set for each run, never by a method


@dataclass
class Tuning:
    lr: list[float] = setting([], "learning rates that every method tries; [] leaves the base's, and the report says so")
    seeds: list[int] = setting([1, 2], "seeds of the tuning runs, and of their split")
    holdout: float = setting(0.2, "share of each training class that the tuning runs are evaluated on")
    metric: str = setting("balanced_accuracy", "what the best rate has most of: accuracy or balanced_accuracy")


@dataclass
class Comparison:
    """All settings of a comparison."""

    base: str = setting("", "config file of every run, relative to this one")
    name: str | None = setting(None, "of the comparison; by default the file's")
    folder: str | None = setting(None, "where runs and report go; by default comparisons/NAME")
    seeds: list[int] = setting([2024, 2025, 2026], "seeds of every method")
    set: dict[str, Any] = setting({}, "settings of all methods")
    methods: dict[str, Any] = setting({}, "what each method changes")
    baseline: str = setting("baseline", "the method that all are compared to; added if it is not among them")
    controls: Any = setting("all", "of each method that weighs by ns: all, none, or a list of weightings")
    only: list[str] = setting([], "run these methods, their controls and the baseline; [] runs all")
    jobs: int | None = setting(None, "runs at a time; by default as many as cores or GPUs hold")
    threads: int = setting(1, "CPU threads of a run")
    gpus: float | None = setting(None, "GPUs of a run, such as 0.5; by default 1 where there is one")
    launcher: str = setting("local", "local or ray")
    tuning: Tuning = field(default_factory=Tuning, metadata={"help": ""})


class Method(NamedTuple):
    """A method: its changes to the base, all its settings, and of which method it is a control, by which weighting."""

    name: str
    changes: dict[str, Any]
    config: Config
    control_of: str | None = None
    control: str | None = None


class Run(NamedTuple):
    """One ``train.py`` process: ``words`` follow the base config on its command line."""

    method: str
    config: Config
    words: list[str]
    lr: float | None = None  # of the grid, for tuning runs

    @property
    def folder(self) -> Path:
        return Path(str(self.config.run_dir))

    @property
    def log(self) -> Path:
        return self.folder.with_name(self.folder.name + ".log")


def load_comparison(path: str | Path, overrides: Iterable[str] = ()) -> Comparison:
    """Read a comparison and ``key=value`` changes of it; ``ValueError`` in one sentence for what does not fit."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no comparison file {path}")
    comparison = merge_layers(Comparison, [(str(path), read_yaml(path)), *read_words(overrides, "seeds=[1,2]")])
    comparison.name = comparison.name or path.stem
    comparison.folder = comparison.folder or f"comparisons/{comparison.name}"
    if not comparison.base:
        raise ValueError(f"{path} names no base: the config file that its methods change")
    comparison.base = str(path.parent / comparison.base)
    _check(comparison, path)
    return comparison


def _check(comparison: Comparison, path: Path) -> None:
    if not comparison.methods:
        raise ValueError(f"{path} has no methods: name at least one under methods:")
    for what, seeds in (("seeds", comparison.seeds), ("tuning.seeds", comparison.tuning.seeds)):
        if not seeds or len(set(seeds)) < len(seeds):
            raise ValueError(f"{path}: {what} must be different numbers, at least one, got {seeds}")
    if any(lr <= 0 for lr in comparison.tuning.lr):
        raise ValueError(f"{path}: tuning.lr must be above 0, got {comparison.tuning.lr}")
    if comparison.tuning.lr and not 0 < comparison.tuning.holdout < 1:
        raise ValueError(f"{path}: tuning.holdout must be between 0 and 1, got {comparison.tuning.holdout}")
    if comparison.tuning.metric not in ("accuracy", "balanced_accuracy"):
        raise ValueError(f"{path}: tuning.metric must be accuracy or balanced_accuracy, got {comparison.tuning.metric!r}")
    if comparison.threads < 1 or (comparison.jobs is not None and comparison.jobs < 1):
        raise ValueError(f"{path}: jobs and threads must be at least 1, got {comparison.jobs} and {comparison.threads}")
    wanted = wanted_controls(comparison)
    if isinstance(comparison.controls, (list, tuple)):
        missing = [control for control in wanted if control not in CONTROLS]
        if missing:
            raise ValueError(f"{path}: {unknown(missing[0], CONTROLS, 'control')}")


def wanted_controls(comparison: Comparison) -> list[str]:
    """Names of the weightings that are run beside ns: ``controls`` spelled out."""
    controls = comparison.controls
    if controls in ("all", "none"):
        return list(CONTROLS) if controls == "all" else []
    if isinstance(controls, (list, tuple)) and controls:
        return [str(control) for control in controls]
    raise ValueError(
        f"controls must be all, none or a list of {', '.join(CONTROLS)}, got {controls!r}: without them nobody can tell "
        "selection from a larger step"
    )


def method_changes(name: str, content: Any) -> dict[str, Any]:
    """A method's dotted settings; ``sampling``, ``loss`` and ``weighting`` by name become settings, too."""
    if content is not None and not isinstance(content, Mapping):
        raise ValueError(f"method {name} holds settings such as loss: gce, got {content!r}")
    changes = dict(_flat(content or {}))
    for key in changes:
        if key in _OURS:
            raise ValueError(f"method {name} sets {key}, which differs from run to run: leave it out")
    return changes


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if prefix + key in _SHORT and not isinstance(value, Mapping):
            yield _SHORT[prefix + key], value
        elif isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def written_methods(comparison: Comparison) -> list[Method]:
    """The methods of the file and the baseline, which is put first, with their configs read and checked."""
    contents = {comparison.baseline: None, **comparison.methods}
    for name in comparison.only:
        if name not in contents:
            raise ValueError(f"only: {unknown(name, contents, 'method')}")
    if comparison.only:
        contents = {name: contents[name] for name in contents if name in [comparison.baseline, *comparison.only]}
    return [make_method(comparison, name, method_changes(name, content)) for name, content in contents.items()]


def make_method(comparison: Comparison, name: str, changes: dict[str, Any], **control: str) -> Method:
    """A method with its whole config."""
    if not re.fullmatch(r"[\w.+=-]*\w[\w.+=-]*", name):
        raise ValueError(f"method name {name!r} becomes a folder: use letters, digits and . _ + = -")
    changes = {"plots": False, "tensorboard": False, **method_changes("set", comparison.set), "ns.weighting": "none", **changes}
    try:
        config = load_config(comparison.base, words(changes))
    except ValueError as error:
        raise ValueError(f"method {name}: {error}") from None
    return Method(name, changes, config, **control)


def words(changes: Mapping[str, Any]) -> list[str]:
    """Settings as they stand on train.py's command line."""
    return [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in changes.items()]


def settings(config: Config) -> dict[str, Any]:
    """What decides a run's result beside its seed: flat, without names, places and speed."""
    flat, left_out = flatten(dataclasses.asdict(config)), {*_OURS, *free_settings(Config)}
    return {key: value for key, value in flat.items() if key not in left_out}


def flatten(content: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings under dotted names; empty options leave nothing."""
    return {key: value for key, value in _flat_all(content, "") if value != {}}


def _flat_all(content: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            yield from _flat_all(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def make_run(comparison: Comparison, method: Method, seed: int, lr: float | None, tuning: bool = False) -> Run:
    """The run of a method with a seed; at rate ``lr``, if given; of the tuning grid, on the held-out split, if ``tuning``."""
    place = Path(str(comparison.folder), "tuning", method.name, f"lr={lr:g}") if tuning else None
    folder = (place or Path(str(comparison.folder), "runs", method.name)) / str(seed)
    own: dict[str, Any] = {} if lr is None else {"optimizer.lr": lr}
    own |= {"data.holdout": comparison.tuning.holdout} if tuning else {}
    own |= {"seed": seed, "name": method.name, "run_dir": str(folder)}
    config = dataclasses.replace(method.config, seed=seed, name=method.name, run_dir=str(folder))
    if lr is not None:
        config.optimizer = dataclasses.replace(config.optimizer, lr=lr)
    if tuning:
        config.data = dataclasses.replace(config.data, holdout=comparison.tuning.holdout)
    return Run(method.name, config, words({**method.changes, **own}), lr if tuning else None)


def help_lines() -> Iterator[str]:
    """One line a setting of a comparison: name and meaning."""
    for prefix, schema in (("", Comparison), ("tuning.", Tuning)):
        for f in dataclasses.fields(schema):
            if f.metadata["help"]:
                yield f"  {prefix + f.name:<18} {f.metadata['help']}"
