"""All pairs of domains under several methods and seeds, and a table of the paper's form: one column for each pair.

    python examples/sfda_table.py [TABLE.yaml] [key=value ...] [--help | --dry-run]

Runs that are done are skipped and interrupted ones go on; the table is written anew after each run. Methods and pairs share the
model of a source domain and seed, so that their differences are those of the adaptation.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sfda_config import SfdaConfig, load_sfda
from sfda_shot import run_pair

from ns_data.choose import unknown
from ns_data.compare.config import method_changes, words
from ns_data.compare.formats import Table, to_csv, to_markdown
from ns_data.compare.statistics import MeanStd, compare_paired, mean_std
from ns_data.training.command import run_command
from ns_data.training.config import help_text, setting
from ns_data.training.layers import merge_layers, read_words, read_yaml
from ns_data.training.run import RunFolder

DEFAULT_TABLE = Path(__file__).parents[1] / "configs" / "sfda" / "table_digits.yaml"
SOURCE_ONLY = "source model"


@dataclass
class TableConfig:
    """A table: base config, methods, seeds."""

    base: str = setting("", "config file of every run, relative to this one")
    folder: str | None = setting(None, "where runs and table go; by default runs/sfda/NAME of this file")
    seeds: list[int] = setting([2024, 2025, 2026], "seeds of every pair and method")
    pairs: list[str] = setting([], "pairs to run, such as [A>C], by the domains' initials; [] runs all")
    set: dict[str, Any] = setting({}, "settings of all runs")
    methods: dict[str, Any] = setting({}, "what each method changes")


class Run(NamedTuple):
    method: str
    pair: str
    config: SfdaConfig


def main(arguments: list[str]) -> None:
    dashed = [word for word in arguments if word.startswith("-")]
    given = [word for word in arguments if not word.startswith("-")]
    for word in dashed:
        if word not in ("--help", "--dry-run"):
            raise ValueError(f"unknown option {word}: there are --help, --dry-run; settings are written key=value")
    if "--help" in dashed:
        print(f"{__doc__}\nWithout TABLE it is configs/sfda/{DEFAULT_TABLE.name}. Settings:\n\n{help_text(TableConfig)}")
        return
    path = Path(given.pop(0)) if given and "=" not in given[0] else DEFAULT_TABLE
    table = load_table(path, given)
    runs = plan(table, path)
    done = [RunFolder(str(run.config.run_dir)).summary is not None for run in runs]
    print(f"{table.folder}: {len(runs)} runs, {sum(done)} of them done")
    if "--dry-run" in dashed:
        for run, is_done in zip(runs, done, strict=True):
            print(f"  {run.method:<16} {run.pair}  seed {run.config.seed}  {'done' if is_done else 'to do'}")
        return
    write_table(table, runs)
    for run, is_done in zip(runs, done, strict=True):
        if not is_done or run.config.fresh:
            print(f"{run.method}, {run.pair}, seed {run.config.seed}")
            run_pair(run.config)
            write_table(table, runs)
    print("\n" + Path(str(table.folder), "table.md").read_text(), end="")


def load_table(path: Path, given: list[str]) -> TableConfig:
    """Read a table file and ``key=value`` changes of it; ``ValueError`` in one sentence for what does not fit."""
    if not path.is_file():
        raise ValueError(f"there is no table file {path}")
    table = merge_layers(TableConfig, [(str(path), read_yaml(path)), *read_words(given, "seeds=[2024]")])
    if not table.base or not table.methods:
        raise ValueError(f"{path} needs a base, the config file of every run, and methods")
    if not table.seeds or len(set(table.seeds)) < len(table.seeds):
        raise ValueError(f"{path}: seeds must be different numbers, at least one, got {table.seeds}")
    table.folder = table.folder or str(Path("runs", "sfda", path.stem))
    return table


def plan(table: TableConfig, path: Path) -> list[Run]:
    """Every run of the table, seed by seed, in the order in which they are made."""
    base = load_sfda(path.parent / table.base)
    pairs = pair_names(base.data.domains)
    for pair in table.pairs:
        if pair not in pairs:
            raise ValueError(unknown(pair, pairs, "pair of domains"))
    configs = {method: method_config(table, path, method) for method in table.methods}
    runs = []
    for seed, (pair, (source, target)), method in itertools.product(table.seeds, pairs.items(), table.methods):
        if not table.pairs or pair in table.pairs:
            own = {"source": source, "target": target, "seed": seed, "name": method}
            folder = f"{table.folder}/{method}/{source}-{target}/{seed}"
            runs.append(Run(method, pair, dataclasses.replace(configs[method], **own, run_dir=folder)))
    return runs


def method_config(table: TableConfig, path: Path, method: str) -> SfdaConfig:
    """The base with what the table sets for all methods, and what the method changes."""
    changes = {**method_changes("set", table.set), **method_changes(method, table.methods[method])}
    try:
        return load_sfda(path.parent / table.base, words({**changes, "sources_dir": f"{table.folder}/sources"}))
    except ValueError as error:
        raise ValueError(f"method {method}: {error}") from None


def pair_names(domains: list[str]) -> dict[str, tuple[str, str]]:
    """The ordered pairs of domains by their columns' names: A>C for Art and Clipart.

    >>> list(pair_names(["Art", "Clipart"]).items())
    [('A>C', ('Art', 'Clipart')), ('C>A', ('Clipart', 'Art'))]
    """
    short = {domain: domain[0].upper() for domain in domains}
    if len(set(short.values())) < len(domains):
        short = {domain: domain for domain in domains}
    return {f"{short[a]}>{short[b]}": (a, b) for a, b in itertools.permutations(domains, 2)}


def write_table(table: TableConfig, runs: list[Run]) -> None:
    """table.md and table.csv from the run folders that are done."""
    accuracies: dict[str, dict[str, dict[int, float]]] = {method: {} for method in (SOURCE_ONLY, *table.methods)}
    done = 0
    for method, pair, config in runs:
        summary = RunFolder(str(config.run_dir)).summary
        if summary is not None:
            done += 1
            accuracies[method].setdefault(pair, {})[config.seed] = 100 * summary["accuracy"]
            accuracies[SOURCE_ONLY].setdefault(pair, {})[config.seed] = 100 * summary["source_only_accuracy"]
    folder = Path(str(table.folder))
    folder.mkdir(parents=True, exist_ok=True)
    made = make_table(accuracies, list(dict.fromkeys(run.pair for run in runs)), next(iter(table.methods)))
    if done < len(runs):
        made = made._replace(note=f"{done} of {len(runs)} runs are done. {made.note}")
    (folder / "table.csv").write_text(to_csv(made))
    (folder / "table.md").write_text(f"# {made.title}\n\n{made.note}\n\n{to_markdown(made)}")


def make_table(accuracies: Mapping[str, Mapping[str, Mapping[int, float]]], pairs: list[str], first: str) -> Table:
    """Rows of methods, columns of pairs and their average, from percentages by method, pair and seed.

    The average is over the pairs, for each seed that has all of them, and stands there as mean and deviation over seeds. The
    last column pairs these averages with those of method ``first``, seed by seed.
    """
    rows = []
    averages = {method: dict(_averages(by_pair, pairs)) for method, by_pair in accuracies.items()}
    for method, by_pair in accuracies.items():
        cells: list[Any] = [mean_std(list(by_pair[pair].values())) if pair in by_pair else None for pair in pairs]
        ours, theirs = averages[method], averages.get(first, {})
        against: MeanStd | None = None
        if method != first and set(ours) & set(theirs):
            against = mean_std(compare_paired(ours, theirs).differences)
        rows.append([method, *cells, mean_std(list(ours.values())) if ours else None, against])
    note = f"Accuracy on the target domain in percent, last epoch, mean ± deviation (number of seeds); differences to {first}."
    columns = ["method", *pairs, "average", f"average - {first}"]
    return Table("sfda", "Source-free domain adaptation", columns, rows, note)


def _averages(by_pair: Mapping[str, Mapping[int, float]], pairs: list[str]) -> Iterator[tuple[int, float]]:
    seeds = [set(by_pair.get(pair, {})) for pair in pairs]
    for seed in sorted(set.intersection(*seeds)):
        yield seed, sum(by_pair[pair][seed] for pair in pairs) / len(pairs)


if __name__ == "__main__":
    run_command(main)
