"""Analyse: scores and weights of finished runs as figures 2 to 6 of the paper show them, from run folders alone.

index.html            self-contained: figures, tables that sort and filter
weights               10,000 samples by rising score with their loss weights (figure 2)
scores_by_class       box plots with 200 points a class (figure 3), its points in points.csv
score_against_class_size, accuracy_against_score, correlations    (figures 4 to 6)
*.png *.svg *.csv     each figure, and the numbers behind it
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ns_data.compare.analysis import (
    class_table,
    correlation_table,
    correlations,
    point_table,
    run_table,
    weight_table,
)
from ns_data.compare.formats import Table, to_csv, to_markdown
from ns_data.compare.html import page
from ns_data.compare.scored import ScoredRun, read_scored

FIRST = (
    "Natural-selection scores and loss weights, read from run folders alone: a sample's last score, a class's mean over all of "
    "its scores, its accuracy on the test set in the last epoch. Correlations are over classes; they show what goes along with "
    "scores, not what scores cause."
)


def main(words: Sequence[str]) -> None:
    """``RUN... [out=DIR]``: a word is an option only if no run folder has its name, which may hold a ``=``."""
    options = [word for word in words if word.startswith("out=") and not Path(word).is_dir()]
    places = [Path(word) for word in words if word not in options]
    if not places:
        raise ValueError("name the run folders to report on: ns-data report RUN... [out=DIR]")
    out = Path(options[-1].removeprefix("out=")) if options else default_folder(places)
    print(analyse(places, out))


def default_folder(places: list[Path]) -> Path:
    """``report`` in the only run's folder, or in the nearest folder that holds all of them."""
    return Path(os.path.commonpath([os.path.abspath(place) for place in places])) / "report"


def analyse(places: Sequence[Path], out: Path) -> str:
    """Write figures, tables and page to ``out``, and return what came out, in short.

    Folders that are not finished or have no scores are left out and named, each in a sentence. Raises ``ValueError`` if none
    is left, or if one is named twice.
    """
    runs, left_out = read_runs(places)
    if not runs:
        raise ValueError("; ".join(left_out))
    from ns_data.compare.analysis_figures import draw_analysis  # matplotlib takes its time
    from ns_data.compare.report import write_figures

    found, notes = correlations(runs)
    notes = [*left_out, *caveats(runs), *notes]
    out.mkdir(parents=True, exist_ok=True)
    tables = [table for table in (correlation_table(runs, found), run_table(runs), class_table(runs)) if table.rows]
    for table in [*tables, weight_table(runs), point_table(runs)]:
        (out / f"{table.name}.csv").write_text(to_csv(table))
    pictures = write_figures(draw_analysis(runs, found), out)
    title = f"Scores of {runs[0].name}" if len(runs) == 1 else f"Scores of {len(runs)} runs"
    (out / "index.html").write_text(page(title, [FIRST, *notes], tables, pictures))
    return "\n".join([*notes, "", _short(tables[0]), f"report: {out / 'index.html'}"])


def read_runs(places: Sequence[Path]) -> tuple[list[ScoredRun], list[str]]:
    """The scored runs, told apart by name, and a sentence for each folder that is none."""
    doubled = [place for number, place in enumerate(places) if place.resolve() in [p.resolve() for p in places[:number]]]
    if doubled:
        raise ValueError(f"{doubled[0]} is named twice: name every run folder once")
    runs, left_out = [], []
    for place in places:
        try:
            runs.append(read_scored(place))
        except ValueError as error:
            left_out.append(str(error))
    return [run._replace(name=name) for run, name in zip(runs, panel_names(runs), strict=True)], left_out


def panel_names(runs: list[ScoredRun]) -> list[str]:
    """A run's name, or its pair of domains; where names repeat, with what tells the folders apart."""
    names = []
    for run in runs:
        pair = [run.settings.get(key) for key in ("source", "target")]
        names.append(" > ".join(map(str, pair)) if all(pair) else run.name)
    parts = [run.folder.resolve().parts for run in runs]
    longest = max(map(len, parts), default=0)
    padded = [(*part, *[""] * (longest - len(part))) for part in parts]
    differs = [place for place in range(longest) if len({part[place] for part in padded}) > 1]
    apart = ["/".join(filter(None, (part[place] for place in differs))) for part in padded]
    return [name if names.count(name) == 1 else f"{name} ({where})" for name, where in zip(names, apart, strict=True)]


def caveats(runs: list[ScoredRun]) -> list[str]:
    """What a reader must know of single runs."""
    notes = []
    for run in runs:
        weighting = run.settings.get("ns.weighting", "ns")
        if weighting not in ("ns", "own", "shuffled"):
            notes.append(f"{run.name} weighs by {weighting}, without scores of its own: every score is 1/m.")
        unseen = int((run.labels_N < 0).sum())
        if unseen:
            notes.append(f"{run.name}: {unseen} of {run.labels_N.size} samples never had a score, and are in no figure.")
        old = int(((run.epochs_N >= 0) & (run.epochs_N < len(run.lines) - 1)).sum())
        if old:
            notes.append(f"{run.name}: the last score of {old} samples is from before the last epoch, with its weight.")
    return notes


def _short(table: Table) -> str:
    """The first columns of a table, for a terminal."""
    return to_markdown(table._replace(columns=table.columns[:11], rows=[row[:11] for row in table.rows]))
