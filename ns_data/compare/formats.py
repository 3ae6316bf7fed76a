"""Formats: a table as CSV with full numbers, as Markdown and as LaTeX."""

from __future__ import annotations

import csv
import io
import math
from typing import Any, NamedTuple

from ns_data.compare.statistics import MeanStd


class Table(NamedTuple):
    """``note`` stands under the title. A cell is a text, a number, a ``MeanStd`` or ``None``."""

    name: str
    title: str
    columns: list[str]
    rows: list[list[Any]]
    note: str = ""


def show(cell: Any) -> str:
    """A cell for people.

    >>> show(3.14159), show(0.00012), show(None), show(float("nan"))
    ('3.14', '0.00012', '', '')
    """
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if isinstance(cell, float) and not isinstance(cell, bool):
        return f"{cell:.2f}" if abs(cell) >= 0.1 or cell == 0 else f"{cell:.2g}"
    return str(cell)


def to_csv(table: Table) -> str:
    """Full numbers; a ``MeanStd`` becomes the three columns mean, std and n."""
    wide = [any(isinstance(row[k], MeanStd) for row in table.rows) for k in range(len(table.columns))]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        [
            name
            for c, w in zip(table.columns, wide, strict=True)
            for name in ([f"{c} {part}" for part in MeanStd._fields] if w else [c])
        ]
    )
    for row in table.rows:
        cells: list[Any] = []
        for cell, w in zip(row, wide, strict=True):
            cells += (list(cell) if isinstance(cell, MeanStd) else ["", "", ""]) if w else [cell]
        writer.writerow(["" if isinstance(cell, float) and math.isnan(cell) else cell for cell in cells])
    return out.getvalue()


def to_markdown(table: Table) -> str:
    lines = [table.columns, ["---"] * len(table.columns), *([show(cell) for cell in row] for row in table.rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}
_LATEX |= {sign: "\\" + sign for sign in "&%$#_{}"}


def to_latex(table: Table) -> str:
    """A ``tabular`` for the booktabs package."""
    escape = str.maketrans(_LATEX)
    lines = [[show(cell).translate(escape) for cell in row] for row in table.rows]
    head = " & ".join(column.translate(escape) for column in table.columns)
    body = "\n".join(" & ".join(line) + r" \\" for line in lines)
    texts = [any(isinstance(row[k], str) for row in table.rows) for k in range(len(table.columns))]
    form = "".join("l" if text else "r" for text in texts)
    top = f"% {table.title}\n\\begin{{tabular}}{{{form}}}\n\\toprule\n{head} \\\\\n\\midrule"
    return f"{top}\n{body}\n\\bottomrule\n\\end{{tabular}}\n"
