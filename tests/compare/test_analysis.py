"""The analysis of scores against scipy's, NumPy's and matplotlib's own numbers; figures are read back."""

import csv
import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.cbook import boxplot_stats
from PIL import Image
from scipy import stats

from ns_data.cli import main
from ns_data.compare import analysis_figures
from ns_data.compare.analyse import caveats, panel_names, read_runs
from ns_data.compare.analysis import (
    class_pairs,
    class_points,
    correlate,
    correlations,
    score_boxes,
    weight_curve,
)
from ns_data.compare.scored import read_scored
from tests.compare.folders import write_scored_run

SIZES = np.array([300, 120, 60, 30, 12, 6])


def made_up(seed=0):
    """Scores and labels of six classes, the larger the class the higher the score, and an accuracy for each class."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(6), SIZES))
    scores = np.clip(rng.normal(0.5 - 0.07 * labels, 0.15), 0, 1).astype(np.float32)
    return scores, labels, [0.9, 0.95, 0.7, 0.75, 0.5, None]


@pytest.fixture
def run(tmp_path):
    scores, labels, accuracy = made_up()
    write_scored_run(tmp_path / "tail", scores, labels, accuracy=accuracy)
    yield read_scored(tmp_path / "tail")
    plt.close("all")


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_correlation_equals_independent_computations():
    rng = np.random.default_rng(3)
    x = rng.normal(size=30)
    y = 0.5 * x + rng.normal(size=30)
    y[[3, 4]] = y[5]  # ties
    y[7] = np.nan
    c = correlate(x, y)
    x, y = np.delete(x, 7), np.delete(y, 7)
    assert c.n == 29
    assert c.r == pytest.approx(np.corrcoef(x, y)[0, 1])
    z, half = np.arctanh(c.r), stats.norm.ppf(0.975) / np.sqrt(29 - 3)  # Fisher's transformation by hand
    assert (c.r_low, c.r_high) == (pytest.approx(np.tanh(z - half)), pytest.approx(np.tanh(z + half)))
    t = c.r * np.sqrt(27 / (1 - c.r**2))
    assert c.r_p == pytest.approx(2 * stats.t.sf(abs(t), 27))
    assert (c.slope, c.intercept) == pytest.approx(tuple(np.polyfit(x, y, 1)))
    assert c.rho == pytest.approx(np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1])
    draws = rng.integers(29, size=(600, 29))
    plain = np.quantile([stats.spearmanr(x[rows], y[rows]).statistic for rows in draws], [0.025, 0.975])
    np.testing.assert_allclose([c.rho_low, c.rho_high], plain, atol=0.05)
    assert correlate(x, y) == c  # seeded
    bent = correlate(x, np.exp(5 * y))  # the same ranks
    assert (bent.rho, bent.rho_low, bent.rho_high) == (c.rho, c.rho_low, c.rho_high)
    wider = correlate(x, y, level=0.99)
    assert wider.r_low < c.r_low
    assert wider.rho_low < c.rho_low


def test_what_has_no_correlation_is_refused_or_has_no_interval():
    with pytest.raises(ValueError, match="2 pairs have no correlation"):
        correlate(np.array([1.0, 2.0, np.nan]), np.array([1.0, 2.0, 3.0]))
    with pytest.raises(ValueError, match=r"^y is 0.25 throughout, which has no correlation"):
        correlate(np.arange(4.0), np.full(4, 0.25))
    three = correlate(np.array([1.0, 2.0, 3.0]), np.array([1.0, 3.0, 2.0]))
    assert three.r == pytest.approx(0.5)
    assert np.isnan([three.r_low, three.rho_low]).all()  # a ninth of its resamples is of one pair
    one_apart = correlate(np.array([1.0] * 9 + [5.0]), np.arange(10.0))  # a third of its resamples has one value
    assert np.isnan(one_apart.rho_low)
    assert np.isfinite(one_apart.r_low)


def test_means_sizes_and_accuracies_of_classes(run):
    scores, labels, _ = made_up()
    np.testing.assert_array_equal(run.sizes_K, SIZES)
    np.testing.assert_allclose(run.scores_K, [scores[labels == k].mean() for k in range(6)], rtol=1e-5)
    size, accuracy = class_pairs(run)
    np.testing.assert_allclose(accuracy.y_K, [90, 95, 70, 75, 50, np.nan])
    found, notes = correlations([run])
    assert not notes
    assert found["size", 0].r == pytest.approx(np.corrcoef(SIZES, size.y_K)[0, 1])
    assert found["accuracy", 0].n == 5  # the class without test samples has no part


def test_classes_without_scores_are_nowhere(tmp_path):
    scores, labels, accuracy = made_up()
    scores = np.where(labels == 4, np.nan, scores)
    write_scored_run(tmp_path / "holes", scores, labels, accuracy=accuracy, classes=list("abcdef"))
    run = read_scored(tmp_path / "holes")
    assert run.sizes_K.tolist() == [300, 120, 60, 30, 0, 6]
    assert np.isnan(run.scores_K[4])
    assert score_boxes(run)[4] == {"label": "e", "n": 0}
    assert correlations([run])[0]["size", 0].n == 5
    names = [text.get_text() for text in analysis_figures.scores_by_class([run]).axes[0].get_xticklabels()]
    assert names == ["a\n300", "b\n120", "c\n60", "d\n30", "f\n6"]
    plt.close("all")


def test_boxes_are_matplotlibs(run):
    for k, box in enumerate(score_boxes(run)):
        expected = boxplot_stats(run.last_N[run.labels_N == k])[0]
        assert box["n"] == SIZES[k]
        for key in ("whislo", "q1", "med", "mean", "q3", "whishi"):
            assert box[key] == pytest.approx(expected[key]), key


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, lambda s, n: 1.5 - s),
        ({"rho": 1.0, "sigma": 0.7}, lambda s, n: 0.7 + s),
        ({"normalize": True}, lambda s, n: (1.5 - s) / 1.25),
        ({"normalize": True, "layout": "1x2"}, lambda s, n: 1.5 - s),
        ({"weighting": "none"}, lambda s, n: np.ones_like(s)),
        ({"weighting": "inverse_frequency"}, lambda s, n: 1.25 * SIZES.sum() / (6 * n)),
        ({"start_epoch": 5}, lambda s, n: np.ones_like(s)),
    ],
)
def test_weights_are_those_of_the_runs_weighting(tmp_path, settings, expected):
    scores, labels, _ = made_up()
    write_scored_run(tmp_path / "run", scores, labels, epochs=2, **settings)
    run = read_scored(tmp_path / "run")
    np.testing.assert_allclose(run.weights_N, expected(scores, SIZES[labels]), rtol=1e-6)


def test_weights_use_the_strength_of_the_epoch_that_scored(tmp_path):
    write_scored_run(tmp_path / "run", [0.2, np.nan, 0.4], [0, 0, 1], epochs=3)
    lines = [{"epoch": e, "sigma": 1.5 - 0.5 * e, "rho": -1 + e, "recall": [1.0, 0.5]} for e in range(3)]
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with np.load(tmp_path / "run" / "scores.npz") as columns:
        columns = dict(columns)
    columns["epoch"][0] = 0
    np.savez(tmp_path / "run" / "scores.npz", **columns)
    np.testing.assert_allclose(read_scored(tmp_path / "run").weights_N, [1.5 - 0.2, np.nan, 0.5 + 0.4], rtol=1e-6)
    runs, _ = read_runs([tmp_path / "run"])
    assert caveats(runs) == [
        "run: 1 of 3 samples never had a score, and are in no figure.",
        "run: the last score of 1 samples is from before the last epoch, with its weight.",
    ]


def test_curves_show_ten_thousand_samples_by_rising_score(tmp_path):
    rng = np.random.default_rng(0)
    write_scored_run(tmp_path / "many", rng.random(12_000).astype(np.float32), rng.integers(0, 3, 12_000))
    run = read_scored(tmp_path / "many")
    ids = weight_curve(run)
    assert ids.size == np.unique(ids).size == 10_000
    assert (np.diff(run.last_N[ids]) >= 0).all()
    axes = analysis_figures.weights([run]).axes[0]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), 1.5 - run.last_N[ids], rtol=1e-6)
    assert axes.lines[0].get_xdata()[-1] == 10_000
    assert axes.get_xlabel() == "10,000 samples, by rising score"
    assert axes.lines[1].get_ydata()[0] == pytest.approx(run.weights_N.mean())
    plt.close("all")


def test_box_plots_have_up_to_200_points_of_their_class(run):
    axes = analysis_figures.scores_by_class([run]).axes[0]
    clouds = [line.get_ydata() for line in axes.lines if line.get_marker() == "."]
    assert [len(cloud) for cloud in clouds] == [200, 120, 60, 30, 12, 6]
    for k, cloud in enumerate(clouds):
        assert set(cloud.tolist()) <= set(run.last_N[run.labels_N == k].tolist())
    assert np.unique(class_points(run, 0)).size == 200
    medians = [line.get_ydata()[0] for line in axes.lines if line.get_linewidth() == 2]
    np.testing.assert_allclose(medians, [np.median(run.last_N[run.labels_N == k]) for k in range(6)])


def test_very_many_classes_are_thinned_out_and_it_is_said(run, monkeypatch):
    monkeypatch.setattr(analysis_figures, "MAX_BOXES", 3)
    axes = analysis_figures.scores_by_class([run]).axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0\n300", "2\n60", "5\n6"]
    assert "3 of 6, evenly spaced" in axes.get_xlabel()


def test_lines_and_intervals_are_drawn_in_a_panel_for_each_run(run, tmp_path):
    scores, labels, accuracy = made_up(1)
    write_scored_run(tmp_path / "other", scores, labels, accuracy=accuracy)
    runs = [run, read_scored(tmp_path / "other")]
    found, _ = correlations(runs)
    panels = analysis_figures.against(runs, found, "size").axes
    for number, axes in enumerate(panels):
        c = found["size", number]
        assert f"Pearson r = {c.r:.2f} [{c.r_low:.2f}, {c.r_high:.2f}]" in axes.get_title()
        dots, line = axes.lines
        np.testing.assert_allclose(dots.get_xdata(), SIZES)
        np.testing.assert_allclose(line.get_ydata(), np.polyval(np.polyfit(SIZES, runs[number].scores_K, 1), [6, 300]))
    axes = analysis_figures.correlation_intervals(runs, found).axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["tail", "other"]
    ends = axes.containers[0].lines[2][0].get_segments()
    np.testing.assert_allclose([segment[:, 0] for segment in ends], [found["size", n][4:6] for n in range(2)])


def test_the_command_writes_all_and_names_what_is_left_out(tmp_path, capsys):
    for name, seed in (("a-b", 0), ("b-a", 1)):
        scores, labels, accuracy = made_up(seed)
        write_scored_run(tmp_path / name, scores, labels, accuracy=accuracy)
    (tmp_path / "scoreless").mkdir()
    for name in ("done", "metrics.jsonl", "config.yaml"):
        (tmp_path / "scoreless" / name).write_bytes((tmp_path / "a-b" / name).read_bytes())
    (tmp_path / "begun").mkdir()
    words = [str(tmp_path / name) for name in ("a-b", "b-a", "scoreless", "begun", "nowhere")]
    assert main(["report", *words, f"out={tmp_path / 'out'}"]) == 0
    out = capsys.readouterr().out
    assert f"{tmp_path}/scoreless is left out: it has no scores.npz\n" in out
    assert f"{tmp_path}/begun is left out: not finished, done is missing\n" in out
    assert f"{tmp_path}/nowhere is left out: no run folder\n" in out
    figures = ["weights", "scores_by_class", "score_against_class_size", "accuracy_against_score", "correlations"]
    for name in figures:
        with Image.open(tmp_path / "out" / f"{name}.png") as picture:
            assert np.asarray(picture.convert("L")).std() > 10
        assert (tmp_path / "out" / f"{name}.svg").read_text().count("<svg") == 1
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count("data:image/svg+xml;base64,") == 5
    assert "scoreless is left out" in page
    rows = table(tmp_path / "out" / "weights.csv")
    assert len(rows) == 2 * SIZES.sum()
    assert all(float(row["weight"]) == pytest.approx(1.5 - float(row["score"]), abs=1e-6) for row in rows)
    assert len(table(tmp_path / "out" / "points.csv")) == 2 * (200 + 120 + 60 + 30 + 12 + 6)
    first = table(tmp_path / "out" / "correlations.csv")[0]
    scores, labels, _ = made_up()
    means = [scores[labels == k].mean() for k in range(6)]
    assert float(first["Pearson r"]) == pytest.approx(stats.pearsonr(SIZES, means).statistic, rel=1e-5)
    assert len(table(tmp_path / "out" / "classes.csv")) == 12
    assert [row["without a score"] for row in table(tmp_path / "out" / "runs.csv")] == ["0", "0"]


def test_the_default_folder_and_the_refusals(tmp_path, capsys):
    scores, labels, accuracy = made_up()
    for name in ("x=1", "out=2"):
        write_scored_run(tmp_path / name, scores, labels, accuracy=accuracy)
    assert main(["report", str(tmp_path / "x=1")]) == 0
    assert (tmp_path / "x=1" / "report" / "index.html").is_file()
    assert not (tmp_path / "x=1" / "report" / "correlations.png").exists()  # a single run has its panels
    capsys.readouterr()
    for words, message in (
        ([], "name the run folders"),
        ([tmp_path / "x=1", tmp_path / "x=1"], "is named twice"),
        ([tmp_path / "none"], "none is left out: no run folder"),
    ):
        assert main(["report", *map(str, words)]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_panels_are_named_by_run_or_pair_and_told_apart_by_folder(tmp_path):
    scores, labels, _ = made_up()
    for place in ("x/a/1", "x/b/1", "y/b/1"):
        write_scored_run(tmp_path / place, scores, labels)
    runs = [read_scored(tmp_path / place) for place in ("x/a/1", "x/b/1", "y/b/1")]
    assert panel_names(runs) == ["1 (x/a)", "1 (x/b)", "1 (y/b)"]
    pairs = [({"source": "Art", "target": target}) for target in ("Clipart", "Product", "Product")]
    runs = [run._replace(settings={**run.settings, **pair}) for run, pair in zip(runs, pairs, strict=True)]
    assert panel_names(runs) == ["Art > Clipart", "Art > Product (x/b)", "Art > Product (y/b)"]


def test_a_run_without_scores_of_its_own_has_no_correlation(tmp_path):
    _, labels, accuracy = made_up()
    write_scored_run(tmp_path / "baseline", np.full(labels.size, 0.25), labels, accuracy=accuracy, weighting="none")
    runs, _ = read_runs([tmp_path / "baseline"])
    found, notes = correlations(runs)
    assert not found
    assert notes[0].endswith("class size and mean score: mean score of the class is 0.25 throughout, which has no correlation.")
    panel = analysis_figures.against(runs, found, "size").axes[0]
    assert "no correlation is defined" in panel.get_title()
    plt.close("all")
