"""ShardDataset under a plan: the same pixels whatever the workers, ranks and resumes; and resident sets beside it."""

import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset

from ns_data.augment import CropFlip, Fit
from ns_data.batching import GroupingBatchSampler
from ns_data.collate import NSCollator
from ns_data.sampling import ClassBalancedSampler, ShuffleSampler
from ns_data.shards.dataset import ShardDataset
from ns_data.shards.decode import DECODERS, decode_image
from ns_data.shards.resident import ResidentLoader
from ns_data.shards.writer import write_shards
from tests.shards.helpers import picture

LAYOUT = "1x2"
SAMPLERS = {
    "shuffle": lambda labels: ShuffleSampler(labels, seed=3),
    "cbs": lambda labels: ClassBalancedSampler(labels, seed=3),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("shards")
    labels = [0] * 30 + [1] * 8 + [2] * 2
    samples = [(picture(i, (20, 16)), label) for i, label in enumerate(labels)]
    write_shards(samples, path, samples_per_shard=15, progress=False)
    return path


def sampler_of(dataset, name, epoch, *, rank=0, world_size=1):
    sampler = GroupingBatchSampler(
        SAMPLERS[name](dataset.labels), 8 // world_size, labels=dataset.labels, layout=LAYOUT, rank=rank, world_size=world_size
    )
    sampler.set_epoch(epoch)
    return sampler


def batches_of(dataset, name, epoch, *, workers=0, state=None, rank=0, world_size=1):
    sampler = sampler_of(dataset, name, epoch, rank=rank, world_size=world_size)
    if state is not None:
        sampler.load_state_dict(state)
    loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=NSCollator(LAYOUT), num_workers=workers)
    return list(loader), sampler


def equal(first, second):
    return len(first) == len(second) and all(
        torch.equal(a, b) for one, two in zip(first, second, strict=True) for a, b in zip(one, two, strict=True)
    )


def torch_random(image):
    """A transform that uses the global generators."""
    noise = torch.rand(3, 4, 4) + float(np.random.rand())
    return image[:, :4, :4] + noise


