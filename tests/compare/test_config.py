"""What a comparison file says, which runs follow from it, and which files are refused."""

import pytest

from ns_data.compare.config import load_comparison, make_run, written_methods
from ns_data.compare.controls import with_controls

THREE = """
base: base.yaml
methods:
  baseline:
  ns_lf: {weighting: ns, ns.sigma: 1.7}
  cbs_gce: {sampling: cbs, loss: {name: gce, options: {q: 0.5}}}
"""


@pytest.fixture
def write(tmp_path):
    (tmp_path / "base.yaml").write_text("epochs: 3\nns: {weighting: ns, sigma: 1.5, rho: -1.0}\noptimizer: {lr: 0.05}\n")

    def written(text, *words, long_tail=True):
        (tmp_path / "c.yaml").write_text(text)
        comparison = load_comparison(tmp_path / "c.yaml", [f"folder={tmp_path / 'out'}", *words])
        methods = written_methods(comparison)
        return comparison, with_controls(comparison, methods, {method.name: long_tail for method in methods})

    return written


def test_methods_are_any_combination_of_sampling_loss_weighting_and_settings(write):
    comparison, methods = write(THREE)
    configs = {method.name: method.config for method in methods}
    assert comparison.seeds == [2024, 2025, 2026]
    assert configs["baseline"].ns.weighting == configs["cbs_gce"].ns.weighting == "none"  # the base's ns is not inherited
    assert (configs["ns_lf"].ns.weighting, configs["ns_lf"].ns.sigma, configs["ns_lf"].ns.rho) == ("ns", 1.7, -1.0)
    assert configs["cbs_gce"].sampling.name == "cbs"
    assert (configs["cbs_gce"].loss.name, configs["cbs_gce"].loss.options) == ("gce", {"q": 0.5})
    assert configs["baseline"].epochs == 3


def test_every_ns_method_gets_its_controls_which_differ_in_the_weighting_alone(write):
    _, methods = write(THREE)
    assert [method.name for method in methods] == [
        "baseline", "ns_lf", "ns_lf.constant", "ns_lf.own", "ns_lf.shuffled", "ns_lf.inverse_frequency", "cbs_gce",
    ]  # fmt: skip
    for control in methods[2:6]:
        assert (control.control_of, control.control) == ("ns_lf", control.config.ns.weighting)
        assert (control.config.ns.sigma, control.config.ns.rho, control.config.ns.grouping) == (1.7, -1.0, "random")
    _, balanced = write(THREE, long_tail=False)
    assert [method.control for method in balanced if method.control] == ["constant", "own", "shuffled"]


def test_controls_are_left_out_only_by_name_and_written_ones_are_not_run_twice(write):
    assert [m.name for m in write(THREE, "controls=none")[1]] == ["baseline", "ns_lf", "cbs_gce"]
    assert [m.name for m in write(THREE, "controls=[own]")[1]] == ["baseline", "ns_lf", "ns_lf.own", "cbs_gce"]
    _, methods = write(THREE + "  mine: {weighting: own, ns.sigma: 1.7}\n")
    names = {method.name: method.control_of for method in methods}
    assert names["mine"] == "ns_lf"
    assert "ns_lf.own" not in names
    for nothing in ("null", "[]", "some"):
        with pytest.raises(ValueError, match="controls must be all, none or a list"):
            write(THREE, f"controls={nothing}")


def test_a_baseline_is_added_and_only_picks_methods_with_their_controls(write):
    _, methods = write("base: base.yaml\nmethods: {cbs: {sampling: cbs}, ns_lf: {weighting: ns}}", "only=[ns_lf]")
    assert [method.name for method in methods][:3] == ["baseline", "ns_lf", "ns_lf.constant"]
    assert len(methods) == 6


def test_runs_name_their_folder_seed_rate_and_held_out_share(write):
    comparison, methods = write(THREE, "tuning.lr=[0.1,0.02]", "tuning.holdout=0.25")
    run = make_run(comparison, methods[1], 7, 0.02)
    assert run.folder.parts[-3:] == ("runs", "ns_lf", "7")
    assert (run.config.seed, run.config.optimizer.lr, run.config.data.holdout, run.lr) == (7, 0.02, 0.0, None)
    tuning = make_run(comparison, methods[1], 7, 0.02, tuning=True)
    assert tuning.folder.parts[-4:] == ("tuning", "ns_lf", "lr=0.02", "7")
    assert (tuning.config.data.holdout, tuning.lr) == (0.25, 0.02)
    assert (methods[1].config.data.holdout, methods[1].config.optimizer.lr) == (0.0, 0.05)  # the method's own stay


def test_the_words_of_a_run_make_its_config(write):
    """What train.py reads from the command line is what the launcher compares run folders to."""
    from ns_data.training.config import load_config

    comparison, methods = write(THREE, "set.data.mean=[0.1,0.2,0.3]", "set.model.options.width=8")
    for tuning in (False, True):
        run = make_run(comparison, methods[-1], 7, 0.02, tuning=tuning)
        assert load_config(comparison.base, run.words) == run.config


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        ("methods: {a: {loss: gce}}", [], "names no base"),
        ("base: base.yaml", [], "has no methods"),
        ("base: nowhere.yaml\nmethods: {a: }", [], "no config file .*nowhere.yaml"),
        ("base: base.yaml\nmethods:\n  a: {loss: gce}\n  a: {loss: poly}", [], "found duplicate key"),
        ("base: base.yaml\nmethods: {a: {loss: gce}, b: {loss: gce}}", [], "methods a and b have the same settings"),
        (THREE + "  ns_lf.own: {loss: poly}\n", [], "two methods are named ns_lf.own"),
        (THREE, ["seeds=[1,1]"], r"seeds must be different numbers, at least one, got \[1, 1\]"),
        (THREE, ["seeds=[]"], "seeds must be different"),
        (THREE, ["sedes=[1]"], "did you mean 'seeds'"),
        (THREE, ["tuning.lr=[0.1,-1]"], "tuning.lr must be above 0"),
        (THREE, ["tuning.lr=[0.1]", "tuning.holdout=1.2"], "tuning.holdout must be between 0 and 1, got 1.2"),
        (THREE, ["tuning.metric=loss"], "tuning.metric must be"),
        (THREE, ["jobs=0"], "jobs and threads must be at least 1"),
        (THREE, ["controls=[owm]"], "did you mean 'own'"),
        (THREE, ["only=[ns_fl]"], "only: unknown method 'ns_fl': did you mean 'ns_lf'"),
        (THREE, ["methods.x=gce"], "method x holds settings such as loss: gce, got 'gce'"),
        (THREE, ["methods.x.seed=3"], "method x sets seed"),
        (THREE, ["methods.x.los=gce"], "method x: los=gce: unknown setting 'los'"),
        (THREE, ["set.epcohs=3"], "did you mean 'epochs'"),
        ("base: base.yaml\nmethods: {a/b: {loss: gce}}", [], "'a/b' becomes a folder"),
        (THREE, ["seeds"], "is not of the form key=value"),
    ],
)
def test_mistakes_are_one_sentence(write, text, words, message):
    with pytest.raises(ValueError, match=message) as error:
        write(text, *words)
    assert "\n" not in str(error.value)
