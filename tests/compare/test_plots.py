"""Plots are drawn from run folders alone; what they show is read back from the figures."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import pearsonr

from ns_data import ClassStats, GroupedBatch, Layout, ScoreLedger
from ns_data.compare.plots import (
    POINTS_PER_CLASS,
    curves,
    plot_composites,
    plot_run,
    score_against_class_size,
    scores_by_class,
    weight_curves,
)

STATS = ClassStats(np.array([300, 40, 10]))
CLASSES = ["many", "some", "few"]


@pytest.fixture
def ledger():
    labels = torch.tensor(np.repeat(np.arange(3), STATS.counts))
    ledger = ScoreLedger(350)
    scores = torch.rand(350, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 0.6, 0.3])[labels]
    ledger.update(torch.arange(350), scores, labels, 0)
    return ledger


def metrics():
    common = {"sigma": 1.5, "rho": -1.0, "mean_weight": 1.25, "balanced_accuracy": 0.5}
    return [{"epoch": e, "loss": 2.0 / (e + 1), "test_loss": 2.0, "accuracy": 0.1 * e, **common} for e in range(4)]


def test_curves_show_the_metrics():
    left, right = curves(metrics()).axes
    np.testing.assert_allclose(left.lines[0].get_ydata(), [2, 1, 2 / 3, 0.5])
    np.testing.assert_allclose(right.lines[0].get_ydata(), [0, 10, 20, 30])
    assert right.lines[0].get_xdata().tolist() == [1, 2, 3, 4]


def test_box_plots_sample_up_to_200_points_a_class(ledger):
    axes = scores_by_class(ledger, CLASSES).axes[0]
    clouds = [line.get_ydata() for line in axes.lines if line.get_marker() == "."]
    assert [len(cloud) for cloud in clouds] == [POINTS_PER_CLASS, 40, 10]
    assert set(clouds[2].tolist()) == set(ledger.last_by_sample()[340:].tolist())
    assert [text.get_text() for text in axes.get_xticklabels()] == CLASSES


def test_class_size_plot_fits_a_line_and_names_r(ledger):
    axes = score_against_class_size(ledger, STATS, CLASSES).axes[0]
    means = [ledger.last_by_sample()[a:b].mean() for a, b in ((0, 300), (300, 340), (340, 350))]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), means, rtol=1e-5)
    assert f"r = {pearsonr(STATS.counts, means).statistic:.2f}" in axes.get_title()
    slope, intercept = np.polyfit(STATS.counts, means, 1)
    np.testing.assert_allclose(axes.lines[1].get_ydata(), intercept + slope * np.array([10, 300]), rtol=1e-5)


def test_equal_class_sizes_have_no_line(ledger):
    axes = score_against_class_size(ledger, ClassStats(np.array([5, 5, 5])), CLASSES).axes[0]
    assert len(axes.lines) == 1


def test_weight_curve_is_sorted_and_follows_sigma_and_rho(ledger):
    axes = weight_curves(ledger, metrics()).axes[0]
    weights = axes.lines[0].get_ydata()
    np.testing.assert_allclose(np.sort(weights), np.sort(1.5 - ledger.last_by_sample()), rtol=1e-6)
    assert (np.diff(weights) <= 0).all()


def test_run_folder_gets_all_plots(tmp_path, ledger):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics()))
    ledger.save(tmp_path / "scores.npz")
    paths = plot_run(tmp_path, STATS, CLASSES)
    assert len(paths) == 4
    for path in paths:
        with Image.open(path) as picture:
            assert picture.width > 500


def test_composite_grid_takes_gray_and_colour_and_writes_labels(tmp_path):
    for channels in (1, 3):
        images = torch.rand(8, channels, 8, 8)
        batch = GroupedBatch(images, torch.tensor([0, 1, 2, 0] * 2), None, torch.arange(8).view(2, 4), torch.tensor(0))
        path = tmp_path / f"{channels}.png"
        plot_composites(batch, Layout.parse("2x2"), CLASSES, path, torch.full((8,), 0.25), torch.ones(8))
        with Image.open(path) as picture:
            assert np.asarray(picture.convert("L")).std() > 10
