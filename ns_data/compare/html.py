"""One self-contained page: tables that sort and filter, figures inline, nothing from the network.

``index.html#filter=ns&sort=results:2`` opens it filtered to "ns" and with the table ``results`` sorted by its third column
(``-2``: downwards).
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from html import escape
from typing import Any

from ns_data.compare.formats import Table, show
from ns_data.compare.statistics import MeanStd

# No script but the one below, no style but this page's, pictures inline: the browser itself refuses everything else.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --mark: #4a7dff; }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 74rem; margin: 0 auto; padding: 1rem 1.25rem 4rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .3rem; }
.first { border-left: 4px solid var(--mark); padding: .5rem .8rem; background: #4a7dff1a; }
nav { position: sticky; top: 0; z-index: 1; padding: .6rem 0; background: Canvas; border-bottom: 1px solid var(--line); }
nav a { margin-right: .7rem; white-space: nowrap; }
input { font: inherit; padding: .25rem .5rem; width: 16rem; margin-right: 1rem; }
.note { opacity: .75; margin: .2rem 0 .5rem; } .wide { overflow-x: auto; max-height: 36rem; overflow-y: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .22rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th.text, td.text { text-align: left; } td.long { white-space: normal; min-width: 12rem; }
th { position: sticky; top: 0; background: Canvas; }
th button { font: inherit; font-weight: 600; color: inherit; border: 0; background: none; cursor: pointer; padding: 0; }
th[aria-sort=ascending] button::after { content: " \\25B2"; } th[aria-sort=descending] button::after { content: " \\25BC"; }
tr:hover td { background: #8881; } img { max-width: 100%; background: white; } figure { margin: 1rem 0; }
"""

_SCRIPT = """
"use strict";
const tables = [...document.querySelectorAll("table")];
function key(cell) {
  const value = cell.dataset.value;
  return value === undefined ? cell.textContent.toLowerCase() : value === "" ? NaN : +value;
}
function order(a, b) {
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
  return typeof a === "number" ? a - b : a.localeCompare(b);
}
function sort(table, column, down) {
  const missing = row => Number.isNaN(key(row.cells[column]));
  const rows = [...table.tBodies[0].rows];
  rows.sort((r, s) => missing(r) || missing(s) ? missing(r) - missing(s)
    : (down ? -1 : 1) * order(key(r.cells[column]), key(s.cells[column])));
  table.tBodies[0].append(...rows);
  [...table.tHead.rows[0].cells].forEach((head, k) => k === column
    ? head.setAttribute("aria-sort", down ? "descending" : "ascending") : head.removeAttribute("aria-sort"));
}
function filter(text) {
  const words = text.toLowerCase().split(/\\s+/).filter(Boolean);
  for (const table of tables) {
    let shown = 0;
    for (const row of table.tBodies[0].rows) {
      row.hidden = !words.every(word => row.textContent.toLowerCase().includes(word));
      shown += !row.hidden;
    }
    table.parentElement.previousElementSibling.querySelector("output").textContent =
      words.length ? ` ${shown} of ${table.tBodies[0].rows.length} rows shown.` : "";
  }
}
for (const table of tables)
  [...table.tHead.rows[0].cells].forEach((head, column) => head.querySelector("button").addEventListener("click", () =>
    sort(table, column, head.getAttribute("aria-sort") === "ascending" ||
      (head.getAttribute("aria-sort") === null && !head.classList.contains("text")))));
const box = document.querySelector("input");
box.addEventListener("input", () => filter(box.value));
const wanted = new URLSearchParams(location.hash.slice(1));
if (wanted.has("sort")) {
  const [name, column] = wanted.get("sort").split(":");
  const table = tables.find(table => table.id === name), number = Math.abs(+column);
  if (table && number < table.tHead.rows[0].cells.length) sort(table, number, column.startsWith("-"));
}
box.value = wanted.get("filter") || "";
filter(box.value);
"""


def page(name: str, notes: list[str], tables: list[Table], pictures: Mapping[str, str]) -> str:
    """The page's text. ``notes``: the first is set apart; ``pictures``: SVG texts by name."""
    links = " ".join(f'<a href="#at-{escape(table.name)}">{escape(table.title)}</a>' for table in tables)
    figures = "".join(
        f'<figure><figcaption>{escape(title)}</figcaption><img alt="{escape(title)}" '
        f'src="data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"></figure>'
        for title, svg in pictures.items()
    )
    first, *rest = notes
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width"><title>{escape(name)}</title><style>{_STYLE}</style></head><body>
<p class="first">{escape(first)}</p>
<h1>{escape(name)}</h1>
<ul>{"".join(f"<li>{escape(note)}</li>" for note in rest)}</ul>
<nav><input type="search" placeholder="filter rows" aria-label="filter rows">{links}<a href="#at-figures">Figures</a></nav>
{"".join(map(_section, tables))}
<h2 id="at-figures">Figures</h2>
{figures}
<script>{_SCRIPT}</script></body></html>
"""


def _section(table: Table) -> str:
    texts = [any(isinstance(row[k], str) for row in table.rows) for k in range(len(table.columns))]
    head = "".join(
        f'<th{" class=text" if text else ""}><button type="button">{escape(column)}</button></th>'
        for column, text in zip(table.columns, texts, strict=True)
    )
    body = "".join(f"<tr>{''.join(map(_cell, row, texts))}</tr>\n" for row in table.rows)
    name = escape(table.name)
    return (
        f'<h2 id="at-{name}">{escape(table.title)}</h2><p class="note">{escape(table.note)}<output></output></p>\n'
        f'<div class="wide"><table id="{name}"><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>\n'
    )


def _cell(cell: Any, text: bool) -> str:
    """A cell; numbers carry their full value for sorting."""
    if text:
        return f'<td class="text{" long" if len(show(cell)) > 40 else ""}">{escape(show(cell))}</td>'
    value = cell.mean if isinstance(cell, MeanStd) else cell
    known = value is not None and math.isfinite(value)
    return f'<td data-value="{value if known else ""}">{escape(show(cell))}</td>'
