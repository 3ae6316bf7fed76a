"""The shipped comparisons can be planned: every method's config, loss and weights are accepted."""

from pathlib import Path

import pytest

from ns_data import LOSSES
from ns_data.compare.config import load_comparison
from ns_data.compare.launch import _data_reader, plan_methods

FILES = sorted((Path(__file__).parents[2] / "configs" / "compare").glob("*.yaml"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.mark.parametrize("path", [path for path in FILES if path.stem.startswith("digits")], ids=lambda path: path.stem)
def test_digits_comparisons_can_be_planned(path, data):
    comparison = load_comparison(path, [f"set.data.root={data}"])
    methods = plan_methods(comparison, _data_reader())
    assert len(comparison.seeds) == 6
    assert comparison.tuning.lr
    names = {method.name for method in methods}
    for method in methods:
        if method.config.ns.weighting == "ns":
            assert {f"{method.name}.constant", f"{method.name}.own"} <= names
    if path.stem in ("digits_lt", "digits_noise"):
        assert {method.config.loss.name for method in methods} == set(LOSSES)
        assert {method.config.sampling.name for method in methods} == {"instance", "cbs", "srs", "pbs"}
        assert len(methods) == (27 if path.stem == "digits_lt" else 25)  # as the file says
