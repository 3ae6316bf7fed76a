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
import torchvision
from PIL import Image

from ns_data.shards.dataset import ShardDataset
from ns_data.shards.index import ShardError
from ns_data.shards.sources import SOURCES, convert
from ns_data.shards.sources.cifar import long_tail_rows, read_cifar_pickle
from ns_data.shards.sources.imagenet import _read_devkit
from ns_data.shards.verify import verify_shards
from ns_data.stats import ClassStats
from tests.shards.helpers import picture, tar_bytes
from tests.standins import EMOTIONS, cifar_folder, class_folders, devkit, emoset, imagenet_tars, put

GOLDENS = json.loads((Path(__file__).parents[1] / "data" / "cifar_lt.json").read_text())


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


def test_imagenet_in_folders_and_in_tars_gives_the_same_shards(tmp_path):
    """The tars with the development kit or a list; class folders; and a flat val/ beside either."""
    train, val = imagenet_tars(tmp_path / "tars")
    for name, data in train.items():
        put(tmp_path / "folders" / "train" / name, data)
        put(tmp_path / "flat" / "train" / name, data)
    for name, (data, wnid) in val.items():
        put(tmp_path / "folders" / "val" / wnid / name, data)
        put(tmp_path / "flat" / "val" / name, data)
    (tmp_path / "val.txt").write_text("".join(f"{name} {wnid}\n" for name, (_, wnid) in val.items()))
    (tmp_path / "flat" / KIT).write_bytes((tmp_path / "tars" / KIT).read_bytes())
    folders = write("imagenet", tmp_path / "1", path=tmp_path / "folders")
    labelled = [
        write("imagenet", tmp_path / "2", path=tmp_path / "tars", workers=1),
        write("imagenet", tmp_path / "3", path=tmp_path / "tars", val_labels=tmp_path / "val.txt"),
        write("imagenet", tmp_path / "4", path=tmp_path / "flat"),
    ]
    assert ShardDataset(folders).classes == ["n00000001", "n00000002", "n00000003"]
    by_name = {extra["name"]: (data, label) for data, label, extra in extras(folders, "train")}
    assert by_name == {name: (data, int(name[8]) - 1) for name, data in train.items()}
    expected = {data: int(wnid[-1]) - 1 for data, wnid in val.values()}
    assert {data: label for data, label, _ in extras(folders, "val")} == expected
    for folder in labelled:
        assert by_name == {extra["name"]: (data, label) for data, label, extra in extras(folder, "train")}
        assert {data: label for data, label, _ in extras(folder, "val")} == expected


def test_imagenets_development_kit_is_read_as_torchvision_reads_it(tmp_path, monkeypatch):
    _, val = imagenet_tars(tmp_path)
    monkeypatch.setattr(
        torchvision.datasets.imagenet, "_verify_archive", lambda *arguments: None
    )  # whose sums are the real files'
    torchvision.datasets.imagenet.parse_devkit_archive(tmp_path)
    _, wnids = torch.load(tmp_path / "meta.bin", weights_only=True)
    classes = sorted(set(wnids))
    read = _read_devkit(tmp_path / KIT, classes)
    assert read == {f"ILSVRC2012_val_{i:08d}": classes.index(wnid) for i, wnid in enumerate(wnids, 1)}
    assert [wnid for _, wnid in val.values()] == wnids


KIT = "ILSVRC2012_devkit_t12.tar.gz"


def _no_labels(root):
    (root / KIT).unlink()


def _wrong_kit(root):
    (root / KIT).write_bytes(b"<html>please log in</html>")


def _other_classes(root):
    (root / KIT).write_bytes(devkit({"n12345678": 1}, [1] * 6))


def _short_list(root):
    (root / KIT).write_bytes(devkit({"n00000001": 1}, [1] * 5))


def _no_training_images(root):
    (root / "ILSVRC2012_img_train.tar").unlink()


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (_no_labels, "ILSVRC2012_img_val.tar holds no labels: put ILSVRC2012_devkit_t12.tar.gz beside it, or give val_labels="),
        (_wrong_kit, "devkit_t12.tar.gz is not the development kit of ImageNet 2012"),
        (_other_classes, "labels images as n12345678, of which there are no training images"),
        (_short_list, "devkit_t12.tar.gz has no label for ILSVRC2012_val_00000006.JPEG and 0 others"),
        (
            _no_training_images,
            "has neither ILSVRC2012_img_train.tar nor a folder train/ with a folder nXXXXXXXX for each",
        ),
    ],
)
def test_imagenet_says_what_is_missing(tmp_path, break_it, message):
    imagenet_tars(tmp_path / "in")
    break_it(tmp_path / "in")
    with pytest.raises(ValueError, match=message) as error:
        convert("imagenet", tmp_path / "out", {"path": tmp_path / "in", "progress": False})
    assert "\n" not in str(error.value)


