"""Hostile data sets: whatever they hold, no code of theirs runs (it would leave a marker file), and no bound is passed."""

import io
import json
import os
import pickle
import stat
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from ns_data.shards.dataset import ShardDataset
from ns_data.shards.decode import DECODERS, decode_image
from ns_data.shards.index import ShardError, index_shards, load_index
from ns_data.shards.writer import write_shards
from tests.shards.helpers import picture, tar_bytes

EVERY_DECODER = ["auto", *DECODERS]


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return open, (self.marker, "w")


@pytest.fixture
def marker(tmp_path):
    """A path that must not exist after the test."""
    path = tmp_path / "code-ran"
    yield path
    assert not path.exists()


def folder_with(tmp_path, *rows):
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train-0.tar").write_bytes(tar_bytes(rows))
    return folder


def test_the_bomb_works(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "here")))
    assert (tmp_path / "here").exists()


@pytest.mark.parametrize(
    "extension", ["pyd", "pkl", "pickle", "PYD", "pyd.gz", "x.pkl", "pth", "npy", "npz", "yaml", "cbor", "mp"]
)
def test_members_of_pickles_and_their_like_are_never_read(tmp_path, marker, extension):
    bomb = pickle.dumps(Bomb(marker))
    if extension == "pth":
        buffer = io.BytesIO()
        torch.save(Bomb(marker), buffer)
        bomb = buffer.getvalue()
    if extension == "npy":
        buffer = io.BytesIO()
        np.save(buffer, np.array([Bomb(marker)], object), allow_pickle=True)
        bomb = buffer.getvalue()
    if extension == "yaml":
        bomb = f"!!python/object/apply:builtins.open ['{marker}', w]".encode()
    folder = folder_with(tmp_path, ("a.jpg", picture(1)), ("a.cls", b"0"), (f"a.{extension}", bomb))
    index_shards(folder)
    assert ShardDataset(folder)[0][1] == 0


@pytest.mark.parametrize("label", ["pyd", "pkl", "pth", "npy"])
def test_a_pickle_as_label_is_text_that_is_no_class_id(tmp_path, marker, label):
    folder = folder_with(tmp_path, ("a.jpg", picture(1)), (f"a.{label}", pickle.dumps(Bomb(marker))))
    with pytest.raises(ShardError, match="is not a class id"):
        index_shards(folder, label=label)


@pytest.mark.parametrize("name", ["pipe:touch MARK", "train-0.tar::pipe:touch MARK", "$(touch MARK)", "`touch MARK`.tar"])
def test_names_are_names_and_no_commands(tmp_path, marker, name, monkeypatch):
    monkeypatch.setenv("GOPEN_REWRITE", f"{tmp_path}=pipe:touch {marker};")
    folder = tmp_path / name.replace("MARK", str(marker)).replace("/", "_")
    with pytest.raises(ShardError, match=r"holds no .tar shard|has no dataset.json"):
        index_shards(folder)
    folder.mkdir()
    (folder / "a-0.tar").write_bytes(tar_bytes([("a.jpg", picture(1)), ("a.cls", b"0")]))
    index_shards(folder)
    assert len(ShardDataset(folder)) == 1


@pytest.mark.parametrize("decoder", EVERY_DECODER)
def test_eps_behind_jpg_starts_no_ghostscript(tmp_path, marker, decoder, monkeypatch):
    fake = tmp_path / "bin" / "gs"
    fake.parent.mkdir()
    fake.write_text(f"#!/bin/sh\ntouch {marker}\n")
    fake.chmod(fake.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{fake.parent}{os.pathsep}{os.environ['PATH']}")
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    folder = folder_with(tmp_path, ("a.jpg", eps), ("a.cls", b"0"))
    index_shards(folder)
    with pytest.raises(ShardError, match=r"member a.jpg: not a readable JPEG, PNG, WEBP image"):
        ShardDataset(folder, decoder=decoder)[0]
    with pytest.raises(ValueError, match="sample 0: not a readable"):
        write_shards([(eps, 0)], tmp_path / "out", progress=False)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "PPM", "ICO"])
def test_other_formats_are_refused(kind):
    with pytest.raises(ValueError, match="not a readable"):
        decode_image(picture(1, kind=kind))


