"""Small generated data sets in the formats that their users have: CIFAR's pickles, ImageNet's tars, class folders, lists."""

import gzip
import io
import json
import pickle
import zlib

import numpy as np
from scipy.io import savemat

from tests.shards.helpers import picture, tar_bytes

EMOTIONS = ["amusement", "awe", "contentment", "excitement", "anger", "disgust", "fear", "sadness"]


def put(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def cifar_folder(root, version, train=None, test=None, noise=True):
    """CIFAR as it is distributed, protocol 2, text keys as bytes; classes in turn. (images by file, labels by file)."""
    rng = np.random.default_rng(0)
    ten = version == "cifar10"
    k = 10 if ten else 100
    train, test = train or (40 if ten else 1000), test or (20 if ten else 100)
    key = b"labels" if ten else b"fine_labels"
    folder = root / ("cifar-10-batches-py" if ten else "cifar-100-python")
    files = (
        {f"data_batch_{i}": train // 5 for i in range(1, 6)} | {"test_batch": test} if ten else {"train": train, "test": test}
    )
    data, labels, first = {}, {}, 0
    for name, count in files.items():
        pixels = rng.integers(0, 256, (count, 3072), dtype=np.uint8) if noise else np.zeros((count, 3072), np.uint8)
        data[name] = pixels
        labels[name] = [(first + i) % k for i in range(count)]
        first += count
        batch = {b"data": data[name], key: labels[name], b"filenames": [b"a.png"] * count, b"batch_label": b"x"}
        put(folder / name, pickle.dumps(batch, protocol=2))
    meta = {b"label_names" if ten else b"fine_label_names": [f"class{i}".encode() for i in range(k)]}
    put(folder / ("batches.meta" if ten else "meta"), pickle.dumps(meta, protocol=2))
    return data, labels


def imagenet_tars(root, classes=("n00000002", "n00000001", "n00000003"), per_class=4, val=6, size=(12, 10)):
    """ImageNet's two tars and its development kit; the numbers of classes there are in the order of ``classes``.

    The classes' numbers in the kit are not their order as sorted ids. Returns (bytes by training image, (bytes, wnid) by
    validation image).
    """
    train = {
        wnid: {f"{wnid}_{i}.JPEG": picture(zlib.crc32(f"{wnid}_{i}.JPEG".encode()), size) for i in range(per_class)}
        for wnid in classes
    }
    put(
        root / "ILSVRC2012_img_train.tar",
        tar_bytes([(f"{wnid}.tar", tar_bytes(list(files.items()))) for wnid, files in train.items()]),
    )
    names = [f"ILSVRC2012_val_{i:08d}.JPEG" for i in range(1, val + 1)]
    wnids = [classes[(i * i + i // 2) % len(classes)] for i in range(val)]  # every class from three images on
    truth = {name: (picture(zlib.crc32(name.encode()), size), wnid) for name, wnid in zip(names, wnids, strict=True)}
    put(root / "ILSVRC2012_img_val.tar", tar_bytes([(name, truth[name][0]) for name in reversed(names)]))
    numbers = {wnid: number for number, wnid in enumerate(classes, 1)}
    put(
        root / "ILSVRC2012_devkit_t12.tar.gz",
        devkit(numbers, [numbers[wnid] for _, wnid in truth.values()]),
    )
    return {f"{wnid}/{name}": data for wnid, files in train.items() for name, data in files.items()}, truth


def devkit(number_of, truth):
    """The development kit: meta.mat with the leaves ``number_of`` and one inner synset, and the ground truth."""
    fields = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height", "num_train_images")
    rows = [(number, wnid, f"{wnid}, thing", "a thing", 0, np.zeros(0), 0, 4) for wnid, number in number_of.items()]
    rows.append((len(rows) + 1, "n99999999", "entity", "all", len(rows), np.arange(1, len(rows) + 1), 1, 0))
    synsets = np.array(rows, dtype=[(name, object) for name in fields])
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets[:, None]})
    files = [
        ("ILSVRC2012_devkit_t12/data/meta.mat", meta.getvalue()),
        ("ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", "".join(f"{n}\n" for n in truth).encode()),
    ]
    return gzip.compress(tar_bytes(files), mtime=0)


def emoset(root, train=16, val=8, test=8, size=(12, 10)):
    """EmoSet's three JSON lists and its images."""
    for split, count in (("train", train), ("val", val), ("test", test)):
        rows = []
        for i in range(count):
            emotion = EMOTIONS[(5 * i) % 8]
            image = f"image/{emotion}/{split}_{i:05d}.jpg"
            put(root / image, picture(i, size))
            rows.append([emotion, f"{split}_{i:05d}", image, f"annotation/{emotion}/{split}_{i:05d}.json"])
        put(root / f"{split}.json", json.dumps(rows).encode())


def class_folders(root, classes, per_class=12, size=(12, 10)):
    """A folder of JPEGs for each class."""
    for k, name in enumerate(classes):
        for i in range(per_class):
            put(root / name / f"{i}.jpg", picture(100 * k + i, size))


def image_list(path, num_classes=2, count=24, size=(12, 10)):
    """A list of "image id" lines and the images beside it."""
    for i in range(count):
        put(path.parent / "images" / f"{i}.jpg", picture(i, size))
    path.write_text("".join(f"images/{i}.jpg {i % num_classes}\n" for i in range(count)))
