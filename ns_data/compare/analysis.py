"""Analysis of natural-selection scores: weight curves, box plots by class, and what goes along with a class's mean score.

Numbers for figures 2 to 6 of "Darwinian Optimization: Training Deep Networks with Natural Selection", from scored runs.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np

from ns_data.compare.formats import Table
from ns_data.compare.scored import ScoredRun

CURVE_SAMPLES = 10_000
POINTS_PER_CLASS = 200
RESAMPLES = 9_999
LEAST_CLASSES = 3
UNDEFINED = 0.05


class Correlation(NamedTuple):
    """Least-squares line, Pearson's r and Spearman's rho of n pairs, with intervals and two-sided p-values."""

    n: int
    slope: float
    intercept: float
    r: float
    r_low: float
    r_high: float
    r_p: float
    rho: float
    rho_low: float
    rho_high: float
    rho_p: float


def correlate(
    x: np.ndarray,
    y: np.ndarray,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
    names: tuple[str, str] = ("x", "y"),
) -> Correlation:
    """Correlation of the pairs in which both are finite; ``names`` of the two are for what is refused.

    Interval of r by Fisher's transformation (NaN below four pairs); of rho by the percentile bootstrap over pairs, from the
    resamples that have a correlation: NaN if more than ``UNDEFINED`` of them are of one value alone.

    Raises ``ValueError`` for fewer than three pairs and for values that are all the same, which have no correlation.
    """
    from scipy import stats

    both = np.isfinite(x) & np.isfinite(y)
    x, y = np.asarray(x, float)[both], np.asarray(y, float)[both]
    if x.size < LEAST_CLASSES:
        raise ValueError(f"{x.size} pairs have no correlation that means anything: at least {LEAST_CLASSES} are needed")
    for name, values in zip(names, (x, y), strict=True):
        if np.ptp(values) <= 1e-9 * np.abs(values).max():
            raise ValueError(f"{name} is {values[0]:g} throughout, which has no correlation")
    pearson, spearman, line = stats.pearsonr(x, y), stats.spearmanr(x, y), stats.linregress(x, y)
    r_interval = pearson.confidence_interval(level) if x.size > 3 else (np.nan, np.nan)
    rho_interval = _rank_interval(x, y, level, resamples, np.random.default_rng(seed))
    found = [line.slope, line.intercept, pearson.statistic, *r_interval, pearson.pvalue]
    found += [spearman.statistic, *rho_interval, spearman.pvalue]
    return Correlation(x.size, *map(float, found))


def _rank_interval(x: np.ndarray, y: np.ndarray, level: float, resamples: int, rng: np.random.Generator) -> np.ndarray:
    from scipy import stats

    options: dict[str, Any] = {"paired": True, "vectorized": True, "method": "percentile", "random_state": rng}
    with warnings.catch_warnings():  # of resamples without a correlation, which are looked at below
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        found = stats.bootstrap((x, y), _rank_correlation, n_resamples=resamples, batch=1000, **options)
    if np.isnan(found.bootstrap_distribution).mean() > UNDEFINED:
        return np.array([np.nan, np.nan])
    return np.nanquantile(found.bootstrap_distribution, [(1 - level) / 2, (1 + level) / 2])


def _rank_correlation(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
    from scipy.stats import rankdata

    x, y = (rankdata(values, axis=axis) for values in (x, y))
    x, y = (ranks - ranks.mean(axis, keepdims=True) for ranks in (x, y))
    with np.errstate(invalid="ignore"):  # a resample of one value
        return np.asarray((x * y).sum(axis) / np.sqrt((x * x).sum(axis) * (y * y).sum(axis)))


class Pairs(NamedTuple):
    """Two numbers of each class, by the names of the figure that shows them."""

    figure: str
    title: str
    x_label: str
    y_label: str
    x_K: np.ndarray
    y_K: np.ndarray


def class_pairs(run: ScoredRun) -> list[Pairs]:
    """What the mean score of a class is set against: its size (figure 4) and its accuracy (figures 5 and 6)."""
    size_K = np.where(run.sizes_K > 0, run.sizes_K, np.nan)
    score, accuracy = "mean score of the class", "test accuracy of the class, %"
    size = Pairs("size", "Class size and mean score", "number of samples of the class", score, size_K, run.scores_K)
    return [size, Pairs("accuracy", "Mean score and class accuracy", score, accuracy, run.scores_K, 100 * run.accuracy_K)]


def correlations(runs: list[ScoredRun], seed: int = 0) -> tuple[dict[tuple[str, int], Correlation], list[str]]:
    """The correlation of each figure and run (by place in ``runs``), and a sentence for each that there is none."""
    found, notes = {}, []
    for number, run in enumerate(runs):
        for pairs in class_pairs(run):
            try:
                found[pairs.figure, number] = correlate(pairs.x_K, pairs.y_K, seed=seed, names=(pairs.x_label, pairs.y_label))
            except ValueError as error:
                notes.append(f"{run.name}, {pairs.title.lower()}: {error}.")
    return found, notes


def correlation_table(runs: list[ScoredRun], found: dict[tuple[str, int], Correlation]) -> Table:
    titles = {pairs.figure: pairs.title for pairs in class_pairs(runs[0])}
    rows: list[list[Any]] = [
        [runs[number].name, titles[figure], c.n, c.r, c.r_low, c.r_high, c.r_p, c.rho, c.rho_low, c.rho_high, c.rho_p, c.slope,
         c.intercept]
        for (figure, number), c in found.items()
    ]  # fmt: skip
    columns = ["run", "what", "classes", "Pearson r", "r 95 % low", "r 95 % high", "p of r", "Spearman rho"]
    columns += ["rho 95 % low", "rho 95 % high", "p of rho", "slope", "intercept"]
    note = "Over classes. Interval of r by Fisher's transformation, of rho by the bootstrap; p-values are of no correlation."
    return Table("correlations", "Correlations with the mean score", columns, rows, note)


def weight_curve(run: ScoredRun, most: int = CURVE_SAMPLES, seed: int = 0) -> np.ndarray:
    """Ids of up to ``most`` samples that have a score, drawn by ``seed`` if there are more, by rising score."""
    ids = np.flatnonzero(np.isfinite(run.last_N))
    if ids.size > most:
        ids = np.sort(np.random.default_rng([seed, ids.size]).choice(ids, most, replace=False))
    return ids[np.argsort(run.last_N[ids], kind="stable")]


def weight_table(runs: list[ScoredRun], most: int = CURVE_SAMPLES) -> Table:
    rows: list[list[Any]] = []
    for run in runs:
        for rank, i in enumerate(weight_curve(run, most), 1):
            rows.append([run.name, rank, int(i), int(run.labels_N[i]), float(run.last_N[i]), float(run.weights_N[i])])
    return Table("weights", "Weights of the samples", ["run", "rank", "sample", "label", "score", "weight"], rows)


def score_boxes(run: ScoredRun) -> list[dict[str, Any]]:
    """Box of the last scores of each class: quartiles, mean, whiskers at the last score within 1.5 interquartile ranges.

    The keys are those of matplotlib's ``bxp``; a class without scores has ``n`` 0 and no numbers.
    """
    boxes: list[dict[str, Any]] = []
    for k, name in enumerate(run.classes):
        scores = run.last_N[run.labels_N == k]
        scores = scores[np.isfinite(scores)]
        if not scores.size:
            boxes.append({"label": name, "n": 0})
            continue
        q1, median, q3 = np.percentile(scores, [25, 50, 75])
        inside = scores[(scores >= q1 - 1.5 * (q3 - q1)) & (scores <= q3 + 1.5 * (q3 - q1))]
        numbers = {"whislo": min(inside.min(), q1), "q1": q1, "med": median, "mean": scores.mean(), "q3": q3}
        numbers["whishi"] = max(inside.max(), q3)
        boxes.append({"label": name, "n": scores.size, **{key: float(value) for key, value in numbers.items()}, "fliers": []})
    return boxes


def class_points(run: ScoredRun, k: int, most: int = POINTS_PER_CLASS, seed: int = 0) -> np.ndarray:
    """Ids of up to ``most`` samples of class k that have a score, drawn by ``seed``."""
    ids = np.flatnonzero((run.labels_N == k) & np.isfinite(run.last_N))
    return np.random.default_rng([seed, k]).permutation(ids)[:most]


def point_table(runs: list[ScoredRun]) -> Table:
    rows: list[list[Any]] = [
        [run.name, name, int(i), float(run.last_N[i])]
        for run in runs
        for k, name in enumerate(run.classes)
        for i in class_points(run, k)
    ]
    return Table("points", "Points of the box plots", ["run", "class", "sample", "score"], rows)


def class_table(runs: list[ScoredRun]) -> Table:
    """Every class of every run: size, mean score over the run, box of the last scores, test accuracy."""
    keys = {"whislo": "low whisker", "q1": "lower quartile", "med": "median", "q3": "upper quartile", "whishi": "high whisker"}
    rows: list[list[Any]] = []
    for run in runs:
        for k, box in enumerate(score_boxes(run)):
            accuracy = float(100 * run.accuracy_K[k])
            rows.append([run.name, box["label"], int(run.sizes_K[k]), float(run.scores_K[k]), *map(box.get, keys), accuracy])
    columns = ["run", "class", "samples", "mean score", *keys.values(), "accuracy %"]
    note = "Samples by the label that training last saw; mean over all scores of the run, box of each sample's last score."
    return Table("classes", "Classes", columns, rows, note)


def run_table(runs: list[ScoredRun]) -> Table:
    """One row a run: what it was, and what of it is in the figures."""
    rows: list[list[Any]] = []
    for run in runs:
        last, scored_N = run.lines[-1], np.isfinite(run.last_N)
        settings = [run.settings.get(f"ns.{key}", "") for key in ("weighting", "layout", "sigma", "rho")]
        accuracy = 100 * last["accuracy"] if "accuracy" in last else None
        weights = run.weights_N[scored_N]
        rows.append([
            run.name, str(run.folder), *settings, len(run.lines), run.last_N.size, int((~scored_N).sum()),
            float(weights.mean()), float(weights.min()), float(weights.max()), accuracy,
        ])  # fmt: skip
    columns = ["run", "folder", "weighting", "layout", "sigma", "rho", "epochs", "samples", "without a score"]
    columns += ["mean weight", "least weight", "largest weight", "accuracy %"]
    return Table("runs", "Runs", columns, rows, "Weights at each sample's last score; accuracy of the last epoch.")
