"""Run folders as train.py leaves them, with made-up numbers."""

import json

import numpy as np
import torch

from ns_data import ScoreLedger
from ns_data.compare.config import load_comparison, make_run, settings, written_methods
from ns_data.compare.controls import with_controls
from ns_data.training.config import to_yaml

COUNTS = [150, 97, 62, 40, 26, 17, 11, 7, 4, 3]


def write_run(run, accuracy, *, epochs=3, recall=None):
    """A finished run whose accuracy rises to ``accuracy``, its balanced accuracy a tenth lower."""
    run.folder.mkdir(parents=True)
    config = to_yaml(run.config)
    (run.folder / "config.yaml").write_text(config)
    lines = []
    for epoch in range(epochs):
        value = accuracy * (epoch + 1) / epochs
        line = {"epoch": epoch, "loss": 1.0, "accuracy": value, "balanced_accuracy": value - 0.1}
        lines.append({**line, "recall": recall or [value] * 10})
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = {"epochs": epochs, "best_epoch_accuracy": accuracy, "train_seconds": 2.0, "scoring_seconds": 0.5}
    (run.folder / "done").write_text(json.dumps({**done, "peak_memory_mb": 100.0}))


def write_manifest(comparison, methods, tuned=None):
    entries = [
        {
            "name": m.name,
            "changes": m.changes,
            "settings": {**settings(m.config), **({"optimizer.lr": tuned[m.name]["lr"]} if tuned else {})},
            "control_of": m.control_of,
            "control": m.control,
            "tuning": tuned[m.name] if tuned else None,
            "class_counts": COUNTS,
            "classes": [str(k) for k in range(10)],
        }
        for m in methods
    ]
    keys = ("name", "base", "baseline", "seeds", "controls")
    manifest = {key: getattr(comparison, key) for key in keys}
    grid = {"lr": [0.1, 0.01], "seeds": [1], "holdout": 0.2, "metric": "accuracy"} if tuned else None
    manifest |= {"tuning": grid, "machine": {"cores": 2}, "methods": entries}
    folder = comparison.folder
    with open(f"{folder}/comparison.json", "w") as file:
        json.dump(manifest, file)


def write_comparison(path, text, accuracy_of, tuned=None):
    """Plan the comparison in ``path / "c.yaml"`` and write all its runs; return comparison and methods."""
    (path / "base.yaml").write_text("epochs: 3\n")
    (path / "c.yaml").write_text("base: base.yaml\n" + text)
    comparison = load_comparison(path / "c.yaml", [f"folder={path / 'out'}"])
    methods = written_methods(comparison)
    methods = with_controls(comparison, methods, {method.name: True for method in methods})
    for method in methods:
        for seed in comparison.seeds:
            rate = tuned[method.name]["lr"] if tuned else None
            write_run(make_run(comparison, method, seed, rate), accuracy_of(method.name, seed))
    write_manifest(comparison, methods, tuned)
    return comparison, methods


def write_scored_run(place, scores, labels, *, accuracy=None, epochs=1, classes=None, **settings):
    """A finished run whose every epoch gave the samples these scores: of the scored run's files what it needs, no more."""
    place.mkdir(parents=True)
    ns = {"weighting": "ns", "layout": "2x2", "sigma": 1.5, "rho": -1.0, **settings}
    (place / "config.yaml").write_text(json.dumps({"name": place.name, "ns": ns}))
    ledger = ScoreLedger(len(scores))
    for epoch in range(epochs):
        given = torch.as_tensor(np.asarray(scores, np.float32))
        ledger.update(torch.arange(len(scores)), given, torch.as_tensor(np.asarray(labels)), epoch)
    ledger.save(place / "scores.npz")
    line = {"sigma": ns["sigma"], "rho": ns["rho"], "accuracy": 0.5, "recall": accuracy}
    (place / "metrics.jsonl").write_text("".join(json.dumps({"epoch": epoch, **line}) + "\n" for epoch in range(epochs)))
    (place / "done").write_text(json.dumps({"epochs": epochs, **({"classes": classes} if classes else {})}))
