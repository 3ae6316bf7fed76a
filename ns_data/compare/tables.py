"""Tables of a comparison: means, paired differences, classes, cost, learning rates and raw values.

All numbers are of the last epoch and in percent; differences are in percentage points, paired by seed.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from ns_data.compare.formats import Table
from ns_data.compare.results import Results
from ns_data.compare.statistics import compare_paired, holm, mean_std
from ns_data.training.metrics import FEW_SHOT, MANY_SHOT

METRICS = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy"}


class Difference(NamedTuple):
    """``method`` minus ``reference``, by seed: what the tests say."""

    method: str
    reference: str
    metric: str
    mean: float
    low: float
    high: float
    p: float
    p_holm: float
    values: list[float]
    seeds: list[int]
    unpaired: list[int]


def role(entry: dict[str, Any], baseline: str) -> str:
    if entry["name"] == baseline:
        return "baseline"
    return f"control of {entry['control_of']}" if entry["control_of"] else ""


def present(results: Results) -> list[dict[str, Any]]:
    """The methods that have at least one finished run, in the file's order."""
    return [entry for entry in results.manifest["methods"] if results.runs[entry["name"]]]


def summary(results: Results) -> Table:
    """Mean and deviation of each method."""
    rows = []
    for entry in present(results):
        name = entry["name"]
        means = [mean_std(list(results.values(name, metric).values())) for metric in METRICS]
        rows.append([name, role(entry, results.manifest["baseline"]), *means, entry["settings"]["optimizer.lr"]])
    columns = ["method", "role", *(f"{title} %" for title in METRICS.values()), "learning rate"]
    return Table("results", "Results", columns, rows, "Mean ± standard deviation (number of seeds), last epoch.")


def differences_to_baseline(results: Results) -> list[Difference]:
    """Every method against the baseline."""
    baseline = results.manifest["baseline"]
    return _differences(results, [(entry["name"], baseline) for entry in present(results) if entry["name"] != baseline])


def differences_to_controls(results: Results) -> list[Difference]:
    """Every method that weighs by ns against each of its controls."""
    return _differences(results, [(e["control_of"], e["name"]) for e in present(results) if e["control_of"]])


def _differences(results: Results, pairs: list[tuple[str, str]]) -> list[Difference]:
    """Paired differences; Holm's correction over the pairs, in each metric."""
    found = []
    for metric in METRICS:
        family = []
        for method, reference in pairs:
            ours, theirs = results.values(method, metric), results.values(reference, metric)
            if set(ours) & set(theirs):
                family.append((method, reference, compare_paired(ours, theirs)))
        adjusted = holm([paired.p for _, _, paired in family])
        for (method, reference, t), p_holm in zip(family, adjusted, strict=True):
            tested = (t.mean, t.low, t.high, t.p, float(p_holm), t.differences.tolist(), t.seeds, t.unpaired)
            found.append(Difference(method, reference, metric, *tested))
    return found


def difference_table(name: str, title: str, differences: list[Difference]) -> Table:
    columns = ["method", "minus", "metric", "difference", "95 % low", "95 % high", "p", "p (Holm)", "seeds"]
    rows: list[list[Any]] = [
        [d.method, d.reference, METRICS[d.metric], d.mean, d.low, d.high, d.p, d.p_holm, _seeds(d)] for d in differences
    ]
    note = "Percentage points, paired by seed; bootstrap interval of the mean (too narrow for few seeds), exact sign-flip p."
    return Table(name, title, columns, rows, note)


def _seeds(difference: Difference) -> str:
    used = " ".join(map(str, difference.seeds))
    return f"{used} (not in both: {' '.join(map(str, difference.unpaired))})" if difference.unpaired else used


def explained(to_baseline: list[Difference], to_controls: list[Difference]) -> Table:
    """How much of each ns method's gain over the baseline its controls have as well."""
    gains = {(d.method, d.metric): d for d in to_baseline}
    rows: list[list[Any]] = []
    for d in to_controls:
        gain, control = gains.get((d.method, d.metric)), gains.get((d.reference, d.metric))
        if gain is not None and control is not None:
            share = f"{control.mean / gain.mean:.0%}" if gain.low > 0 else "no gain to explain"
            rows.append([d.method, METRICS[d.metric], gain.mean, d.reference, control.mean, share])
    note = "Mean gains in percentage points. Only a gain whose interval is above zero is there to be explained."
    columns = ["method", "metric", "gain over baseline", "control", "the control's gain", "explained by the control"]
    return Table("explained", "How much of a gain the controls explain", columns, rows, note)


