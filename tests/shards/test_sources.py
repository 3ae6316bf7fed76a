"""Every source on small generated inputs in the formats that users have, read back through the index."""

import csv
import io
import json
import os
import pickle
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from ns_data.shards.dataset import ShardDataset
from ns_data.shards.index import ShardError
from ns_data.shards.sources import SOURCES, convert, folder_name, prepare
from ns_data.shards.sources.cifar import long_tail_rows, read_cifar_pickle
from ns_data.shards.verify import verify_shards
from ns_data.stats import ClassStats
from tests.shards.helpers import picture, tar_bytes

GOLDENS = json.loads((Path(__file__).parents[1] / "data" / "cifar_lt.json").read_text())


def put(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def write(source, tmp_path, **options):
    out = tmp_path / "out"
    convert(source, out, {"progress": False, **options})
    assert not verify_shards(out).problems
    return out


def extras(folder, split):
    """(payload, label, JSON member) of every sample, by the standard library."""
    rows = {}
    for path in sorted(folder.glob(f"{split}-*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, extension = member.name.split(".", 1)
                rows.setdefault(key, {})[extension] = tar.extractfile(member).read()
    found = []
    for row in rows.values():
        payload = next(data for extension, data in row.items() if extension not in ("cls", "json"))
        found.append((payload, int(row["cls"]), json.loads(row.get("json", b"{}"))))
    return found


@pytest.mark.parametrize("layout", ["one folder for each class", "train and test", "train and val"])
def test_folder(tmp_path, layout):
    split = {"train and test": "test", "train and val": "val"}.get(layout)
    tops = ("",) if split is None else ("train", split)
    for top in tops:
        for label, name in enumerate(("ant", "bee", "cat")):
            for i in range(10):
                suffix = ("jpg", "JPEG", "png")[i % 3]
                kind = "PNG" if suffix == "png" else "JPEG"
                put(tmp_path / "in" / top / name / f"{i}.{suffix}", picture(100 * label + i, kind=kind))
            put(tmp_path / "in" / top / name / "notes.txt", b"no image")
    out = write("folder", tmp_path, path=tmp_path / "in")
    train, test = ShardDataset(out, "train"), ShardDataset(out, "test")
    assert train.classes == ["ant", "bee", "cat"]
    assert len(train) + len(test) == 30 * len(tops)
    assert ClassStats.from_labels(test.labels).counts.tolist() == [1, 1, 1] if split is None else [10, 10, 10]
    for name in ("train", "test"):
        root = tmp_path / "in" / {"train": tops[0], "test": tops[-1]}[name]
        for data, label, extra in extras(out, name):
            assert data == (root / extra["name"]).read_bytes()
            assert extra["name"].split("/")[0] == train.classes[label]
    names = [row[2]["name"] for row in extras(out, "train")]
    assert [json.loads(line) for line in (out / "train.list").read_text().splitlines()] == names


def test_folder_refuses_what_it_cannot_label(tmp_path):
    put(tmp_path / "in" / "train" / "a" / "1.jpg", picture(1))
    put(tmp_path / "in" / "test" / "b" / "1.jpg", picture(1))
    with pytest.raises(ValueError, match=r"has the class 'b', which .*train does not have"):
        convert("folder", tmp_path / "out", {"path": tmp_path / "in"})
    with pytest.raises(ValueError, match="there is no folder"):
        convert("folder", tmp_path / "out", {"path": tmp_path / "nothing"})
    (tmp_path / "empty" / "a").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds no images"):
        convert("folder", tmp_path / "out", {"path": tmp_path / "empty"})


@pytest.mark.parametrize(("separator", "named"), [(" ", False), (",", True), ("\t", True)])
def test_list(tmp_path, separator, named):
    lines = []
    for i in range(20):
        name = f"images/a picture {i}.jpg" if separator != "," else f"images/{i}.jpg"
        put(tmp_path / "in" / name, picture(i))
        lines.append(f"{name}{separator}{('dog', 'ape')[i % 2] if named else i % 2}")
    (tmp_path / "in" / "train.txt").write_text("\n".join(lines[:15]) + "\n")
    (tmp_path / "in" / "test.txt").write_text("\n".join(lines[15:]))
    out = write("list", tmp_path, path=tmp_path / "in" / "train.txt", test=tmp_path / "in" / "test.txt")
    assert ShardDataset(out).classes == (["ape", "dog"] if named else ["0", "1"])
    assert sorted(data for data, _, _ in extras(out, "test")) == sorted(picture(i) for i in range(15, 20))
    for data, label, _ in extras(out, "train"):
        i = next(i for i in range(15) if picture(i) == data)
        assert label == (1 - i % 2 if named else i % 2)
    seeded = write("list", tmp_path / "seeded", path=tmp_path / "in" / "train.txt", test_share=0.4)
    assert [len(ShardDataset(seeded, split)) for split in ("train", "test")] == [9, 6]


@pytest.mark.parametrize(
    ("line", "message"),
    [("picture.jpg", "is not a path and a label"), ("../x.jpg 1", "leaves the folder"), ("/etc/x.jpg 1", "leaves")],
)
def test_list_refuses_bad_lines(tmp_path, line, message):
    (tmp_path / "list.txt").write_text(f"good.jpg 1\n{line}\n")
    with pytest.raises(ValueError, match=f"list.txt, line 2: .*{message}"):
        convert("list", tmp_path / "out", {"path": tmp_path / "list.txt"})


def imagenet_names():
    return {f"n0000000{k}": [f"n0000000{k}_{i}.JPEG" for i in range(4)] for k in (2, 1, 3)}


def test_imagenet_in_folders_and_in_tars_gives_the_same_shards(tmp_path):
    outer = {}
    for wnid, names in imagenet_names().items():
        for name in names:
            put(tmp_path / "folders" / "train" / wnid / name, picture(zlib.crc32(name.encode())))
        outer[f"{wnid}.tar"] = tar_bytes([(name, picture(zlib.crc32(name.encode()))) for name in names])
    val = {f"ILSVRC2012_val_0000000{i}.JPEG": sorted(imagenet_names())[i % 3] for i in range(6)}
    for name, wnid in val.items():
        put(tmp_path / "folders" / "val" / wnid / name, picture(zlib.crc32(name.encode())))
    put(tmp_path / "tars" / "ILSVRC2012_img_train.tar", tar_bytes(list(outer.items())))
    rows = [(name, picture(zlib.crc32(name.encode()))) for name in reversed(val)]
    put(tmp_path / "tars" / "ILSVRC2012_img_val.tar", tar_bytes(rows))
    (tmp_path / "val.txt").write_text("".join(f"{name} {wnid}\n" for name, wnid in val.items()))
    folders = write("imagenet", tmp_path / "1", path=tmp_path / "folders")
    tars = write("imagenet", tmp_path / "2", path=tmp_path / "tars", val_labels=tmp_path / "val.txt", workers=1)
    assert ShardDataset(folders).classes == ["n00000001", "n00000002", "n00000003"]
    by_name = {extra["name"]: (data, label) for data, label, extra in extras(folders, "train")}
    assert by_name == {extra["name"]: (data, label) for data, label, extra in extras(tars, "train")}
    assert by_name["n00000002/n00000002_1.JPEG"] == (picture(zlib.crc32(b"n00000002_1.JPEG")), 1)
    by_bytes = {data: label for data, label, _ in extras(tars, "val")}
    assert by_bytes == {picture(zlib.crc32(name.encode())): int(wnid[-1]) - 1 for name, wnid in val.items()}
    with pytest.raises(ValueError, match="holds no labels: give val_labels"):
        convert("imagenet", tmp_path / "3", {"path": tmp_path / "tars"})
    (tmp_path / "val.txt").write_text("".join(f"{name} {wnid}\n" for name, wnid in list(val.items())[1:]))
    with pytest.raises(ValueError, match=r"has no label for ILSVRC2012_val_00000000.JPEG and 0 others"):
        convert("imagenet", tmp_path / "3", {"path": tmp_path / "tars", "val_labels": tmp_path / "val.txt"})


def cifar_folder(root, version):
    """CIFAR as it is distributed, with 40 + 20 images: protocol 2, text keys as bytes."""
    rng = np.random.default_rng(0)
    k = 10 if version == "cifar10" else 100
    key = b"labels" if version == "cifar10" else b"fine_labels"
    folder = root / ("cifar-10-batches-py" if version == "cifar10" else "cifar-100-python")
    files = {f"data_batch_{i}": 8 for i in range(1, 6)} | {"test_batch": 20}
    if version == "cifar100":
        files = {"train": 1000, "test": 100}
    data, labels, first = {}, {}, 0
    for name, count in files.items():
        data[name] = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
        labels[name] = [(first + i) % k for i in range(count)]
        first += count
        batch = {b"data": data[name], key: labels[name], b"filenames": [b"a.png"] * count, b"batch_label": b"x"}
        put(folder / name, pickle.dumps(batch, protocol=2))
    meta = {b"label_names" if version == "cifar10" else b"fine_label_names": [f"class{i}".encode() for i in range(k)]}
    put(folder / ("batches.meta" if version == "cifar10" else "meta"), pickle.dumps(meta, protocol=2))
    return data, labels


@pytest.mark.parametrize("version", ["cifar10", "cifar100"])
def test_cifar(tmp_path, version):
    data, labels = cifar_folder(tmp_path / "in", version)
    out = write(version, tmp_path, path=tmp_path / "in")
    assert ShardDataset(out).classes[:2] == ["class0", "class1"]
    for split, names in {"train": [n for n in data if "test" not in n], "test": [n for n in data if "test" in n]}.items():
        images = np.concatenate([data[name] for name in names]).reshape(-1, 3, 32, 32)
        classes = np.concatenate([labels[name] for name in names])
        dataset = ShardDataset(out, split)
        rows = [extra["row"] for _, _, extra in extras(out, split)]
        assert sorted(rows) == list(range(len(images)))
        assert np.array_equal(dataset.labels, classes[rows])
        assert np.array_equal(dataset[3][0].numpy(), images[rows[3]])


def test_cifar_lt(tmp_path):
    cifar_folder(tmp_path / "in", "cifar10")
    out = write("cifar_lt", tmp_path, path=tmp_path / "in", imbalance=4)
    assert ClassStats.from_labels(ShardDataset(out, "train").labels).counts.tolist() == [4, 3, 2, 2, 2, 1, 1, 1, 1, 1]
    assert len(ShardDataset(out, "test")) == 20


@pytest.mark.parametrize("name", GOLDENS)
def test_long_tails_are_the_published_ones(name):
    num_classes, imbalance = map(int, name.split("/"))
    golden = GOLDENS[name]
    labels = np.arange(50_000) % num_classes
    rows = long_tail_rows(labels, imbalance, seed=0)
    assert rows.size == golden["total"]
    assert np.bincount(labels[rows]).tolist() == golden["counts"]
    assert rows[:5].tolist() == golden["first5_class0"]
    assert rows[-golden["counts"][-1] :][:5].tolist() == golden["last_class"][: golden["counts"][-1]]
    assert zlib.crc32(rows.astype("<i8").tobytes()) == golden["crc32"]


class Bomb:
    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.mark.parametrize("call", [open, os.system, eval, __import__, getattr, np.load, np.array, type])
def test_cifar_pickles_run_no_code(tmp_path, call):
    marker = tmp_path / "code-ran"
    arguments = {open: (str(marker), "w"), os.system: (f"touch {marker}",), eval: (f"open({str(marker)!r}, 'w')",)}
    for protocol in (0, 2, 4):
        put(tmp_path / "train", pickle.dumps({b"data": Bomb(call, *arguments.get(call, ("os",)))}, protocol=protocol))
        with pytest.raises(ShardError, match="is not one of CIFAR's files: it asks for"):
            read_cifar_pickle(tmp_path / "train")
    assert not marker.exists()
    objects = pickle.dumps({b"data": np.array([{}], object)}, protocol=2)
    put(tmp_path / "train", objects)
    with pytest.raises(ShardError, match="not of plain uint8"):
        read_cifar_pickle(tmp_path / "train")


@pytest.mark.parametrize("spelling", ["RealWorld", "Real World", "Real_World"])
def test_officehome(tmp_path, spelling):
    for domain in ("Art", spelling):
        for label, name in enumerate(("Alarm_Clock", "Backpack")):
            for i in range(10):
                put(tmp_path / "in" / domain / name / f"{i:05d}.jpg", picture(len(domain) * 100 + 10 * label + i))
    out = write("officehome", tmp_path, path=tmp_path / "in", domain="RealWorld", test_share=0.2)
    assert [len(ShardDataset(out, split)) for split in ("train", "test")] == [16, 4]
    root = tmp_path / "in" / spelling
    assert all((root / extra["name"]).read_bytes() == data for data, _, extra in extras(out, "train"))
    with pytest.raises(ValueError, match="unknown Office-Home domain 'clip'"):
        convert("officehome", tmp_path / "o", {"path": tmp_path / "in", "domain": "clip"})


def test_emoset(tmp_path):
    emotions = ["amusement", "awe", "contentment", "excitement", "anger", "disgust", "fear", "sadness"]
    for split, count in (("train", 16), ("val", 8), ("test", 8)):
        rows = []
        for i in range(count):
            emotion = emotions[(5 * i) % 8]
            image = f"image/{emotion}/{split}_{i:05d}.jpg"
            put(tmp_path / "in" / image, picture(i))
            rows.append([emotion, f"{split}_{i:05d}", image, f"annotation/{emotion}/{split}_{i:05d}.json"])
        put(tmp_path / "in" / f"{split}.json", json.dumps(rows).encode())
    out = write("emoset", tmp_path, path=tmp_path / "in")
    assert {split: len(ShardDataset(out, split)) for split in ("train", "val", "test")} == {"train": 16, "val": 8, "test": 8}
    assert all(extra["name"].split("/")[1] == emotions[label] for _, label, extra in extras(out, "train"))


def test_imagenet_hard(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = {
        "image": [{"bytes": picture(i), "path": None} for i in range(6)],
        "label": [[i, 999 - i] for i in range(6)],
        "origin": ["imagenet_a"] * 6,
        "english_label": [["x", "y"]] * 6,
    }
    (tmp_path / "in").mkdir()
    parquet.write_table(pyarrow.table(table), tmp_path / "in" / "validation-00000.parquet")
    out = write("imagenet_hard", tmp_path, path=tmp_path / "in")
    for data, label, extra in extras(out, "test"):
        assert data == picture(label)
        assert extra["labels"] == [label, 999 - label]
    assert len(ShardDataset(out, "test").classes) == 1000


def test_imdb_and_agnews(tmp_path):
    for split in ("train", "test"):
        for name in ("neg", "pos"):
            for i in range(4):
                put(tmp_path / "aclImdb" / split / name / f"{i}_7.txt", f"a {name} film, café {i}".encode())
        put(tmp_path / "aclImdb" / split / "unsup" / "0_0.txt", b"nobody knows")
    out = write("imdb", tmp_path, path=tmp_path)
    dataset = ShardDataset(out, "train")
    assert dataset.description["kind"] == "text"
    texts = [dataset[i] for i in range(8)]
    assert all(f"a {('neg', 'pos')[label]} film, café" in text for text, label, _ in texts)
    rows = [["3", "Title, one", 'Some "quoted" text'], ["1", "Über", "More"], ["4", "T", "D"], ["2", "T", "D\\nE"]]
    for split in ("train", "test"):
        with (tmp_path / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file, quoting=csv.QUOTE_ALL).writerows(rows)
    news = ShardDataset(write("agnews", tmp_path / "news", path=tmp_path), "test")
    assert {news[i][:2] for i in range(4)} == {(f"{row[1]} {row[2]}", int(row[0]) - 1) for row in rows}
    (tmp_path / "train.csv").write_text("5,a,b\n")
    with pytest.raises(ValueError, match=r"train.csv, row 1: .* is not a class of 1 to 4"):
        convert("agnews", tmp_path / "bad", {"path": tmp_path})


def test_wds_links_shards_where_they_lie(tmp_path):
    rows = []
    for i in range(6):
        rows += [(f"x{i}.jpg", picture(i)), (f"x{i}.json", json.dumps({"y": i % 3}).encode())]
    put(tmp_path / "in" / "shard-000000.tar", tar_bytes(rows))
    before = sorted((tmp_path / "in").iterdir())
    out = write("wds", tmp_path, path=tmp_path / "in", label="json:y")
    assert sorted((tmp_path / "in").iterdir()) == before
    assert ShardDataset(out, "shard").labels.tolist() == [0, 1, 2, 0, 1, 2]
    write("wds", tmp_path, path=tmp_path / "in", label="json:y")


@pytest.mark.parametrize(
    ("options", "train", "wrong"),
    [({}, [150] * 10, 0), ({"imbalance": 50}, [150, 97, 62, 40, 26, 17, 11, 7, 4, 3], 0), ({"noise": 0.4}, [150] * 10, 600)],
)
def test_digits(tmp_path, options, train, wrong):
    """Counts from n_k = int(150 * 50 ** (-k / 9)) by hand; true labels from scikit-learn."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    out = write("digits", tmp_path, **options)
    rows = extras(out, "train")
    assert np.bincount([extra["true_label"] for *_, extra in rows]).tolist() == train
    assert sum(label != extra["true_label"] for _, label, extra in rows) == wrong
    assert all(digits.target[extra["row"]] == extra["true_label"] for *_, extra in rows)
    test_rows = extras(out, "test")
    assert len(test_rows) == 297
    assert not {extra["row"] for *_, extra in rows} & {extra["row"] for *_, extra in test_rows}
    assert all(label == extra["true_label"] for _, label, extra in test_rows)
    dataset = ShardDataset(out, "train")
    expected = np.round(digits.images[rows[7][2]["row"]] * (255 / 16)).astype(np.uint8)
    assert np.array_equal(dataset[7][0][0].numpy(), expected)


def test_domains_of_the_digits_share_no_digit_and_look_different(tmp_path):
    """Pixels against torch's bilinear scaling of scikit-learn's images; together the domains hold every digit once."""
    from sklearn.datasets import load_digits

    digits, seen = load_digits(), []
    for domain in ("plain", "inverted", "rotated", "noisy"):
        samples = extras(write("digits_domain", tmp_path / domain, domain=domain), "train")
        rows = [extra["row"] for *_, extra in samples]
        labels = np.array([label for _, label, _ in samples])
        assert (labels == digits.target[rows]).all()
        assert np.bincount(labels).min() >= 43
        small = torch.from_numpy(digits.images[rows] * (255 / 16))[:, None]
        expected = F.interpolate(small, size=(16, 16), mode="bilinear", align_corners=True)[:, 0].numpy()
        if domain == "inverted":
            expected = 255 - expected
        pixels = np.stack([np.asarray(Image.open(io.BytesIO(payload))) for payload, *_ in samples]).astype(float)
        assert (np.abs(pixels - expected).max() < 0.6) == (domain in ("plain", "inverted"))
        seen += rows
    assert sorted(seen) == list(range(len(digits.target)))
    with pytest.raises(ValueError, match="unknown domain of the digits 'plane': did you mean 'plain'"):
        convert("digits_domain", tmp_path / "x", {"domain": "plane"})


def test_digits_refuses_impossible_settings(tmp_path):
    for options, message in (({"imbalance": 0.5}, "imbalance"), ({"imbalance": 151}, "imbalance"), ({"noise": 1.0}, "noise")):
        with pytest.raises(ValueError, match=message):
            convert("digits", tmp_path, options)


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_refuses_unknown_and_missing_options(tmp_path, source):
    with pytest.raises(ValueError, match=f"unknown option of data source '{source}' 'imbalanced'"):
        convert(source, tmp_path, {"imbalanced": 3})
    if source != "digits":
        missing = "domain" if source == "digits_domain" else "path"
        with pytest.raises(ValueError, match=f"data source '{source}' needs {missing}="):
            convert(source, tmp_path, {})


def test_prepare_writes_once_and_names_folders_by_options(tmp_path):
    folder = prepare("digits", {"imbalance": 10, "progress": False}, tmp_path)
    assert folder == tmp_path / "digits-imbalance=10-progress=False"
    stamp = (folder / "index.npy").stat().st_mtime_ns
    assert prepare("digits", {"imbalance": 10, "progress": False}, tmp_path) == folder
    assert (folder / "index.npy").stat().st_mtime_ns == stamp
    names = [folder_name("folder", {"path": path}) for path in ("/data/x", "/data_x", "../data/x")]
    assert len(set(names)) == 3
    assert not any("/" in name for name in names)
    with pytest.raises(ValueError, match="unknown data source 'digit': did you mean 'digits'"):
        prepare("digit", {}, tmp_path)


def test_a_png_named_jpg_is_stored_as_what_it_is(tmp_path):
    put(tmp_path / "in" / "a" / "1.jpg", picture(1, kind="PNG"))
    put(tmp_path / "in" / "a" / "2.jpg", picture(2))
    out = write("folder", tmp_path, path=tmp_path / "in", test_share=0.4)
    with tarfile.open(out / "train-000000.tar") as tar:
        names = {name.split(".")[1] for name in tar.getnames()}
    assert names <= {"png", "jpg", "cls", "json"}
    assert io.BytesIO(ShardDataset(out).read_bytes(0)).read(4) in (b"\x89PNG", b"\xff\xd8\xff\xe0")
