"""Augmentation: random draws that depend on the plan alone, and the transforms that use them.

Every draw is a function of (seed, epoch, batch number, slot), never of the sample's id or of global state: an image drawn
twice in an epoch differs each time, and the same slot gets the same pixels with any number of workers, ranks or resumes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.lib.stride_tricks import sliding_window_view
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
        image_CHW = resize(image_CHW, shape)
        H, W = shape
    top, left = (H - size) // 2, (W - size) // 2
    return image_CHW[:, top : top + size, left : left + size]


class Fit:
    """The transform for evaluation: ``fit`` to a square of ``resize`` pixels (by default ``size``) and take its centre."""

    num_draws = 0

    def __init__(self, size: int, resize: int | None = None) -> None:
        self.size, self.resize = size, size if resize is None else resize
        if self.resize < size:
            raise ValueError(f"resize {self.resize} is smaller than the size {size} to cut out of it")

    def prepare(self, image_CHW: Tensor) -> Tensor:
        """The part without randomness: a resident set does it once and keeps the result."""
        image_CHW = fit(image_CHW, self.resize)
        cut = (self.resize - self.size) // 2
        return image_CHW[:, cut : cut + self.size, cut : cut + self.size]

    def batch(self, images_NCHW: Tensor, ids: np.ndarray, uniforms: np.ndarray) -> Tensor:
        """Chosen ones of the prepared images, given (B, num_draws) uniforms: the same pixels as one by one."""
        return images_NCHW.index_select(0, torch.from_numpy(ids).to(images_NCHW.device, non_blocking=True))  # [] is far slower

    def __call__(self, image_CHW: Tensor, uniforms: np.ndarray) -> Tensor:
        return self.prepare(image_CHW)


class CropFlip:
    """``fit``, then a random crop of the image padded by ``padding`` black pixels, and a flip in half of the draws."""

    num_draws = 3

    def __init__(self, size: int, padding: int = 4, flip: bool = True) -> None:
        self.size, self.padding, self.flip = size, padding, flip

    def prepare(self, image_CHW: Tensor) -> Tensor:
        return F.pad(fit(image_CHW, self.size), (self.padding,) * 4)

    def batch(self, images_NCHW: Tensor, ids: np.ndarray, uniforms: np.ndarray) -> Tensor:
        corners = (uniforms[:, :2] * (2 * self.padding + 1)).astype(np.int64)
        flipped = uniforms[:, 2] < 0.5 if self.flip else np.zeros(len(uniforms), bool)
        cut = _crops if images_NCHW.device.type == "cpu" else _crops_by_gather
        return cut(images_NCHW, ids, corners, flipped, self.size)

    def __call__(self, image_CHW: Tensor, uniforms: np.ndarray) -> Tensor:
        image_CHW = self.prepare(image_CHW)
        top, left = (int(u * (2 * self.padding + 1)) for u in uniforms[:2])
        image_CHW = image_CHW[:, top : top + self.size, left : left + self.size]
        return image_CHW.flip(2) if self.flip and uniforms[2] < 0.5 else image_CHW


def _crops(images_NCHW: Tensor, ids: np.ndarray, corners: np.ndarray, flipped: np.ndarray, size: int) -> Tensor:
    """A square of each chosen image from its (top, left) corner, some mirrored. NumPy copies whole windows: fast on a CPU."""
    images = images_NCHW.numpy()
    out = np.empty((len(ids), images.shape[1], size, size), np.uint8)
    top, left = corners.T
    for chosen, source, start in ((~flipped, images, left), (flipped, images[..., ::-1], images.shape[3] - size - left)):
        windows = sliding_window_view(source, (size, size), axis=(2, 3))
        out[chosen] = windows[ids[chosen], :, top[chosen], start[chosen]]
    return torch.from_numpy(out)


def _crops_by_gather(images_NCHW: Tensor, ids: np.ndarray, corners: np.ndarray, flipped: np.ndarray, size: int) -> Tensor:
    """The same on any device, in one gather."""
    device, (C, W) = images_NCHW.device, (images_NCHW.shape[1], images_NCHW.shape[3])
    rows_BH = torch.from_numpy(corners[:, :1] + np.arange(size)).to(device, non_blocking=True)
    steps = np.where(flipped[:, None], np.arange(size)[::-1], np.arange(size))
    columns_BW = torch.from_numpy(corners[:, 1:] + steps).to(device, non_blocking=True)
    places_BP = (rows_BH[:, :, None] * W + columns_BW[:, None, :]).flatten(1)
    chosen = images_NCHW[torch.from_numpy(ids).to(device, non_blocking=True)].flatten(2)
    return chosen.gather(2, places_BP[:, None].expand(-1, C, -1)).view(len(ids), C, size, size)


class ResizedCropFlip:
    """A random part of the image (8 to 100 % of its area, 3:4 to 4:3) scaled to ``size``, and a flip in half of the draws.

    Ten tries at a part that fits, then the largest centre that has an allowed shape: the law of torchvision's
    ``RandomResizedCrop``. Source: "Going Deeper with Convolutions", Szegedy et al., 2015.
    """

    _TRIES = 10
    num_draws = 2 * _TRIES + 3

    def __init__(
        self, size: int, scale: Sequence[float] = (0.08, 1.0), ratio: Sequence[float] = (3 / 4, 4 / 3), flip: bool = True
    ) -> None:
        self.size, self.scale, self.ratio, self.flip = size, tuple(scale), tuple(ratio), flip

    def box(self, H: int, W: int, uniforms: np.ndarray) -> tuple[int, int, int, int]:
        """(top, left, height, width) of the part."""
        low, high = np.log(self.ratio[0]), np.log(self.ratio[1])
        for attempt in range(self._TRIES):
            area = H * W * (self.scale[0] + (self.scale[1] - self.scale[0]) * uniforms[2 * attempt])
            ratio = np.exp(low + (high - low) * uniforms[2 * attempt + 1])
            w, h = round(float(np.sqrt(area * ratio))), round(float(np.sqrt(area / ratio)))
            if 0 < w <= W and 0 < h <= H:
                top, left = int(uniforms[-3] * (H - h + 1)), int(uniforms[-2] * (W - w + 1))
                return top, left, h, w
        w = min(W, round(H * self.ratio[1]))
        h = min(H, round(W / self.ratio[0]))
        return (H - h) // 2, (W - w) // 2, h, w

    def __call__(self, image_CHW: Tensor, uniforms: np.ndarray) -> Tensor:
        top, left, h, w = self.box(image_CHW.shape[1], image_CHW.shape[2], uniforms)
        part = resize(image_CHW[:, top : top + h, left : left + w], (self.size, self.size))
        return part.flip(2) if self.flip and uniforms[-1] < 0.5 else part


class StretchCropFlip:
    """The whole image scaled to a square of ``resize`` pixels whatever its shape, a random crop and a flip (as in SHOT)."""

    num_draws = 3

    def __init__(self, size: int, resize: int = 256, flip: bool = True) -> None:
        self.size, self.resize, self.flip = size, resize, flip
        if resize < size:
            raise ValueError(f"resize {resize} is smaller than the size {size} to cut out of it")

    def __call__(self, image_CHW: Tensor, uniforms: np.ndarray) -> Tensor:
        image_CHW = resize(image_CHW, (self.resize, self.resize))
        top, left = (int(u * (self.resize - self.size + 1)) for u in uniforms[:2])
        image_CHW = image_CHW[:, top : top + self.size, left : left + self.size]
        return image_CHW.flip(2) if self.flip and uniforms[2] < 0.5 else image_CHW


class Stretch(Fit):
    """The transform for evaluation beside ``StretchCropFlip``: the whole image as a square of ``resize`` pixels, its centre."""

    def prepare(self, image_CHW: Tensor) -> Tensor:
        return super().prepare(resize(image_CHW, (self.resize, self.resize)))


def resize(image_CHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Scale to (H, W), bilinear and antialiased; uint8 in, uint8 out, without a detour over floats."""
    return F.interpolate(image_CHW[None], size=size, mode="bilinear", antialias=True)[0]


# Training transforms by the names that configs use.
AUGMENTS: dict[str, Callable[..., Drawn]] = {
    "none": Fit,
    "crop_flip": CropFlip,
    "resized_crop_flip": ResizedCropFlip,
    "stretch_crop_flip": StretchCropFlip,
}


def normalize(images: Tensor, mean: list[float], std: list[float]) -> Tensor:
    """uint8 images as floats, scaled to [0, 1], minus ``mean``, over ``std``, by channel; other dtypes pass unchanged."""
    if images.dtype != torch.uint8:
        return images
    scale, shift = _scale_and_shift(tuple(mean), tuple(std), images.device)
    return images.float().mul_(scale).add_(shift)


@lru_cache(maxsize=8)
def _scale_and_shift(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Made once: a copy to a GPU in every step would wait for all that the GPU still has to do."""
    scale = 1 / (255 * torch.tensor(std, device=device).view(-1, 1, 1))
    return scale, -torch.tensor(mean, device=device).view(-1, 1, 1) * 255 * scale
