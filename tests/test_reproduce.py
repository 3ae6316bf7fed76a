"""docs/reproduce.md: its commands name what exists, and its stand-ins run, shortened as the comment beside each says."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ns_data.cli import COMMANDS
from ns_data.compare.config import load_comparison, written_methods
from ns_data.training.config import load_config

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "reproduce.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?):.*?\n(.*?)(?=^## |\Z)", TEXT, re.S | re.M))
BLOCKS = [
    pytest.param(block, id=f"{title}, {number}")
    for title, text in SECTIONS.items()
    for number, block in enumerate(re.findall(r"^```sh stand-in\n(.*?)^```", text, re.S | re.M), 1)
]


def lines_of(block):
    """(command, what shortens it) of every line of a stand-in."""
    return [tuple(part.strip() for part in line.split("# shortest:")) for line in block.splitlines()]


def commands_of(section):
    """Every command of a section: those of its table, and its stand-ins with and without what shortens them."""
    found = [c for c in re.findall(r"`([^`\n]+)`", SECTIONS[section]) if c.startswith(("python ", "ns-data "))]
    for block in re.findall(r"^```sh stand-in\n(.*?)^```", SECTIONS[section], re.S | re.M):
        found += [f"{command} {short}" for command, short in lines_of(block)]
    return found


def test_every_table_and_figure_has_its_row_and_every_section_its_stand_in():
    numbers = {"Table": [], "Figure": []}
    for title in SECTIONS:
        kind, first, last = re.fullmatch(r"(Table|Figure)s? (\d+)(?: (?:to|and) (\d+))?", title).groups()
        numbers[kind] += range(int(first), int(last or first) + 1)
    assert numbers == {"Table": [1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12, 13], "Figure": [2, 3, 4, 5, 6]}
    for title, text in SECTIONS.items():
        for needed in ("Data: ", "Cost", "Open in the paper", "| row | command |", "```sh stand-in"):
            assert needed in text or (needed, title) == ("Open in the paper", "Tables 12 and 13"), (title, needed)
        for number in numbers["Figure"] if title.startswith("Figure") else ():
            assert f"| Figure {number} | " in text
        assert len(commands_of(title)) >= 3, title
    assert not re.findall(r"^```(?!sh stand-in$|$)", TEXT, re.M)  # no block that is not run


def test_every_stand_in_says_how_it_is_shortened():
    lines = [line for block in BLOCKS for line in lines_of(block.values[0])]
    assert len(lines) > 15
    for line in lines:
        assert len(line) == 2, line
        assert line[0].startswith(("python ", "ns-data ")), line


@pytest.mark.parametrize("section", SECTIONS)
def test_every_command_names_what_exists(section):
    for command in commands_of(section):
        program, what, *words = shlex.split(command)
        named = [word for word in (what, *words) if re.match(r"(configs|examples|benchmarks)/", word)]
        for word in named:
            assert (ROOT / word).is_file(), command
        settings = [word for word in words if "=" in word]
        if what == "train.py":
            config = next((word for word in words if word.endswith(".yaml")), "configs/digits_lt.yaml")
            load_config(ROOT / config, settings)
        elif program == "ns-data":
            assert what in COMMANDS, command
            if what == "compare":
                comparison = load_comparison(ROOT / named[0], settings)
                assert set(comparison.only) <= {method.name for method in written_methods(comparison)}
        else:
            assert named[0] == what, command


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS)
def test_stand_ins_run(block, tmp_path):
    """In a folder of their own, in order, as a reader of the page would type them."""
    for name in ("configs", "examples", "benchmarks", "train.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    python = {"python": [sys.executable], "ns-data": [sys.executable, "-m", "ns_data.cli"]}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for command, short in lines_of(block):
        program, *words = shlex.split(f"{command} {short}")
        done = subprocess.run([*python[program], *words], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command} {short}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        assert done.stdout.strip(), command
        for word in words:
            if word.startswith("run_dir="):
                assert (tmp_path / word.removeprefix("run_dir=") / "done").is_file(), command
            elif word.startswith("out="):
                assert (tmp_path / word.removeprefix("out=")).exists(), command
        page = re.search(r"^report: (.+index.html)$", done.stdout, re.M)
        assert bool(page) == (program == "ns-data" and words[0] in ("compare", "report")), done.stdout
        assert page is None or (tmp_path / page[1]).is_file()
