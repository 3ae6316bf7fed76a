"""Manifest: comparison.json, written by the launcher before the runs: what a report needs to know beside their folders."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ns_data.compare.config import Comparison, Method, settings
from ns_data.compare.results import MANIFEST
from ns_data.training.config import Config
from ns_data.training.data import Data


def write_manifest(
    comparison: Comparison, methods: list[Method], chosen: dict[str, dict[str, Any]], data_of: Callable[[Config], Data]
) -> None:
    """Write comparison.json whole: methods with all their settings and class sizes, seeds, rates, machine."""
    entries = []
    for method in methods:
        data = data_of(method.config)
        rate = {"optimizer.lr": chosen[method.name]["lr"]} if chosen else {}
        entries.append(
            {
                "name": method.name,
                "changes": {**method.changes, **rate},
                "settings": {**settings(method.config), **rate},
                "control_of": method.control_of,
                "control": method.control,
                "tuning": chosen.get(method.name),
                "class_counts": data.stats.counts.tolist(),
                "classes": data.classes,
            }
        )
    manifest = {
        "name": comparison.name,
        "base": comparison.base,
        "baseline": comparison.baseline,
        "seeds": comparison.seeds,
        "controls": comparison.controls,
        "tuning": dataclasses.asdict(comparison.tuning) if chosen else None,
        "machine": {
            "cores": os.cpu_count(),
            "processor": platform.machine(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "torch": torch.__version__,
            "jobs": comparison.jobs,
            "threads": comparison.threads,
        },
        "methods": entries,
    }
    path = Path(str(comparison.folder)) / MANIFEST
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(manifest, indent=1) + "\n")
    partial.replace(path)
