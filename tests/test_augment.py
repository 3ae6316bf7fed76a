"""Augmentation: draws that the plan decides, and pixels against torchvision and hand-cut images."""

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from torchvision.transforms.v2 import RandomResizedCrop

from ns_data.augment import (
    AUGMENTS,
    CropFlip,
    Fit,
    ResizedCropFlip,
    Stretch,
    StretchCropFlip,
    _crops,
    _crops_by_gather,
    draw_keys,
    fit,
    normalize,
    seeded,
    uniforms,
)


def image(H=37, W=53, seed=0):
    return torch.randint(0, 256, (3, H, W), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_keys_follow_splitmix64():
    """The published generator from seed 1234567 (Steele, Lea and Flood; the sequence that Rosetta Code lists)."""
    from ns_data.augment import _STEP, _mix

    with np.errstate(over="ignore"):
        first = [int(_mix(np.uint64(1234567) + np.uint64(i) * _STEP)) for i in range(3)]
    assert first == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_uniforms_are_uniform_and_differ_by_every_part():
    base = uniforms(draw_keys(0, 0, 0, np.arange(20_000)), 2)
    assert base.min() >= 0
    assert base.max() < 1
    counts = np.histogram2d(base[:, 0], base[:, 1], bins=10, range=[[0, 1], [0, 1]])[0]
    assert ((counts - 200) ** 2 / 200).sum() < 99 + 5 * np.sqrt(198)  # chi-squared with 99 degrees of freedom
    for other in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):
        assert (uniforms(draw_keys(*other, np.arange(100)), 2) != base[:100]).all()


def test_seeded_puts_the_generators_back():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    with seeded(77):
        inside = torch.rand(1), np.random.rand(1)
    assert torch.equal(torch.rand(4), expected)
    with seeded(77):
        assert (torch.rand(1), np.random.rand(1)) == inside


@pytest.mark.parametrize("shape", [(37, 53), (53, 37), (40, 40), (20, 90)])
def test_fit_is_resize_and_center_crop(shape):
    size = 24
    expected = tv.center_crop(tv.resize(image(*shape), size, antialias=True), [size, size])
    difference = (fit(image(*shape), size).int() - expected.int()).abs()
    assert fit(image(*shape), size).shape == (3, size, size)
    assert difference.float().mean() < 20  # half a pixel of another centre on noise would be about 60
    assert torch.equal(fit(image(24, 24), 24), image(24, 24))


def test_fit_with_resize_cuts_the_centre():
    picture = image(40, 40)
    assert torch.equal(Fit(32, resize=40)(picture, np.empty(0)), picture[:, 4:36, 4:36])
    with pytest.raises(ValueError, match="resize 16 is smaller than the size 32"):
        Fit(32, resize=16)


def test_crop_flip_by_hand():
    picture = image(8, 8)
    padded = torch.zeros(3, 12, 12, dtype=torch.uint8)
    padded[:, 2:10, 2:10] = picture
    law = CropFlip(8, padding=2)
    assert torch.equal(law(picture, np.array([0.0, 0.999, 0.7])), padded[:, :8, 4:])
    assert torch.equal(law(picture, np.array([0.5, 0.2, 0.1])), padded[:, 2:10, 1:9].flip(2))
    assert torch.equal(CropFlip(8, padding=2, flip=False)(picture, np.array([0.5, 0.5, 0.1])), picture)


@pytest.mark.parametrize("law", [CropFlip(16), CropFlip(16, padding=2, flip=False), Fit(16), Fit(16, resize=20)])
def test_batches_have_the_pixels_of_single_images(law):
    pictures = [image(30, 20, seed) for seed in range(64)]
    draws = uniforms(draw_keys(5, 6, 7, np.arange(64)), law.num_draws)
    prepared = torch.stack([law.prepare(picture) for picture in pictures])
    single = torch.stack([law(picture, draw) for picture, draw in zip(pictures, draws, strict=True)])
    order = np.random.default_rng(0).permutation(64)
    assert torch.equal(law.batch(prepared, order, draws[order]), single[order])


