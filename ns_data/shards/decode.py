"""Decode: image bytes to uint8 tensors. JPEG, PNG and WebP only, whatever the file calls itself, and of bounded size.

The format is told by the first bytes and the size by the header, before any decoder sees the data. What simplejpeg or
torchvision refuse, Pillow decides with an allow-list of formats, so that it does not depend on what is installed.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable
from functools import cache

import torch
from PIL import Image
from torch import Tensor

from ns_data.choose import choose

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_PIXELS = 1 << 26


def image_format(data: bytes) -> str:
    """ "JPEG", "PNG" or "WEBP" by the first bytes; ``ValueError`` for anything else."""
    if data[:3] == b"\xff\xd8\xff":
        return "JPEG"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    raise ValueError(f"not a readable {', '.join(FORMATS)} image: it starts with {data[:8]!r}")


def decode_image(data: bytes, decoder: str = "auto") -> Tensor:
    """An RGB image of shape (3, H, W), uint8. Raises ``ValueError`` for other formats, damage and more than 2^26 pixels."""
    kind = image_format(data)
    try:
        if decoder == "auto":
            decoder = _fastest()
        return choose(DECODERS, decoder, "decoder")(data, kind)
    except (OSError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"not a readable {kind} image: {(str(error).splitlines() or [''])[0]}") from None


def _with_pillow(data: bytes, kind: str) -> Tensor:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        _check_size(image.width, image.height)
        pixels = bytearray(image.convert("RGB").tobytes())
        return torch.frombuffer(pixels, dtype=torch.uint8).view(image.height, image.width, 3).permute(2, 0, 1)


def _with_torchvision(data: bytes, kind: str) -> Tensor:
    from torchvision.io import ImageReadMode
    from torchvision.io import decode_image as decode

    if kind == "WEBP":
        return _with_pillow(data, kind)
    with Image.open(io.BytesIO(data), formats=FORMATS) as header:  # reads the header only
        _check_size(header.width, header.height)
    try:
        return decode(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
    except RuntimeError:
        return _with_pillow(data, kind)


def _with_simplejpeg(data: bytes, kind: str) -> Tensor:
    import simplejpeg

    if kind != "JPEG":
        return (_with_torchvision if _has_torchvision() else _with_pillow)(data, kind)
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return _with_pillow(data, kind)
    _check_size(width, height)
    try:
        if colorspace in ("YCbCr", "Gray"):
            return torch.from_numpy(simplejpeg.decode_jpeg(data)).permute(2, 0, 1)
    except ValueError:  # it refuses what others warn of
        pass
    return _with_pillow(data, kind)  # CMYK, or damage that Pillow may accept


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ValueError(f"image of {width}x{height} pixels is larger than {MAX_PIXELS}")


DECODERS: dict[str, Callable[[bytes, str], Tensor]] = {
    "simplejpeg": _with_simplejpeg,
    "torchvision": _with_torchvision,
    "pillow": _with_pillow,
}


@cache
def _fastest() -> str:
    """The first decoder whose library is installed."""
    if importlib.util.find_spec("simplejpeg") is not None:
        return "simplejpeg"
    return "torchvision" if _has_torchvision() else "pillow"


@cache
def _has_torchvision() -> bool:
    try:
        from torchvision.io import decode_image  # noqa: F401  (to be removed from torchvision, says its 0.29)
    except ImportError:
        return False
    return True
