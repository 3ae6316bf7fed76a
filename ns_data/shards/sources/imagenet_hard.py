"""imagenet_hard: images with several right labels each, from parquet files; for evaluation only.

The class id of a sample is the first of its labels; all of them are in its JSON member under "labels". Source:
"ImageNet-Hard: The Hardest Images Remaining from a Study of the Power of Zoom and Spatial Biases in Image Classification",
Taesiri et al., 2023.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ns_data.shards.writer import write_shards


def write_imagenet_hard(out_dir: str | os.PathLike[str], *, path: str | os.PathLike[str], **options: Any) -> dict[str, Any]:
    """Write the split "test" from all ``*.parquet`` below ``path``: columns image, label (a list), origin, english_label."""
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise ValueError("imagenet_hard needs pyarrow: pip install 'ns_data[parquet]'") from None
    paths = sorted(Path(path).rglob("*.parquet"))
    if not paths:
        raise ValueError(f"{path} holds no .parquet file")
    samples: list[tuple[bytes, int, dict[str, Any]]] = []
    for file_path in paths:
        for row in parquet.read_table(file_path, columns=["image", "label", "origin", "english_label"]).to_pylist():
            if not row["label"]:
                raise ValueError(f"{file_path}: image {len(samples)} has no label")
            extra = {"labels": row["label"], "origin": row["origin"], "english_label": row["english_label"]}
            samples.append((row["image"]["bytes"], int(row["label"][0]), extra))
    classes = [str(k) for k in range(max(1000, 1 + max(label for _, label, _ in samples)))]
    made_by = {"source": "imagenet_hard", "labels": "json:labels"}
    return write_shards(samples, out_dir, split="test", classes=classes, made_by=made_by, **options)