def test_both_ways_to_crop_agree():
    rng = np.random.default_rng(0)
    images = torch.stack([image(20, 24, seed) for seed in range(9)])
    ids, corners, flipped = rng.integers(0, 9, 12), rng.integers(0, 5, (12, 2)), rng.random(12) < 0.5
    assert torch.equal(_crops(images, ids, corners, flipped, 16), _crops_by_gather(images, ids, corners, flipped, 16))


def test_resized_crop_has_the_law_of_torchvision():
    H, W, n = 375, 500, 4000
    law = ResizedCropFlip(224)
    ours = np.array([law.box(H, W, draw) for draw in uniforms(draw_keys(0, 0, 0, np.arange(n)), law.num_draws)])
    torch.manual_seed(0)
    other = RandomResizedCrop(224)
    params = [other.make_params([torch.zeros(3, H, W)]) for _ in range(n)]
    theirs = np.array([[p[k] for k in ("top", "left", "height", "width")] for p in params])
    assert (ours[:, 0] + ours[:, 2] <= H).all()
    assert (ours[:, 1] + ours[:, 3] <= W).all()
    for column in range(4):
        quantiles = np.linspace(0.05, 0.95, 10)
        difference = np.quantile(ours[:, column], quantiles) - np.quantile(theirs[:, column], quantiles)
        assert np.abs(difference).max() < 0.05 * (H, W, H, W)[column]
    top, left, h, w = law.box(H, W, uniforms(draw_keys(1, 0, 0, np.arange(1)), 23)[0])
    draws = uniforms(draw_keys(1, 0, 0, np.arange(1)), 23)[0]
    expected = tv.resized_crop(image(H, W), top, left, h, w, [224, 224], antialias=True)
    expected = expected.flip(2) if draws[-1] < 0.5 else expected
    assert (law(image(H, W), draws).int() - expected.int()).abs().max() <= 1


def test_resized_crop_of_an_extreme_shape_is_a_centre():
    law = ResizedCropFlip(8, scale=(1.0, 1.0))
    assert law.box(10, 1000, np.full(23, 0.5)) == (0, 493, 10, 13)  # 4:3 of a height of 10


def test_stretch_ignores_the_shape():
    draws = np.array([0.0, 0.999, 0.9])
    expected = tv.resize(image(), [32, 32], antialias=True)[:, :24, 8:]
    assert (StretchCropFlip(24, resize=32)(image(), draws).int() - expected.int()).abs().max() <= 1
    with pytest.raises(ValueError, match="resize 8 is smaller"):
        StretchCropFlip(24, resize=8)


def test_stretch_for_evaluation_takes_the_centre_of_the_whole_image():
    expected = tv.center_crop(tv.resize(image(), [32, 32], antialias=True), [24, 24])
    assert (Stretch(24, resize=32)(image(), np.empty(0)).int() - expected.int()).abs().max() <= 1
    assert not torch.equal(Stretch(24, resize=32)(image(), np.empty(0)), Fit(24, resize=32)(image(), np.empty(0)))


@pytest.mark.parametrize("name", AUGMENTS)
def test_every_augmentation_makes_uint8_squares_from_its_draws_alone(name):
    law = AUGMENTS[name](16)
    draws = uniforms(draw_keys(0, 0, 0, np.arange(2)), law.num_draws)
    first = law(image(), draws[0])
    assert (first.shape, first.dtype) == ((3, 16, 16), torch.uint8)
    assert torch.equal(law(image(), draws[0]), first)
    assert name == "none" or not torch.equal(law(image(), draws[1]), first)


def test_normalize_against_torchvision():
    pictures = torch.stack([image(), image(seed=1)])
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]
    expected = tv.normalize(tv.to_dtype(pictures, torch.float32, scale=True), mean, std)
    torch.testing.assert_close(normalize(pictures, mean, std), expected)
    assert normalize(expected, mean, std) is expected
