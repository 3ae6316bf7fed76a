"""The order of the house: who may import whom, what `import ns_data` needs, and that the docstrings' examples are true."""

import ast
import doctest
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "ns_data"

# A module imports only from modules named before it.
ORDER = [
    "choose",
    "layout",
    "stats",
    "dealing",
    "grouping",
    "drawing",
    "locality",
    "sampling",
    "plan",
    "batching",
    "collate",
    "augment",
    "shards",
    "scoring",
    "losses",
    "models",
    "training",
    "compare",
    "cli",
]
MODULES = sorted(".".join(path.relative_to(ROOT).with_suffix("").parts) for path in PACKAGE.rglob("*.py"))


def imported_rooms(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        yield from (name.split(".")[1] for name in names if name.startswith("ns_data."))


@pytest.mark.parametrize("module", [m for m in MODULES if m != "ns_data.__init__"])
def test_a_module_imports_only_from_lines_above_it(module):
    path = ROOT / Path(*module.split(".")).with_suffix(".py")
    room = module.split(".")[1]
    assert room in ORDER
    for other in imported_rooms(path):
        assert ORDER.index(other) <= ORDER.index(room), f"{module} imports {other}"


@pytest.mark.parametrize("module", [m.removesuffix(".__init__") for m in MODULES])
def test_examples_in_docstrings(module):
    imported = importlib.import_module(module)
    assert doctest.testmod(imported).failed == 0
    assert imported.__doc__


def test_every_public_name_can_be_imported():
    import ns_data

    for name in ns_data.__all__:
        assert getattr(ns_data, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ns_data.nothing


CORE = """
import sys

class Missing:
    blocked = {"torchvision", "webdataset", "omegaconf", "sklearn", "scipy", "matplotlib", "tqdm", "PIL", "pandas"}
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.blocked:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
import torch
import ns_data
from ns_data import GroupingBatchSampler, NSCollator, NSScorer, ScoreLedger, ShuffleSampler, ns_weights

print(ns_data.__file__)
labels = [0, 1, 2, 3] * 4
data = [(torch.randn(1, 8, 8), label) for label in labels]
sampler = GroupingBatchSampler(ShuffleSampler(labels), 8, labels=labels, layout="2x2", grouping="class_mixed")
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4))
scorer = NSScorer(model)
for batch in torch.utils.data.DataLoader(data, batch_sampler=sampler, collate_fn=NSCollator("2x2")):
    print(ns_weights(scorer(batch.images, batch.labels, batch.groups), sigma=0.5).sum().item())
"""


def test_core_needs_torch_and_numpy_only():
    """Sampling, collating and scoring in a process where every other library is missing."""
    result = subprocess.run([sys.executable, "-c", CORE], capture_output=True, text=True, check=True, cwd=ROOT)
    assert [round(float(line), 4) for line in result.stdout.split()[1:]] == [6.0, 6.0]


@pytest.mark.slow
def test_a_wheel_scores_where_only_torch_and_numpy_are(tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("ns_data-*.whl")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", tmp_path / "site", wheel], check=True
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    result = subprocess.run(
        [sys.executable, "-c", CORE], capture_output=True, text=True, check=True, cwd=tmp_path, env=environment
    )
    place, *sums = result.stdout.split()
    assert place.startswith(str(tmp_path / "site"))
    assert [round(float(line), 4) for line in sums] == [6.0, 6.0]
    assert (tmp_path / "site" / "ns_data" / "py.typed").is_file()


def test_nothing_of_the_machine_is_written_down():
    """No absolute home or work paths in what is shipped."""
    for path in [*PACKAGE.rglob("*.py"), *ROOT.glob("*.md"), *ROOT.glob("configs/**/*.yaml"), *ROOT.glob("docs/**/*.md")]:
        text = path.read_text()
        assert "/work/" not in text, path
        assert "/root/" not in text, path
