"""Augmentation: random draws that depend on the plan alone, and the transforms that use them.

Every draw is a function of (seed, epoch, batch number, slot), never of the sample's id or of global state: an image drawn
twice in an epoch differs each time, and the same slot gets the same pixels with any number of workers, ranks or resumes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def draw_keys(seed: int, epoch: int, number: int, slots_B: np.ndarray) -> np.ndarray:
    """One 64-bit key for each slot of a global batch, shape (B,)."""
    key = np.zeros(slots_B.shape, np.uint64)
    for part in (seed, epoch, number, slots_B):
        key = _mix(key ^ np.asarray(part).astype(np.uint64))
    return key


def uniforms(keys_B: np.ndarray, count: int) -> np.ndarray:
    """``count`` numbers in [0, 1) for each key, shape (B, count), float64."""
    bits = _mix(keys_B[:, None] + np.arange(1, count + 1, dtype=np.uint64) * _STEP)
    return (bits >> np.uint64(11)) * 2.0**-53


_STEP = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 ("Fast splittable pseudorandom number generators", Steele, Lea and Flood, 2014)."""
    with np.errstate(over="ignore"):
        x = x + _STEP
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


@contextmanager
def seeded(key: int) -> Iterator[None]:
    """Seed torch's, NumPy's and Python's global generators for one draw, and put them back afterwards."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        torch.manual_seed(key >> 1)
        np.random.seed(key & 0xFFFFFFFF)
        random.seed(key)
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


class Drawn(Protocol):
    """A transform that takes its random numbers as an argument: ``num_draws`` uniforms an image."""

    num_draws: int

    def __call__(self, image_CHW: Tensor, uniforms: np.ndarray) -> Tensor: ...


def fit(image_CHW: Tensor, size: int) -> Tensor:
    """Scale the shorter side to ``size`` (bilinear, antialiased) and take the centre square; uint8 in, uint8 out."""
    H, W = image_CHW.shape[1:]
    if (size, size) != (H, W) and min(H, W) != size:
        shape = (size, max(size, round(W * size / H))) if H <= W else (max(size, round(H * size / W)), size)
        scaled = F.interpolate(image_CHW[None].float(), size=shape, mode="bilinear", antialias=True)[0]
        image_CHW = scaled.round().clamp(0, 255).to(torch.uint8)
        H, W = shape
    top, left = (H - size) // 2, (W - size) // 2
    return image_CHW[:, top : top + size, left : left + size]


class Fit:
    """The transform for evaluation: ``fit`` to a square of ``size`` pixels."""

    num_draws = 0

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image_CHW: Tensor, uniforms: np.ndarray) -> Tensor:
        return fit(image_CHW, self.size)


class CropFlip:
    """``fit``, then a random crop of the image padded by ``padding`` black pixels, and a flip in half of the draws."""

    num_draws = 3

    def __init__(self, size: int, padding: int = 4, flip: bool = True) -> None:
        self.size, self.padding, self.flip = size, padding, flip

    def __call__(self, image_CHW: Tensor, uniforms: np.ndarray) -> Tensor:
        image_CHW = F.pad(fit(image_CHW, self.size), (self.padding,) * 4)
        top, left = (int(u * (2 * self.padding + 1)) for u in uniforms[:2])
        image_CHW = image_CHW[:, top : top + self.size, left : left + self.size]
        return image_CHW.flip(2) if self.flip and uniforms[2] < 0.5 else image_CHW


# Training transforms by the names that configs use.
AUGMENTS: dict[str, Callable[..., Drawn]] = {
    "none": Fit,
    "crop_flip": CropFlip,
}


def normalize(images: Tensor, mean: list[float], std: list[float]) -> Tensor:
    """uint8 images as floats, scaled to [0, 1], minus ``mean``, over ``std``, by channel; other dtypes pass unchanged."""
    if images.dtype != torch.uint8:
        return images
    shape = (-1, 1, 1)
    center = torch.tensor(mean, device=images.device).view(shape)
    spread = torch.tensor(std, device=images.device).view(shape)
    return (images.float() / 255 - center) / spread
