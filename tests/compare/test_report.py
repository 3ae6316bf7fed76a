"""The report, from run folders with known numbers: expected values are worked out by hand or by scipy."""

import csv
import json
import re
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from scipy.stats import permutation_test

from ns_data.compare.config import make_run
from ns_data.compare.formats import Table, to_csv, to_latex, to_markdown
from ns_data.compare.html import page
from ns_data.compare.report import write_report
from ns_data.compare.results import is_done
from ns_data.compare.statistics import MeanStd
from ns_data.compare.tables import groups_of_classes
from tests.compare.folders import write_comparison

TEXT = "seeds: [1, 2, 3]\nmethods: {baseline: , ns_lf: {weighting: ns}, gce: {loss: gce}}\n"
GAIN = {"baseline": 0.0, "ns_lf": 0.04, "ns_lf.constant": 0.03, "ns_lf.own": 0.05, "ns_lf.shuffled": 0.0, "gce": -0.02}


def accuracy(method, seed):
    wobble = {"ns_lf": [0.01, 0.0, -0.01]}.get(method, [0, 0, 0])[seed - 1]
    return 0.5 + 0.1 * seed + GAIN.get(method, 0.01) + wobble


@pytest.fixture
def compared(tmp_path, monkeypatch):
    monkeypatch.setattr("ns_data.compare.report.draw", lambda *_: {})  # one test below looks at figures
    return write_comparison(tmp_path, TEXT, accuracy)


def write_report_of(comparison):
    return write_report(Path(comparison.folder))


def markdown_of(comparison):
    return (Path(comparison.folder) / "report" / "report.md").read_text()


