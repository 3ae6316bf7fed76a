"""The `ns-data` command, in process and as users start it."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from ns_data.cli import COMMANDS, main
from ns_data.shards.dataset import ShardDataset
from ns_data.shards.sources import SOURCES
from tests.shards.helpers import members, picture, tar_bytes


@pytest.fixture
def digits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["shards", "digits", "imbalance=50"]) == 0
    return tmp_path / "data" / "digits-imbalance=50"


def test_shards_inspect_verify(digits, capsys):
    assert main(["shards", "digits", f"out={digits}", "imbalance=50"]) == 0
    assert capsys.readouterr().out.endswith("test 297, train 417 samples of 10 classes in 2 shards\n")
    assert main(["inspect", str(digits)]) == 0
    page = capsys.readouterr().out
    assert "417 samples, 10 classes, imbalance factor 50" in page
    assert "0      150 ########################################" in page
    assert "height x width: 8x8 / 8x8 / 8x8" in page
    assert np.asarray(Image.open(digits / "classes.png")).std() > 0
    assert Image.open(digits / "composites.png").size == (4 * 132, 3 * 132)
    assert main(["verify", str(digits)]) == 0
    shard = digits / "train-000000.tar"
    data = bytearray(shard.read_bytes())
    data[600] ^= 1
    shard.write_bytes(bytes(data))
    assert main(["verify", str(digits)]) == 1
    assert "train-000000.tar: its bytes are not those that were written" in capsys.readouterr().out


def test_the_table_of_groups_by_hand(tmp_path, capsys):
    """Three of one class and one of another: a pair is mixed with probability 2 * 3/4 * 1/4, one mixed pair fits."""
    rows = [
        row for i, label in enumerate((0, 0, 0, 1)) for row in ((f"{i}.jpg", picture(i)), (f"{i}.cls", str(label).encode()))
    ]
    (tmp_path / "train-0.tar").write_bytes(tar_bytes(rows))
    assert main(["index", str(tmp_path), "classes=ant,bee"]) == 0
    assert main(["inspect", str(tmp_path), f"out={tmp_path / 'pictures'}"]) == 0
    pairs = next(line.split() for line in capsys.readouterr().out.splitlines() if line.split()[:1] == ["2"])
    assert pairs == ["2", "62.5", "%", "62.50", "%", "2", "(50.0", "%)"]
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["classes.png", "composites.png"]


def test_index_in_place_and_digests(tmp_path, capsys):
    (tmp_path / "train-0.tar").write_bytes(tar_bytes(members(0, 10)))
    assert main(["index", str(tmp_path)]) == 0
    assert main(["verify", str(tmp_path)]) == 1
    assert "1 shards have no digest" in capsys.readouterr().out
    assert main(["index", str(tmp_path), "digest=true"]) == 0
    assert main(["verify", str(tmp_path)]) == 0
    (tmp_path / "train-1.tar").write_bytes(b"")
    assert main(["index", str(tmp_path)]) == 2
    assert capsys.readouterr().err.endswith("train-1.tar: is empty\n")


def test_dashed_options_reach_the_writer(tmp_path):
    for name in ("a", "b"):
        for i in range(4):
            path = tmp_path / "in" / name / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(i, (60, 120)))
    arguments = [
        "shards",
        "folder",
        "--path",
        str(tmp_path / "in"),
        "--max-side",
        "30",
        "--quality=80",
        f"out={tmp_path / 'out'}",
    ]
    assert main([*arguments, "progress=false", "test_share=0.25"]) == 0
    assert ShardDataset(tmp_path / "out", "train")[0][0].shape == (3, 15, 30)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["shard", "digits"], "unknown command 'shard': did you mean 'shards'"),
        (["shards"], "name a data source: digits"),
        (["shards", "digit"], "unknown data source 'digit': did you mean 'digits'"),
        (["shards", "digits", "imbalanse=3"], "did you mean 'imbalance'"),
        (["shards", "digits", "imbalance"], "'imbalance' is not an option: write key=value"),
        (["shards", "folder"], "data source 'folder' needs path="),
        (["inspect"], "name the folder"),
        (["inspect", "nothing/here"], "has no dataset.json"),
        (["verify", "x", "digest=1"], "unknown option 'digest'"),
        (["index", "nothing/here"], "holds no .tar shard"),
    ],
)
def test_errors_are_one_line(arguments, message, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_help(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    for name in COMMANDS:
        assert main([name, "--help"]) == 0
        assert f"ns-data {name}" in capsys.readouterr().out
    for source in SOURCES:
        assert main(["shards", source, "help"]) == 0
        assert f"{source}: " in capsys.readouterr().out


def test_as_a_module():
    run = subprocess.run([sys.executable, "-m", "ns_data.cli", "shards", "nothing"], capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr.startswith("ns-data: unknown data source 'nothing'")


def test_compare_answers_for_itself(capsys):
    assert main(["compare", "--help"]) == 0
    assert "ns-data compare CONFIG.yaml" in capsys.readouterr().out
    assert main(["compare", "nowhere.yaml"]) == 2
    assert "nowhere.yaml" in capsys.readouterr().err
