"""Results: what the run folders of a comparison hold, checked against ``comparison.json``, which says what they should.

FOLDER/comparison.json           methods with all their settings, seeds, class sizes, chosen learning rates
FOLDER/runs/METHOD/SEED/         run folder of train.py, its log beside it
FOLDER/tuning/METHOD/lr=LR/SEED/ the same for the grid of learning rates
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ns_data.compare.config import Run, flatten, settings

MANIFEST = "comparison.json"
LEFT_BY_A_KILLED_START = {"plots", "env.json", "env.json.partial", "config.yaml.partial"}


@dataclass
class Result:
    """A finished run: its metrics by epoch and its summary."""

    method: str
    seed: int
    lines: list[dict[str, Any]]
    summary: dict[str, Any]

    def last(self, name: str) -> Any:
        return self.lines[-1][name]


@dataclass
class Results:
    """The finished runs of a comparison, by method and seed, and what is missing and why."""

    manifest: dict[str, Any]
    runs: dict[str, dict[int, Result]]
    missing: list[str] = field(default_factory=list)

    def values(self, method: str, metric: str) -> dict[int, float]:
        """The last epoch's ``metric`` in percent, by seed."""
        return {seed: 100 * float(run.last(metric)) for seed, run in self.runs[method].items()}


def read_results(folder: Path) -> Results:
    """All finished runs that ``comparison.json`` names; raise ``ValueError`` for a folder of other settings."""
    path = folder / MANIFEST
    if not path.is_file():
        raise ValueError(f"{folder} holds no {MANIFEST}: it is not the folder of a comparison that was started")
    manifest = json.loads(path.read_text())
    results = Results(manifest, {})
    for method in manifest["methods"]:
        runs = results.runs[method["name"]] = {}
        for seed in manifest["seeds"]:
            place = folder / "runs" / method["name"] / str(seed)
            why = unfinished(place)
            if why is not None:
                results.missing.append(f"{method['name']}, seed {seed}: {why}")
                continue
            check_settings(place, {**method["settings"], "seed": seed})
            runs[seed] = Result(method["name"], seed, metrics(place), json.loads((place / "done").read_text()))
    return results


def unfinished(place: Path) -> str | None:
    """Why a run folder counts as not finished, or ``None``."""
    if not place.is_dir():
        return "no run folder"
    try:
        summary = json.loads((place / "done").read_text())
        lines = metrics(place)
    except FileNotFoundError as error:
        return f"not finished, {Path(str(error.filename)).name} is missing"
    except json.JSONDecodeError:
        return f"half written, {place} has a broken line in done or metrics.jsonl"
    if len(lines) != summary.get("epochs"):
        return f"half written, {place} has metrics of {len(lines)} of {summary.get('epochs')} epochs"
    return None


def metrics(place: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]


def read_settings(place: Path) -> dict[str, Any]:
    """The settings in a run folder's config.yaml, flat."""
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster, where it was built
    try:
        content = yaml.load((place / "config.yaml").read_text(), loader)
    except FileNotFoundError:
        raise ValueError(f"{place} is half written, it has no config.yaml: remove it and repeat the command") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{place}/config.yaml is not valid YAML: {' '.join(str(error).split())}") from None
    return flatten(content)


def check_settings(place: Path, wanted: Mapping[str, Any]) -> None:
    """Refuse a run folder whose settings are not ``wanted``, naming them."""
    found = read_settings(place)
    different = [f"{key} is {found.get(key)} there, {wanted[key]} here" for key in wanted if found.get(key) != wanted[key]]
    if different:
        raise ValueError(
            f"{place} holds a run with other settings ({', '.join(different)}): give the comparison another folder=, or "
            "remove that run"
        )


def is_done(run: Run) -> bool:
    """Whether a planned run has finished before, with the same settings."""
    if run.folder.is_dir() and not {path.name for path in run.folder.iterdir()} <= LEFT_BY_A_KILLED_START:
        check_settings(run.folder, run_settings(run))
    why = unfinished(run.folder)
    if why is not None and "half written" in why:
        raise ValueError(f"{run.method}, seed {run.config.seed}: {why}: remove that folder and repeat the command")
    return why is None


def run_settings(run: Run) -> dict[str, Any]:
    return {**settings(run.config), "seed": run.config.seed}
