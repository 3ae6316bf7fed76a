"""Report: everything that the run folders of a comparison say, as tables, figures and pages in ``FOLDER/report/``.

index.html            self-contained: sorts, filters, shows the figures
report.md             the same to read and to paste
*.csv *.md *.tex      each table
*.png *.svg           each figure
"""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from ns_data.compare import tables
from ns_data.compare.figures import draw
from ns_data.compare.formats import Table, to_csv, to_latex, to_markdown
from ns_data.compare.html import page
from ns_data.compare.results import Results, read_results
from ns_data.compare.statistics import smallest_p_in_words
from ns_data.compare.tables import METRICS, Difference


def write_report(folder: Path) -> str:
    """Write ``folder/report`` anew and return what came out, in short. ``ValueError`` if there is nothing to compare."""
    results = read_results(folder)
    baseline = results.manifest["baseline"]
    if not results.runs.get(baseline):
        raise ValueError(f"{folder}: the baseline {baseline} has no finished run, nothing can be compared: repeat the command")
    to_baseline, to_controls = tables.differences_to_baseline(results), tables.differences_to_controls(results)
    notes = [tuning_sentence(results), *caveats(results, to_baseline, to_controls)]
    made = make_tables(results, to_baseline, to_controls)
    partial = folder / "report.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for table in made:
        (partial / f"{table.name}.csv").write_text(to_csv(table))
        (partial / f"{table.name}.md").write_text(to_markdown(table))
        (partial / f"{table.name}.tex").write_text(to_latex(table))
    pictures = write_figures(draw(results, to_baseline), partial)
    (partial / "report.md").write_text(_markdown(results, notes, made, list(pictures)))
    (partial / "index.html").write_text(page(results.manifest["name"], notes, made, pictures))
    shutil.rmtree(folder / "report", ignore_errors=True)
    partial.rename(folder / "report")
    best = made[0]
    return "\n".join(["", *notes, "", to_markdown(best), f"report: {folder / 'report' / 'index.html'}"])


def tuning_sentence(results: Results) -> str:
    """The report's first line: whether the learning rates were tuned, and how."""
    tuning = results.manifest["tuning"]
    if not tuning:
        return (
            "The learning rate was NOT tuned: every method ran at the rate of its config. A weighting that makes steps larger "
            "can gain from that alone."
        )
    rates = ", ".join(f"{lr:g}" for lr in sorted(tuning["lr"]))
    return (
        f"The learning rate of every method was tuned on one grid ({rates}) by {METRICS[tuning['metric']]} on "
        f"{tuning['holdout']:.0%} of the training set, held out, with seeds {' '.join(map(str, tuning['seeds']))}; the test "
        "set took no part."
    )


def caveats(results: Results, to_baseline: list[Difference], to_controls: list[Difference]) -> list[str]:
    """What a reader must know: what the number of seeds allows, missing runs and controls, rates at the edge of the grid."""
    notes = []
    for what, found in (("Differences to the baseline", to_baseline), ("Differences to the controls", to_controls)):
        mine = [d for d in found if d.metric == "balanced_accuracy"]
        if mine:
            pairs = min(len(d.seeds) for d in mine)
            notes.append(f"{what}: {smallest_p_in_words(pairs)} {smallest_p_in_words(pairs, len(mine))}")
    notes += _missing(results)
    controls = results.manifest["controls"]
    if controls != "all":
        asked = controls if controls == "none" else ", ".join(controls)
        notes.append(f"Controls, as asked: {asked}. What is left out cannot be told from selection.")
    edges = [e["name"] for e in results.manifest["methods"] if e["tuning"] and e["tuning"]["edge"]]
    if edges:
        notes.append(f"The best rate lies at the edge of the grid for {', '.join(edges)}: a wider grid may change them.")
    out = [f"{e['name']} at {lr:g}" for e in results.manifest["methods"] if e["tuning"] for lr in e["tuning"]["diverged"]]
    if out:
        notes.append(f"Diverged while tuning, and out: {', '.join(out)}.")
    return notes


def _missing(results: Results, most: int = 10) -> list[str]:
    if not results.missing:
        return []
    more = f"; and {len(results.missing) - most} more" if len(results.missing) > most else ""
    return [
        f"{len(results.missing)} runs are missing ({'; '.join(results.missing[:most])}{more}); paired tests use the seeds that "
        "both methods have, and name the others."
    ]


def make_tables(results: Results, to_baseline: list[Difference], to_controls: list[Difference]) -> list[Table]:
    """All tables that have rows, in the order of the report."""
    made = [
        tables.summary(results),
        tables.difference_table("to_baseline", "Differences to the baseline", to_baseline),
        tables.difference_table("to_controls", "Natural selection against its controls", to_controls),
        tables.explained(to_baseline, to_controls),
        *tables.class_tables(results),
        tables.cost(results),
        tables.tuning(results),
        tables.raw(results),
    ]
    return [table for table in made if table.rows]


def write_figures(figures: dict[str, Figure], folder: Path) -> dict[str, str]:
    """Write each figure as PNG and SVG; return the SVG texts by name."""
    texts = {}
    with matplotlib.rc_context({"svg.hashsalt": "ns_data", "svg.fonttype": "none"}):
        for name, figure in figures.items():
            figure.savefig(folder / f"{name}.png", dpi=110)
            buffer = io.StringIO()
            figure.savefig(buffer, format="svg", metadata={"Date": None})
            plt.close(figure)
            texts[name] = buffer.getvalue()
            (folder / f"{name}.svg").write_text(texts[name])
    return texts


def _markdown(results: Results, notes: list[str], made: list[Table], pictures: list[str]) -> str:
    machine: dict[str, Any] = results.manifest["machine"]
    parts = [notes[0], f"# {results.manifest['name']}", *(f"- {note}" for note in notes[1:])]
    parts.append("Machine: " + ", ".join(f"{key} {value}" for key, value in machine.items() if value is not None) + ".")
    for table in made:
        parts += [f"## {table.title}", *([table.note] if table.note else []), to_markdown(table)]
    parts += ["## Figures", *(f"![{name}]({name}.png)" for name in pictures)]
    return "\n\n".join(parts) + "\n"
