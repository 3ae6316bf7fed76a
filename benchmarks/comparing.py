"""What a comparison costs beside its runs, and how long a report takes.

    python benchmarks/comparing.py [--folder comparisons/benchmark] [--no-write]

Runs the documented part of digits_lt.yaml (eight methods, three seeds, tuned) as a user does, in ten minutes on two cores.
"Harness" is what the command took beyond its runs, in percent of them; a slot that stands empty at the end counts. Then the
report is made of 500 runs: copies of these under other names, their accuracies moved a little.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from toy import RESULTS, machine

from ns_data.compare.report import write_report
from ns_data.compare.results import MANIFEST

ROOT = Path(__file__).parent.parent
WORDS = ["seeds=[2024,2025,2026]", "only=[ns_lf,cbs,logit_adjustment]"]
METHODS, SEEDS = 25, 20  # of the large report


def run_comparison(folder: Path) -> tuple[float, list[float]]:
    """Seconds of the whole command, and of each of its runs."""
    command = [sys.executable, "-m", "ns_data.cli", "compare", "configs/compare/digits_lt.yaml", f"folder={folder.resolve()}"]
    began = time.perf_counter()
    done = subprocess.run([*command, *WORDS], cwd=ROOT, capture_output=True, text=True, check=True)
    return time.perf_counter() - began, [float(s) for s in re.findall(r"balanced +[\d.]+%  ([\d.]+) s", done.stdout)]


def make_500_runs(folder: Path, out: Path) -> int:
    """A comparison of many methods and seeds from the runs of a small one."""
    shutil.rmtree(out, ignore_errors=True)
    manifest = json.loads((folder / MANIFEST).read_text())
    rng = np.random.default_rng(0)
    baseline, *others = manifest["methods"]
    seeds = list(range(1, SEEDS + 1))
    entries = [baseline]
    for number in range(METHODS - 1):
        like = others[number % len(others)]
        entries.append({**like, "name": f"{like['name']}-{number}", "control_of": None, "control": None})
    for entry in entries:
        source = folder / "runs" / entry["name"].split("-")[0] / str(manifest["seeds"][0])
        for seed in seeds:
            place = out / "runs" / entry["name"] / str(seed)
            place.mkdir(parents=True)
            config = re.sub(r"^seed: \d+$", f"seed: {seed}", (source / "config.yaml").read_text(), flags=re.MULTILINE)
            (place / "config.yaml").write_text(config)
            shutil.copy(source / "done", place / "done")
            lines = [json.loads(line) for line in (source / "metrics.jsonl").read_text().splitlines()]
            for line in lines:
                for metric in ("accuracy", "balanced_accuracy"):
                    line[metric] *= 1 - 0.02 * rng.random()
            (place / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (out / MANIFEST).write_text(json.dumps({**manifest, "seeds": seeds, "methods": entries}))
    return len(entries) * len(seeds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("comparisons/benchmark"))
    parser.add_argument("--no-write", action="store_true")
    args = parser.parse_args()
    shutil.rmtree(args.folder, ignore_errors=True)
    whole, runs = run_comparison(args.folder)
    slots = os.cpu_count() or 1
    alone = sum(runs) / slots
    large = args.folder.with_name(args.folder.name + "-large")
    count = make_500_runs(args.folder, large)
    report = []
    for _ in range(3):
        began = time.perf_counter()
        write_report(large)
        report.append(time.perf_counter() - began)
    what = f"`configs/compare/digits_lt.yaml {' '.join(WORDS)}`: {len(runs)} runs, {slots} at a time"
    rows = [
        ("what", "measured", "limit"),
        ("---", "---", "---"),
        (what, f"{whole / 60:.1f} min", "15 min"),
        ("of which the harness: planning, starting, report", f"{100 * (whole / alone - 1):.1f} % of the runs", "5 %"),
        ("a run, median", f"{statistics.median(runs):.1f} s", "12 s"),
        (f"a report of {count} runs, median of {len(report)}", f"{statistics.median(report):.1f} s", "20 s"),
    ]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    text = f"# What a comparison costs beside its runs\n\n`python benchmarks/comparing.py` on {machine()}.\n\n{table}\n"
    print(text)
    if not args.no_write:
        (RESULTS / "comparing.md").write_text(text)


if __name__ == "__main__":
    main()