def test_imagenet_without_validation_images_warns(tmp_path):
    imagenet_tars(tmp_path / "in")
    (tmp_path / "in" / "ILSVRC2012_img_val.tar").unlink()
    with pytest.warns(UserWarning, match="have no split to evaluate on"):
        out = write("imagenet", tmp_path, path=tmp_path / "in")
    assert list(ShardDataset(out).description["splits"]) == ["train"]
    class_folders(tmp_path / "in" / "val", ["n00000001", "n00000002", "n00000003"], per_class=1)
    with pytest.raises(ValueError, match=r"val_labels=.* has no effect"):
        convert("imagenet", tmp_path / "out", {"path": tmp_path / "in", "val_labels": tmp_path / "val.txt"})


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


def test_the_expected_long_tails_are_the_eight_of_the_paper():
    assert sorted(GOLDENS) == sorted(f"{k}/{imbalance}" for k in (10, 100) for imbalance in (10, 50, 100, 200))


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


@pytest.mark.slow
@pytest.mark.parametrize("version", ["cifar10", "cifar100"])
def test_long_tails_of_pickles_are_the_published_ones(tmp_path, version):
    """Pickles of 50,000 black images with the expected values' labels, k = row % K, through the source to the shards."""
    num_classes = 10 if version == "cifar10" else 100
    cifar_folder(tmp_path / "in", version, train=50_000, noise=False)
    for imbalance in (10, 50, 100, 200):
        golden = GOLDENS[f"{num_classes}/{imbalance}"]
        out = write("cifar_lt", tmp_path / str(imbalance), path=tmp_path / "in", dataset=version, imbalance=imbalance)
        train = ShardDataset(out, "train")
        assert ClassStats.from_labels(train.labels, num_classes).counts.tolist() == golden["counts"]
        rows = np.array([extra["row"] for *_, extra in extras(out, "train")])
        assert np.array_equal(rows % num_classes, train.labels)
        kept = long_tail_rows(np.arange(50_000) % num_classes, imbalance)
        assert zlib.crc32(kept.astype("<i8").tobytes()) == golden["crc32"]
        assert np.array_equal(np.sort(rows), np.sort(kept))


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
    emoset(tmp_path / "in")
    out = write("emoset", tmp_path, path=tmp_path / "in")
    assert {split: len(ShardDataset(out, split)) for split in ("train", "val", "test")} == {"train": 16, "val": 8, "test": 8}
    assert all(extra["name"].split("/")[1] == EMOTIONS[label] for _, label, extra in extras(out, "train"))


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


def test_digits_told_apart_by_parity(tmp_path):
    """Two classes, even and odd, of the same pictures; noise gives the other one."""
    from sklearn.datasets import load_digits

    target = load_digits().target
    out = write("digits", tmp_path, classes="parity", noise=0.1)
    assert ShardDataset(out).classes == ["even", "odd"]
    rows = extras(out, "train")
    assert sum(label != target[extra["row"]] % 2 for _, label, extra in rows) == 150
    assert all(label == target[extra["row"]] % 2 for _, label, extra in extras(out, "test"))
    plain = write("digits", tmp_path / "plain")
    assert {extra["row"] for *_, extra in rows} == {extra["row"] for *_, extra in extras(plain, "train")}


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
    for options, message in (
        ({"imbalance": 0.5}, "imbalance"),
        ({"imbalance": 151}, "imbalance"),
        ({"noise": 1.0}, "noise"),
        ({"classes": "party"}, "unknown classes of digits 'party': did you mean 'parity'"),
    ):
        with pytest.raises(ValueError, match=message):
            convert("digits", tmp_path, options)


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_refuses_unknown_and_missing_options(tmp_path, source):
    with pytest.raises(ValueError, match=f"unknown option of data source '{source}' 'imbalanced'"):
        convert(source, tmp_path, {"imbalanced": 3})
