"""Encode: one sample in any of the accepted forms becomes the members of a WebDataset tar, by extension."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ns_data.shards.decode import FORMATS, image_format
from ns_data.shards.index import IMAGE_EXTENSIONS, TEXT_EXTENSION

_EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
_DEFAULT_QUALITY = 90


@dataclass(frozen=True)
class Encoding:
    """What happens to images while they are written; nothing by default."""

    max_side: int | None = None
    quality: int | None = None

    def __post_init__(self) -> None:
        if self.max_side is not None and self.max_side < 1:
            raise ValueError(f"max_side must be at least 1 pixel, got {self.max_side}")
        if self.quality is not None and not 1 <= self.quality <= 95:
            raise ValueError(f"quality must be between 1 and 95, got {self.quality}")

    def note(self) -> dict[str, int]:
        """What ``dataset.json`` keeps of it."""
        return {key: value for key, value in vars(self).items() if value is not None}

    def apply(self, data: bytes) -> bytes:
        """The image bytes to store: the given ones, unless they must be scaled or encoded anew."""
        if self.max_side is None and self.quality is None:
            return data
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            scale = 1.0 if self.max_side is None else min(1.0, self.max_side / max(image.size))
            if scale == 1.0 and self.quality is None:
                return data
            rgb = image.convert("RGB")
            if scale < 1.0:
                size = tuple(max(1, round(side * scale)) for side in image.size)
                rgb = rgb.resize((size[0], size[1]), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        rgb.save(buffer, "JPEG", quality=self.quality or _DEFAULT_QUALITY)
        return buffer.getvalue()


def members_of(sample: Any, encoding: Encoding, name: str) -> dict[str, Any]:
    """The tar members of one sample by extension; ``ValueError`` names a sample that cannot be one."""
    try:
        return _members_of(sample, encoding)
    except (ValueError, OSError) as error:
        raise ValueError(f"{name}: {error}") from None


def _members_of(sample: Any, encoding: Encoding) -> dict[str, Any]:
    if isinstance(sample, Mapping):
        payloads = [key for key in sample if key.lower() in (*IMAGE_EXTENSIONS, TEXT_EXTENSION)]
        images = [key for key in payloads if key.lower() in IMAGE_EXTENSIONS] or payloads
        if len(images) != 1 or "cls" not in sample:
            raise ValueError(f"a sample needs one image (or a text) and 'cls', got {sorted(sample)}")
        payload, label = sample[images[0]], sample["cls"]
        extra = {key: value for key, value in sample.items() if key not in (images[0], "cls") and not key.startswith("__")}
    elif isinstance(sample, tuple) and len(sample) in (2, 3):
        payload, label = sample[:2]
        extra = {"json": sample[2]} if len(sample) == 3 else {}
    else:
        raise ValueError(f"a sample must be (image, label[, extra]) or a dictionary, got {type(sample).__name__}")
    if isinstance(label, (str, bytes)) or not isinstance(label, (int, np.integer)) or label < 0:
        raise ValueError(f"a label must be a non-negative integer, got {label!r}")
    extension, data = _encode(payload, encoding)
    others = {key: _extra_bytes(key, value) for key, value in extra.items()}
    return {extension: data, "cls": str(int(label)).encode(), **others}


def _extra_bytes(key: str, value: Any) -> bytes:
    if key == "json" and not isinstance(value, bytes):
        return json.dumps(value, sort_keys=True).encode()
    if isinstance(value, str):
        return value.encode()
    if not isinstance(value, bytes):
        raise ValueError(f"member {key!r} must be bytes or text, got {type(value).__name__}")
    return value


def _encode(payload: Any, encoding: Encoding) -> tuple[str, bytes]:
    if isinstance(payload, str):
        return TEXT_EXTENSION, payload.encode()
    if isinstance(payload, bytes):
        image_format(payload)
        data = encoding.apply(payload)
        return _EXTENSIONS[image_format(data)], data
    array = np.asarray(payload)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise ValueError(f"an image must be bytes, text or uint8 of shape (H, W) or (H, W, 3), got {array.dtype} {array.shape}")
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    data = encoding.apply(buffer.getvalue())
    return _EXTENSIONS[image_format(data)], data
