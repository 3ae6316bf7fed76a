import runpy
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_own_loop_learns(capsys):
    example = runpy.run_path(str(EXAMPLES / "own_loop.py"))
    assert example["main"](epochs=3) > 0.85
    assert "'ungrouped': 0" in capsys.readouterr().out
