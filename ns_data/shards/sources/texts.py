"""imdb and agnews: sets of labelled texts, stored as `.txt` samples.

Sources: "Learning Word Vectors for Sentiment Analysis", Maas et al., 2011; "Character-level Convolutional Networks for Text
Classification", Zhang et al., 2015.
"""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

from ns_data.shards.sources.samples import FileSamples, TextSamples, labelled_files, write_splits
from ns_data.shards.writer import write_shards

_TOPICS = ("World", "Sports", "Business", "Sci/Tech")


def write_imdb(out_dir: str | os.PathLike[str], *, path: str | os.PathLike[str], **options: Any) -> dict[str, Any]:
    """IMDB reviews from ``aclImdb/{train,test}/{neg,pos}/*.txt``; its unlabelled reviews are left alone."""
    root = Path(path)
    root = root / "aclImdb" if (root / "aclImdb").is_dir() else root
    classes = ("neg", "pos")
    parts = {}
    for split in ("train", "test"):
        for name in classes:
            if not (root / split / name).is_dir():
                raise ValueError(f"there is no folder {root / split / name}")
        parts[split] = FileSamples(root / split, *labelled_files(root / split, classes, ("txt",)), text=True)
    return write_splits(write_shards, parts, out_dir, classes=classes, made_by={"source": "imdb"}, **options)


def write_agnews(out_dir: str | os.PathLike[str], *, path: str | os.PathLike[str], **options: Any) -> dict[str, Any]:
    """AG News from train.csv and test.csv: class 1 to 4, title, description; title and description become one text."""
    parts = {}
    for split in ("train", "test"):
        file_path = Path(path) / f"{split}.csv"
        if not file_path.is_file():
            raise ValueError(f"there is no {file_path}")
        texts, labels = [], []
        with file_path.open(newline="", encoding="utf-8") as file:
            for number, row in enumerate(csv.reader(file), 1):
                if len(row) != 3 or row[0] not in ("1", "2", "3", "4"):
                    raise ValueError(
                        f"{file_path}, row {number}: {str(row)[:80]} is not a class of 1 to 4, title and description"
                    )
                texts.append(f"{row[1]} {row[2]}")
                labels.append(int(row[0]) - 1)
        parts[split] = TextSamples(texts, labels, list(range(len(texts))))
    return write_splits(write_shards, parts, out_dir, classes=_TOPICS, made_by={"source": "agnews"}, **options)