@pytest.mark.parametrize("transform", [CropFlip(16), torch_random], ids=["drawn", "global generators"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_workers_and_resume_give_the_same_pixels(folder, name, transform):
    dataset = ShardDataset(folder, transform=transform, seed=9)
    plain, sampler = batches_of(dataset, name, 2)
    assert len(plain) == 5
    assert equal(batches_of(dataset, name, 2, workers=2)[0], plain)
    assert not equal(batches_of(dataset, name, 3)[0], plain)
    assert not equal(batches_of(ShardDataset(folder, transform=transform, seed=8), name, 2)[0], plain)
    sampler.set_epoch(2)
    state = sampler.state_dict(batches_done=3)
    for workers in (0, 2):
        torch.manual_seed(workers)
        assert equal(batches_of(dataset, name, 0, workers=workers, state=state)[0], plain[3:])


def test_ranks_together_give_the_same_pixels(folder):
    dataset = ShardDataset(folder, transform=CropFlip(16))
    whole, _ = batches_of(dataset, "shuffle", 1)
    parts = [batches_of(dataset, "shuffle", 1, rank=rank, world_size=2)[0] for rank in (0, 1)]
    for batch, left, right in zip(whole, *parts, strict=True):
        assert torch.equal(torch.cat([left.images, right.images]), batch.images)
        assert torch.equal(torch.cat([left.ids, right.ids]), batch.ids)


def test_two_draws_of_one_image_differ(folder):
    dataset = ShardDataset(folder, transform=CropFlip(16))
    batches, _ = batches_of(dataset, "cbs", 0)
    ids = torch.cat([batch.ids for batch in batches]).tolist()
    images = torch.cat([batch.images for batch in batches])
    repeated = max(set(ids), key=ids.count)
    draws = [images[place] for place in range(len(ids)) if ids[place] == repeated]
    assert len(draws) >= 4  # the rarest class has two images for a third of the draws
    assert len({draw.numpy().tobytes() for draw in draws}) > len(draws) // 2


def test_subset_is_refused_where_it_would_lose_the_draws(folder):
    dataset = ShardDataset(folder, transform=CropFlip(16))
    sampler = GroupingBatchSampler(ShuffleSampler(20), 4, labels=dataset.labels[:20], layout=LAYOUT)
    with pytest.raises(ValueError, match="a wrapper such as Subset takes the planned batch apart"):
        next(iter(DataLoader(Subset(dataset, range(20)), batch_sampler=sampler)))
    without_draws = ShardDataset(folder, transform=Fit(16))
    assert len(next(iter(DataLoader(Subset(without_draws, range(20)), batch_size=4)))) == 3


def test_plain_loaders_and_pickling_work(folder):
    dataset = pickle.loads(pickle.dumps(ShardDataset(folder, transform=Fit(16))))
    assert len(dataset) == 40
    images, labels, ids = next(iter(DataLoader(dataset, batch_size=40, num_workers=1, multiprocessing_context="spawn")))
    assert images.shape == (40, 3, 16, 16)
    assert labels.tolist() == dataset.labels.tolist()
    assert ids.tolist() == list(range(40))
    assert torch.equal(dataset[-1][0], images[-1])


def test_decoders_agree():
    for kind in ("JPEG", "PNG", "WEBP"):
        data = picture(3, (33, 47), kind)
        decoded = [decode_image(data, name) for name in DECODERS]
        assert all(image.shape == (3, 33, 47) and image.dtype == torch.uint8 for image in decoded)
        for image in decoded[1:]:
            assert (image.int() - decoded[0].int()).abs().max() <= 2
    with pytest.raises(ValueError, match="unknown decoder 'pil'"):
        decode_image(picture(1), "pil")


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA", "P", "I;16", "LA"])
@pytest.mark.parametrize("decoder", DECODERS)
def test_every_colour_mode_becomes_rgb(mode, decoder):
    import io

    from PIL import Image

    buffer = io.BytesIO()
    source = Image.new(mode, (9, 7)) if mode == "I;16" else Image.new("RGB", (9, 7), (200, 90, 30)).convert(mode)
    source.save(buffer, "JPEG" if mode in ("L", "CMYK") else "PNG")
    assert decode_image(buffer.getvalue(), decoder).shape == (3, 7, 9)


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_cut_jpeg_is_refused_by_every_decoder(decoder):
    data = picture(3, (64, 64))
    with pytest.raises(ValueError, match="not a readable JPEG image"):
        decode_image(data[: len(data) // 2], decoder)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("transform", [CropFlip(16), CropFlip(12, padding=2), Fit(16)])
def test_a_resident_set_gives_the_batches_of_the_loader(folder, name, transform):
    dataset = ShardDataset(folder, transform=transform, seed=4)
    expected, _ = batches_of(dataset, name, 5)
    for cache in (True, True, False):  # decoded, then from the cache, then decoded again
        loader = ResidentLoader(dataset, sampler_of(dataset, name, 5), cache=cache)
        assert len(loader) == 5
        assert equal(list(loader), expected)


def test_the_resident_cache_follows_the_shards(tmp_path):
    for seed in (0, 1):
        write_shards([(picture(10 * seed + i, (8, 8)), i % 2) for i in range(6)], tmp_path, seed=None, progress=False)
        dataset = ShardDataset(tmp_path, transform=Fit(8))
        loader = ResidentLoader(dataset, [[0, 1], [5]])
        batches = list(loader)
        assert torch.equal(batches[1].images[0], dataset[5][0])
        assert batches[0].groups.shape[0] == 0
    assert len(list(tmp_path.glob("resident-*.npy"))) == 2
    for cache in tmp_path.glob("resident-*.npy"):
        cache.write_bytes(pickle.dumps("no array"))
    with pytest.raises(ValueError, match="delete it, it is only a cache"):
        ResidentLoader(dataset, [[0]])
    with pytest.raises(ValueError, match="a resident set needs a transform"):
        ResidentLoader(ShardDataset(tmp_path), [[0]])


def stubborn(image):
    """A transform that takes a while, so that a worker is killed in the middle of a batch."""
    import time

    time.sleep(0.01)
    return image[:, :4, :4]


def test_a_killed_worker_ends_loudly_and_the_state_goes_on(folder):
    import os
    import signal

    dataset = ShardDataset(folder, transform=stubborn)
    expected, sampler = batches_of(dataset, "shuffle", 0)
    sampler = sampler_of(dataset, "shuffle", 0)
    loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=NSCollator(LAYOUT), num_workers=1)
    batches = iter(loader)
    assert equal([next(batches)], expected[:1])
    os.kill(batches._workers[0].pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match=r"killed by signal|exited unexpectedly"):
        list(batches)
    assert equal(batches_of(dataset, "shuffle", 0, state=sampler.state_dict(batches_done=1))[0], expected[1:])
