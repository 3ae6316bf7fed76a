"""The shipped comparisons can be planned: every method's config, loss and weights are accepted."""

from pathlib import Path

import pytest

from ns_data import LOSSES, MODELS, ClassStats, Layout
from ns_data.compare.config import CONTROLS, load_comparison, written_methods
from ns_data.compare.controls import with_controls
from ns_data.compare.launch import _data_reader, plan_methods
from ns_data.losses import create_loss
from ns_data.scoring.weighting import Strength
from ns_data.training.config import load_config
from ns_data.training.optim import create_schedule

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


@pytest.mark.parametrize("path", [path for path in FILES if path.stem.startswith("cifar")], ids=lambda path: path.stem)
def test_cifar_comparisons_are_read_and_their_networks_and_losses_are_known(path):
    """Without the data: long-tailed as the file says, or balanced."""
    comparison = load_comparison(path)
    methods = written_methods(comparison)
    long_tailed = "lt" in path.stem
    expanded = with_controls(comparison, methods, {method.name: long_tailed for method in methods})
    ablation = path.stem.split("_")[-1] in ("layout", "sigma", "rho")
    controls = ["constant", "own"] if ablation else list(CONTROLS)[: 4 if long_tailed else 3]
    selecting = [method.name for method in methods if method.config.ns.weighting == "ns"]
    assert len(selecting) >= (6 if ablation else 1)
    assert [(m.control_of, m.control) for m in expanded if m.control] == [(n, c) for n in selecting for c in controls]
    stats = ClassStats.from_labels(list(range(10)))
    for method in expanded:
        assert method.config.model.name in MODELS
        Strength(method.config.ns.sigma, method.config.ns.rho)
        assert method.config.batch_size % Layout.parse(method.config.ns.layout).group_size == 0
        create_loss(method.config.loss.name, method.config.loss.options, stats=stats, num_samples=10, seed=0)
    if long_tailed:
        assert {method.config.loss.name for method in methods} == set(LOSSES)


CONFIGS = FILES[0].parents[1]
SINGLE = [path for folder in ("imagenet", "cifar", "emotion") for path in sorted((CONFIGS / folder).glob("*.yaml"))]


@pytest.mark.parametrize("single", SINGLE, ids=lambda path: path.stem)
def test_the_comparisons_of_tables_1_2_and_3_take_every_network_and_set(single):
    folder = single.parent.name
    comparison = load_comparison(CONFIGS / "compare" / f"{folder}.yaml", [f"base=../{folder}/{single.name}"])
    methods = written_methods(comparison)
    ours, config = load_config(single), methods[-1].config
    assert (config.model, config.data, config.epochs, config.ns) == (ours.model, ours.data, ours.epochs, ours.ns)
    expanded = with_controls(comparison, methods, {method.name: False for method in methods})
    assert [method.control for method in expanded if method.control] == ["constant", "own", "shuffled"]


def test_the_rates_of_cifar_lt_are_the_papers():
    config = load_comparison(FILES[0].parent / "cifar_lt10.yaml").base
    schedule = load_config(config).schedule
    factor = create_schedule(schedule.name, 240, schedule.options)
    assert [factor(epoch) for epoch in (0, 99, 100, 160, 200, 239)] == pytest.approx([1, 1, 0.1, 0.01, 1e-4, 1e-4])