def png_of(width, height):
    """A tiny PNG that claims to be large."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def jpeg_of(width, height):
    data = bytearray(picture(1))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.parametrize("decoder", EVERY_DECODER)
@pytest.mark.parametrize(
    "data", [png_of(10_000, 8_000), png_of(60_000, 60_000), jpeg_of(20_000, 20_000)], ids=["80M", "3.6G", "400M"]
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bombs_are_refused_by_their_header(decoder, data):
    with pytest.raises(ValueError, match=r"larger than 67108864|decompression bomb|exceeds limit"):
        decode_image(data, decoder)


@pytest.mark.parametrize("key", ["../../../outside", "/tmp/outside", "a/../../b", "C:\\x"])
def test_keys_stay_keys(tmp_path, key):
    folder = folder_with(tmp_path, (f"{key}.jpg", picture(1)), (f"{key}.cls", b"0"))
    before = sorted(tmp_path.rglob("*"))
    index_shards(folder)
    assert ShardDataset(folder)[0][1] == 0
    new = {path.name for path in sorted(tmp_path.rglob("*")) if path not in before}
    assert new == {"dataset.json", "index.npy"}


def indexed(tmp_path):
    folder = folder_with(tmp_path, ("a.jpg", picture(1)), ("a.cls", b"0"), ("b.jpg", picture(2)), ("b.cls", b"1"))
    index_shards(folder)
    return folder


def test_a_pickled_index_is_refused(tmp_path, marker):
    folder = indexed(tmp_path)
    np.save(folder / "index.npy", np.array([Bomb(marker), Bomb(marker)], object), allow_pickle=True)
    with pytest.raises(ShardError, match="cannot be read"):
        ShardDataset(folder)
    (folder / "index.npy").write_bytes(pickle.dumps(Bomb(marker)))
    with pytest.raises(ShardError, match="cannot be read"):
        ShardDataset(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [("shard", 7), ("offset", 1 << 60), ("offset", 0), ("size", 0xFFFFFFFF), ("size", 20_000), ("label", -1), ("label", 99)],
)
def test_a_hostile_index_points_nowhere(tmp_path, field, value):
    folder = indexed(tmp_path)
    index = np.load(folder / "index.npy")
    index[field][1] = value
    np.save(folder / "index.npy", index)
    with pytest.raises(ShardError, match=r"points outside|beyond its 2 classes|changed after|missing"):
        ShardDataset(folder)[1]


def change(key, value):
    def edit(description):
        description[key] = value

    return edit


def change_shard(key, value):
    def edit(description):
        description["shards"][0][key] = value

    return edit


@pytest.mark.parametrize(
    "edit",
    [
        change_shard("name", "../secret.tar"),
        change_shard("name", "/etc/passwd"),
        change_shard("name", "..\\secret.tar"),
        change_shard("samples", 3),
        change_shard("__class__", "Bomb"),
        change("splits", {"train": {"first": -5, "samples": 2, "counts": [1, 1]}}),
        change("splits", {"train": {"first": 0, "samples": 10**12, "counts": [1, 1]}}),
        change("splits", []),
        change("format", 99),
        change("classes", None),
        change("shards", "x"),
    ],
)
def test_a_hostile_description_is_refused(tmp_path, edit):
    folder = indexed(tmp_path)
    (tmp_path / "secret.tar").write_bytes((folder / "train-0.tar").read_bytes())
    description = json.loads((folder / "dataset.json").read_text())
    edit(description)
    (folder / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(ShardError):
        load_index(folder)


@pytest.mark.parametrize("text", ["[" * 100_000, "{}", "[]", "null", "\x00", '{"format": 1e999}'])
def test_a_description_that_is_none(tmp_path, text):
    folder = indexed(tmp_path)
    (folder / "dataset.json").write_text(text)
    with pytest.raises(ShardError):
        load_index(folder)


def test_the_package_never_unpickles():
    """No call of ours loads a pickle, evaluates text or starts a shell."""
    banned = (
        "pickle.load(",
        "pickle.loads(",
        "allow_pickle=True",
        "weights_only=False",
        "shell=True",
        "yaml.load(",
        "os.system",
        "xdecode",
    )
    for path in (Path(__file__).parents[2] / "ns_data" / "shards").rglob("*.py"):
        text = path.read_text()
        assert not [word for word in banned if word in text], path
