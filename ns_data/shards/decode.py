"""Decode: image bytes to uint8 tensors. JPEG, PNG and WebP only, whatever the file calls itself, and of bounded size."""

from __future__ import annotations

import io

import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode
from torchvision.io import decode_image as torchvision_decode

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_PIXELS = 1 << 26


def decode_image(data: bytes) -> Tensor:
    """An RGB image of shape (3, H, W), uint8. Raises ``ValueError`` for other formats, damage and more than 2^26 pixels."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as header:  # reads the header only
            width, height, kind = header.width, header.height, header.format
            if width * height > MAX_PIXELS:
                raise ValueError(f"image of {width}x{height} pixels is larger than {MAX_PIXELS}")
            if kind == "WEBP":
                pixels = torch.frombuffer(bytearray(header.convert("RGB").tobytes()), dtype=torch.uint8)
                return pixels.view(height, width, 3).permute(2, 0, 1).contiguous()
        return torchvision_decode(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
    except (OSError, RuntimeError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"not a readable {', '.join(FORMATS)} image: {str(error).splitlines()[0]}") from None