def rows(comparison, name):
    with open(f"{comparison.folder}/report/{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_means_deviations_and_paired_differences(compared):
    comparison, _ = compared
    write_report_of(comparison)
    base = rows(comparison, "results")[0]
    assert (base["method"], base["role"], base["accuracy % n"]) == ("baseline", "baseline", "3")
    assert float(base["accuracy % mean"]) == pytest.approx(70)
    assert float(base["accuracy % std"]) == pytest.approx(10)
    assert float(base["balanced accuracy % mean"]) == pytest.approx(60)
    difference = next(r for r in rows(comparison, "to_baseline") if (r["method"], r["metric"]) == ("ns_lf", "accuracy"))
    assert float(difference["difference"]) == pytest.approx(4)  # the mean of 5, 4, 3
    test = permutation_test(([5.0, 4, 3],), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert float(difference["p"]) == test.pvalue == 0.25
    assert float(difference["p (Holm)"]) == 1.0  # 6 methods, each with p at least 0.25
    low, high = float(difference["95 % low"]), float(difference["95 % high"])
    assert (low, high) == (pytest.approx(3), pytest.approx(5))  # 1 of 27 draws has three times the least: 3.7 % > 2.5 %
    own = next(r for r in rows(comparison, "to_controls") if (r["minus"], r["metric"]) == ("ns_lf.own", "accuracy"))
    assert (own["method"], float(own["difference"])) == ("ns_lf", pytest.approx(-1))
    share = next(r for r in rows(comparison, "explained") if r["control"] == "ns_lf.constant")
    assert share["explained by the control"] == "75%"  # 3 of 4 points


def test_a_gain_inside_its_interval_is_not_explained(tmp_path, monkeypatch):
    """ns_lf gains 10, -8 and 1 points: 1 on average, and nobody can say what of it the control has."""
    monkeypatch.setattr("ns_data.compare.report.draw", lambda *_: {})
    wobble = {"ns_lf": [0.06, -0.12, -0.03], "ns_lf.constant": [0.0, 0.0, 0.0]}
    comparison, _ = write_comparison(
        tmp_path, TEXT, lambda method, seed: 0.5 + 0.1 * seed + GAIN.get(method, 0.01) + wobble.get(method, [0] * 3)[seed - 1]
    )
    write_report_of(comparison)
    row = next(r for r in rows(comparison, "explained") if r["control"] == "ns_lf.constant")
    assert float(row["gain over baseline"]) == pytest.approx(1)
    assert row["explained by the control"] == "no gain to explain"


def test_the_first_line_says_that_rates_were_not_tuned_and_words_say_what_three_seeds_allow(compared):
    comparison, _ = compared
    shown = write_report_of(comparison)
    markdown = markdown_of(comparison)
    assert "NOT tuned" in markdown.splitlines()[0]
    assert "NOT tuned" in shown.strip().splitlines()[0]
    assert "With 3 paired seeds no p-value can be below 0.25: no difference can reach 0.05, which takes 6 seeds." in markdown


def test_a_tuned_comparison_tells_grid_choice_edge_and_divergence(tmp_path, monkeypatch):
    monkeypatch.setattr("ns_data.compare.report.draw", lambda *_: {})
    names = ["baseline", "ns_lf", "gce", *(f"ns_lf.{c}" for c in ("constant", "own", "shuffled", "inverse_frequency"))]
    tuned = {n: {"lr": 0.01, "score": {"0.1": 0.3, "0.01": 0.6}, "diverged": [], "edge": False} for n in names}
    tuned["gce"] = {"lr": 0.1, "score": {"0.1": 0.7}, "diverged": [3.0], "edge": True}
    comparison, _ = write_comparison(tmp_path, TEXT, accuracy, tuned)
    write_report_of(comparison)
    markdown = markdown_of(comparison)
    assert markdown.startswith("The learning rate of every method was tuned on one grid (0.01, 0.1) by accuracy on 20% of")
    assert "edge of the grid for gce:" in markdown
    assert "Diverged while tuning, and out: gce at 3." in markdown
    assert [r["learning rate"] for r in rows(comparison, "tuning") if r["method"] == "gce"] == ["0.1", "3.0"]
    assert {r["method"]: r["learning rate"] for r in rows(comparison, "results")}["gce"] == "0.1"


def test_missing_seeds_are_named_and_pairs_use_the_common_ones(compared):
    comparison, methods = compared
    shutil.rmtree(make_run(comparison, methods[-1], 2, None).folder)
    (make_run(comparison, methods[1], 3, None).folder / "done").unlink()
    write_report_of(comparison)
    markdown = markdown_of(comparison)
    assert "2 runs are missing (ns_lf, seed 3: not finished, done is missing; gce, seed 2: no run folder)" in markdown
    found = {r["method"]: r["seeds"] for r in rows(comparison, "to_baseline")}
    assert found["gce"] == "1 3 (not in both: 2)"
    assert found["ns_lf.own"] == "1 2 3"


def test_half_written_runs_are_left_out_and_named_and_refused_by_the_launcher(compared):
    comparison, methods = compared
    run = make_run(comparison, methods[-1], 2, None)
    path = run.folder / "metrics.jsonl"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(ValueError, match=r"gce, seed 2: half written, .* has a broken line .*: remove that folder and repeat"):
        is_done(run)
    write_report_of(comparison)
    assert "gce, seed 2: half written" in markdown_of(comparison)
    path.write_text(path.read_text().splitlines()[0] + "\n")
    with pytest.raises(ValueError, match="has metrics of 1 of 3 epochs"):
        is_done(run)
    assert is_done(make_run(comparison, methods[-1], 1, None))


def test_mixed_configs_in_one_folder_are_refused(compared):
    comparison, methods = compared
    run = make_run(comparison, methods[0], 2, None)
    text = (run.folder / "config.yaml").read_text()
    (run.folder / "config.yaml").write_text(text.replace("epochs: 3", "epochs: 4"))
    for refuse in (lambda: write_report_of(comparison), lambda: is_done(run)):
        with pytest.raises(
            ValueError, match=r"baseline/2 holds a run with other settings \(epochs is 4 there, 3 here\)"
        ) as error:
            refuse()
        assert "\n" not in str(error.value)
    (run.folder / "config.yaml").unlink()
    with pytest.raises(ValueError, match="half written, it has no config"):
        is_done(run)


def test_nothing_to_compare_is_one_sentence(compared, tmp_path):
    comparison, methods = compared
    for seed in comparison.seeds:
        shutil.rmtree(make_run(comparison, methods[0], seed, None).folder)
    with pytest.raises(ValueError, match="the baseline baseline has no finished run"):
        write_report_of(comparison)
    with pytest.raises(ValueError, match="not the folder of a comparison"):
        write_report(tmp_path)


def test_class_differences_are_grouped_by_training_samples(compared):
    comparison, methods = compared
    assert groups_of_classes([150, 100, 20, 19]) == {
        "many (over 100)": [0], "medium (20 to 100)": [1, 2], "few (under 20)": [3],
    }  # fmt: skip
    for seed in comparison.seeds:
        path = make_run(comparison, methods[-1], seed, None).folder / "metrics.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        base = 0.5 + 0.1 * seed
        lines[-1]["recall"] = [base + 0.1] + [base] * 4 + [base - 0.05] * 4 + [None]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_report_of(comparison)
    gce = next(r for r in rows(comparison, "groups") if r["method"] == "gce")
    means = [float(gce[f"{name} mean"]) for name in ("many (over 100)", "medium (20 to 100)", "few (under 20)")]
    assert means == pytest.approx([10, 0, -5])  # the class that was not tested is not counted
    of_class = [r for r in rows(comparison, "classes") if r["method"] == "gce"]
    assert [r["recall difference n"] for r in of_class] == ["3"] * 9 + [""]
    assert [r["training samples"] for r in of_class][:2] == ["150", "97"]


def test_every_table_and_figure_has_all_its_forms(tmp_path):
    comparison, _ = write_comparison(tmp_path, TEXT, accuracy)
    write_report_of(comparison)
    report = Path(comparison.folder) / "report"
    for name in ("results", "to_baseline", "to_controls", "explained", "groups", "classes", "cost", "raw"):
        assert all((report / f"{name}.{form}").stat().st_size > 50 for form in ("csv", "md", "tex")), name
    for name in ("values", "differences", "curves", "classes"):
        with Image.open(report / f"{name}.png") as picture:
            assert np.asarray(picture.convert("L")).std() > 5
        assert ElementTree.parse(report / f"{name}.svg").getroot().tag.endswith("svg")
    cost = rows(comparison, "cost")[0]
    assert [float(cost[k]) for k in ("training s mean", "relative to baseline", "scoring %")] == [2.0, 1.0, 25.0]
    assert len(rows(comparison, "raw")) == 7 * 3


def test_tables_escape_what_their_forms_reserve():
    table = Table("t", "T", ["a_b %", "x"], [["m|1_&", MeanStd(1.0, 2.0, 3)], ["n", None]])
    assert to_markdown(table).splitlines()[2] == "| m\\|1_& | 1.00 ± 2.00 (3) |"
    assert to_csv(table).splitlines() == ["a_b %,x mean,x std,x n", "m|1_&,1.0,2.0,3", "n,,,"]
    latex = to_latex(table)
    assert r"a\_b \% & x \\" in latex
    assert r"m|1\_\& & 1.00 $\pm$ 2.00 (3) \\" in latex


HOSTILE = '<img src=x onerror="document.title=1"></script>'


def hostile_page():
    scores = [["b", MeanStd(10.0, 1.0, 2)], [HOSTILE, MeanStd(9.0, 1.0, 2)], ["a", None], ["ns", MeanStd(100.0, 1.0, 2)]]
    return page(HOSTILE, [HOSTILE, "note"], [Table("results", HOSTILE, ["method", "score"], scores)], {"p": "<svg/>"})


def test_the_page_escapes_and_asks_nothing_of_the_network():
    text = hostile_page()
    assert HOSTILE not in text
    assert text.count("<script>") == text.count("</script>") == 1
    assert not re.findall(r'(?:src|href)="(?!data:|#)', text)
    assert "default-src 'none'" in text


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_the_page_sorts_and_filters_in_a_browser(tmp_path):
    (tmp_path / "index.html").write_text(hostile_page())

    def names(fragment):
        command = [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--dump-dom",
        ]
        url = f"{(tmp_path / 'index.html').as_uri()}#{fragment}"
        dom = subprocess.run([*command, url], capture_output=True, text=True, timeout=120, check=True).stdout
        assert "onerror" not in dom.replace("&lt;img src=x onerror", "")  # it became text, not an element
        assert "<title>&lt;img" in dom
        body = dom.split("<tbody>")[1].split("</tbody>")[0]
        cells = re.findall(r"<tr([^>]*)><td[^>]*>(.*?)</td>", body)
        return [text[:4] for attributes, text in cells if "hidden" not in attributes], dom

    assert names("")[0] == ["b", "&lt;", "a", "ns"]
    assert names("sort=results:1")[0] == ["&lt;", "b", "ns", "a"]  # by number, not by letter; empty last
    shown, dom = names("sort=results:-1")
    assert shown == ["ns", "b", "&lt;", "a"]
    assert 'aria-sort="descending"' in dom
    shown, dom = names("filter=NS")
    assert shown == ["ns"]
    assert "1 of 4 rows shown" in dom
