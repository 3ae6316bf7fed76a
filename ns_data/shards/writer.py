"""Writer: samples become shuffled, reproducible WebDataset tars, indexed and ready for ``ShardDataset``."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm
from webdataset import TarWriter

from ns_data.shards.decode import FORMATS
from ns_data.shards.index import DATASET_FILE, IMAGE_EXTENSIONS, index_shards

_EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}


def write_shards(
    samples: Iterable[Any],
    out_dir: str | os.PathLike[str],
    *,
    split: str = "train",
    classes: Sequence[str] | None = None,
    seed: int | None = 0,
    samples_per_shard: int = 1000,
    made_by: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Write one split of a data set and index the folder; return what ``dataset.json`` says.

    Args:
        samples: ``(image, label)`` or ``(image, label, extra)``, or WebDataset dictionaries such as
            ``{"jpg": bytes, "cls": 3}``. An image is encoded bytes (passed through untouched) or a uint8 array of shape
            (H, W) or (H, W, 3), stored as PNG; ``extra`` is stored as JSON. A sequence is read in shuffled order.
        out_dir: shards become ``SPLIT-000000.tar`` and so on; each appears under its name only when it is whole.
        split: "train", "test"... A folder may hold several.
        classes: class names.
        seed: of the global shuffle; ``None`` keeps the order, which class-sorted data should not.
        samples_per_shard: the last shard may have fewer.
        made_by: how the samples came about, kept in ``dataset.json``.
        progress: show a progress bar.

    The same samples and seed give identical bytes. Raises ``ValueError`` for a sample that is none of these.
    """
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    rows = samples if isinstance(samples, Sequence) else list(samples)
    order = np.arange(len(rows)) if seed is None else np.random.default_rng([seed, len(rows)]).permutation(len(rows))
    for old in out_dir.glob(f"{split}-*.tar"):
        old.unlink()
    digests, notes = _notes_of(out_dir)
    with tqdm(total=len(rows), desc=f"writing {split}", unit="img", disable=None if progress else True) as bar:
        for number, start in enumerate(range(0, len(rows), samples_per_shard)):
            name = f"{split}-{number:06d}.tar"
            partial = out_dir / (name + ".partial")
            with partial.open("wb") as file:
                tar = TarWriter(file, mtime=0)
                for position in range(start, min(start + samples_per_shard, len(rows))):
                    tar.write({"__key__": f"{position:09d}", **_members_of(rows[order[position]])})
                    bar.update()
                tar.close()
            digests[name] = hashlib.sha256(partial.read_bytes()).hexdigest()
            partial.replace(out_dir / name)
    notes[split] = {**(made_by or {}), "shuffle_seed": seed}
    return index_shards(out_dir, classes=classes, digests=digests, made_by=notes)


def _notes_of(folder: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """Digests and notes of the splits that are there already."""
    if not (folder / DATASET_FILE).is_file():
        return {}, {}
    description = json.loads((folder / DATASET_FILE).read_bytes())
    return {shard["name"]: shard["sha256"] for shard in description["shards"]}, description["made_by"]


def _members_of(sample: Any) -> dict[str, Any]:
    """The tar members of one sample, by extension."""
    if isinstance(sample, Mapping):
        images = [key for key in sample if key.lower() in IMAGE_EXTENSIONS]
        if len(images) != 1 or "cls" not in sample:
            raise ValueError(f"a sample needs one image and 'cls', got {sorted(sample)}")
        image, label = sample[images[0]], sample["cls"]
        extra = {key: value for key, value in sample.items() if key not in (images[0], "cls") and not key.startswith("__")}
    elif isinstance(sample, tuple) and len(sample) in (2, 3):
        image, label = sample[:2]
        extra = {"json": sample[2]} if len(sample) == 3 else {}
    else:
        raise ValueError(f"a sample must be (image, label[, extra]) or a dictionary, got {type(sample).__name__}")
    if isinstance(label, (str, bytes)) or not isinstance(label, (int, np.integer)) or label < 0:
        raise ValueError(f"a label must be a non-negative integer, got {label!r}")
    extension, data = _encode(image)
    extra = {key: json.dumps(value, sort_keys=True).encode() if key == "json" else value for key, value in extra.items()}
    return {extension: data, "cls": str(int(label)).encode(), **extra}


def _encode(image: Any) -> tuple[str, bytes]:
    if isinstance(image, bytes):
        try:
            with Image.open(io.BytesIO(image), formats=FORMATS) as header:
                return _EXTENSIONS[str(header.format)], image
        except OSError:
            raise ValueError(f"image bytes starting {image[:8]!r} are not one of {', '.join(FORMATS)}") from None
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise ValueError(f"an image must be bytes or uint8 of shape (H, W) or (H, W, 3), got {array.dtype} {array.shape}")
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return "png", buffer.getvalue()
