"""What the figures show is read back from them."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from ns_data.compare import figures
from ns_data.compare.results import read_results
from ns_data.compare.tables import differences_to_baseline
from tests.compare.folders import write_comparison


@pytest.fixture
def results(tmp_path):
    text = "seeds: [1, 2]\ncontrols: none\nmethods: {ns_lf: {weighting: ns}, gce: {loss: gce}}\n"
    comparison, _ = write_comparison(tmp_path, text, lambda method, seed: 0.5 + 0.1 * seed + 0.06 * (method == "gce"))
    yield read_results(Path(comparison.folder))
    plt.close("all")


def test_curves_have_a_band_of_one_deviation_beside_the_baseline(results):
    panel = figures.curves(results, ["baseline", "gce"]).axes[1]
    assert panel.get_title() == "gce"
    baseline, mean = (line.get_ydata() for line in panel.lines)
    # the last epoch's balanced accuracies of gce: 56 and 66; of the baseline: 50 and 60
    assert (mean[-1], baseline[-1]) == (pytest.approx(61), pytest.approx(55))
    band = panel.collections[1].get_paths()[0].vertices
    at_end = band[np.isclose(band[:, 0], 3), 1]
    assert (at_end.min(), at_end.max()) == (pytest.approx(61 - 50**0.5), pytest.approx(61 + 50**0.5))


def test_many_methods_make_more_figures_and_none_is_left_out(results, monkeypatch):
    monkeypatch.setattr(figures, "PANELS", 2)
    drawn = figures.draw(results, differences_to_baseline(results))
    titles = [axes.get_title() for name in ("curves_1", "curves_2") for axes in drawn[name].axes if axes.lines]
    assert titles == ["baseline", "ns_lf", "gce"]


def test_class_map_shows_differences_and_has_a_limit(results, monkeypatch):
    image = figures.class_differences(results).axes[0].images[0].get_array()
    np.testing.assert_allclose(image[0], 0, atol=1e-9)
    np.testing.assert_allclose(image[1], 6)
    monkeypatch.setattr(figures, "MAX_CLASSES", 9)
    assert figures.class_differences(results) is None


def test_differences_are_drawn_around_zero(results):
    left, _ = figures.differences(differences_to_baseline(results)).axes
    points = [line.get_xdata() for line in left.lines if line.get_marker() == "o"]
    np.testing.assert_allclose(points, [[0, 0], [6, 6]], atol=1e-9)