def groups_of_classes(counts: list[int]) -> dict[str, list[int]]:
    """Class ids of the many, medium and few-shot classes; empty groups are left out."""
    sizes = np.asarray(counts)
    masks = {
        f"many (over {MANY_SHOT})": sizes > MANY_SHOT,
        f"medium ({FEW_SHOT} to {MANY_SHOT})": (sizes >= FEW_SHOT) & (sizes <= MANY_SHOT),
        f"few (under {FEW_SHOT})": sizes < FEW_SHOT,
    }
    return {name: np.flatnonzero(mask).tolist() for name, mask in masks.items() if mask.any()}


def recalls(results: Results, method: str) -> dict[int, np.ndarray]:
    """Recall of each class in percent, by seed; NaN for a class that the test set lacks."""
    return {
        seed: np.array([math.nan if r is None else 100 * r for r in run.last("recall")])
        for seed, run in results.runs[method].items()
    }


def class_tables(results: Results) -> list[Table]:
    """Recall differences to the baseline: of many, medium and few-shot classes, and of every class."""
    baseline = results.manifest["baseline"]
    theirs = recalls(results, baseline)
    groups = list(groups_of_classes(next(e for e in present(results) if e["name"] == baseline)["class_counts"]))
    grouped, single = [], []
    for entry in present(results):
        ours = recalls(results, entry["name"])
        seeds = [seed for seed in ours if seed in theirs]
        if entry["name"] == baseline or not seeds:
            continue
        difference = np.array([ours[seed] - theirs[seed] for seed in seeds])
        cells = {}
        for name, members in groups_of_classes(entry["class_counts"]).items():
            tested = [k for k in members if np.isfinite(difference[:, k]).all()]
            cells[name] = mean_std(difference[:, tested].mean(1)) if tested else None
        grouped.append([entry["name"], *(cells.get(name) for name in groups)])
        for k, (label, count) in enumerate(zip(entry["classes"], entry["class_counts"], strict=True)):
            finite = np.isfinite(difference[:, k]).all()
            single.append([entry["name"], label, count, mean_std(difference[:, k]) if finite else None])
    note = (
        "Recall minus the baseline's in percentage points, mean ± standard deviation (number of paired seeds); groups by "
        "training samples a class."
    )
    return [
        Table("groups", "Many, medium and few-shot classes", ["method", *groups], grouped, note),
        Table("classes", "Classes", ["method", "class", "training samples", "recall difference"], single, note),
    ]


def cost(results: Results) -> Table:
    """Seconds of training, share of scoring, peak memory; relative to the baseline."""
    entries = present(results)
    seconds = {e["name"]: _mean_of(results, e["name"], "train_seconds") for e in entries}
    reference = seconds[results.manifest["baseline"]]
    rows = []
    for entry in entries:
        name = entry["name"]
        scoring = _mean_of(results, name, "scoring_seconds")
        memory = [run.summary["peak_memory_mb"] for run in results.runs[name].values() if "peak_memory_mb" in run.summary]
        rows.append([
            name, mean_std(list(_of(results, name, "train_seconds"))), seconds[name] / reference,
            100 * scoring / seconds[name], mean_std(memory) if memory else None,
        ])  # fmt: skip
    columns = ["method", "training s", "relative to baseline", "scoring %", "peak memory MB"]
    note = "Runs shared the machine, so times are upper bounds. Memory: of tensors on a GPU, of the whole process on a CPU."
    return Table("cost", "Cost", columns, rows, note)


def _of(results: Results, method: str, key: str) -> list[float]:
    return [float(run.summary[key]) for run in results.runs[method].values()]


def _mean_of(results: Results, method: str, key: str) -> float:
    return float(np.mean(_of(results, method, key)))


def raw(results: Results) -> Table:
    """One row a run."""
    rows: list[list[Any]] = []
    for entry in present(results):
        for seed, run in results.runs[entry["name"]].items():
            values = [100 * run.last(metric) for metric in METRICS]
            best = 100 * run.summary["best_epoch_accuracy"]
            rows.append([entry["name"], seed, *values, best, entry["settings"]["optimizer.lr"], run.summary["train_seconds"]])
    columns = [
        "method",
        "seed",
        *(f"{t} %" for t in METRICS.values()),
        "best epoch's accuracy %",
        "learning rate",
        "training s",
    ]
    return Table("raw", "Raw values", columns, rows, "The best epoch is picked on the test set: it flatters every method.")


def tuning(results: Results) -> Table:
    """The grid: every rate's score on the held-out part, and the choice."""
    rows: list[list[Any]] = []
    for entry in results.manifest["methods"]:
        choice = entry["tuning"] or {"score": {}, "diverged": []}
        for lr, score in choice["score"].items():
            chosen = ("chosen, at the edge of the grid" if choice["edge"] else "chosen") if float(lr) == choice["lr"] else ""
            rows.append([entry["name"], float(lr), 100 * score, chosen])
        rows += [[entry["name"], lr, None, "diverged"] for lr in choice["diverged"]]
    return Table("tuning", "Learning rates", ["method", "learning rate", "held-out score %", ""], rows)
