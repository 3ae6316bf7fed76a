"""Small tars of real images, made by the standard library and not by the code under test."""

import io
import tarfile

import numpy as np
from PIL import Image


def picture(seed=0, size=(12, 10), kind="JPEG"):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def members(first, count, image=None):
    """``count`` samples of two members each: key 000007 has label 7 % 5."""
    rows = []
    for number in range(first, first + count):
        rows += [(f"{number:06d}.jpg", image or picture(number)), (f"{number:06d}.cls", str(number % 5).encode())]
    return rows


def tar_bytes(rows, **options):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=options.pop("format", tarfile.USTAR_FORMAT), **options) as tar:
        for name, data in rows:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def header_positions(data):
    """Where the header of each member lies."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {member.name: member.offset for member in tar}


def three_shards(folder, middle):
    """Good, ``middle`` and good shards of 10 samples: the situation of the reference's table."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train-000000.tar").write_bytes(tar_bytes(members(0, 10)))
    (folder / "train-000001.tar").write_bytes(middle)
    (folder / "train-000002.tar").write_bytes(tar_bytes(members(20, 10)))
    return folder
