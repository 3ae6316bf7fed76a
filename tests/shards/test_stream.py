"""PlannedStream: the batches of random access, over files and HTTP, through faults, ranks, workers and resumes."""

import types

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from ns_data.augment import CropFlip, Fit
from ns_data.batching import GroupingBatchSampler
from ns_data.collate import NSCollator
from ns_data.sampling import ClassBalancedSampler, ShuffleSampler
from ns_data.shards.dataset import ShardDataset
from ns_data.shards.remote import RemoteShards
from ns_data.shards.stream import PlannedStream
from ns_data.shards.tar import ShardError
from ns_data.shards.writer import write_shards
from tests.shards.helpers import picture
from tests.shards.server import Server

pytest.importorskip("fsspec")
QUICK = {"backoff": 0.01, "timeout": 0.3, "retries": 3}
N = 150


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("shards")
    samples = [(picture(i, (20, 16)), min(i % 7, 3)) for i in range(N)]
    write_shards(samples, path, samples_per_shard=20, progress=False)
    return path


def plan(folder, sampler="shuffle", *, rank=0, world_size=1, epoch=1):
    data = ShardDataset(folder)
    made = ShuffleSampler(data.labels) if sampler == "shuffle" else ClassBalancedSampler(data.labels)
    made.local(data.shard_sizes, 4, window=16)
    batches = GroupingBatchSampler(
        made, 16 // world_size, labels=data.labels, layout="1x2", grouping="class_mixed", rank=rank, world_size=world_size
    )
    batches.set_epoch(epoch)
    return batches


def random_access(folder, sampler="shuffle", transform=None, **options):
    data = ShardDataset(folder, transform=transform or CropFlip(16), seed=2)
    return list(DataLoader(data, batch_sampler=plan(folder, sampler, **options), collate_fn=NSCollator("1x2")))


def stream_of(url, folder, sampler="shuffle", *, transform=None, on_error="raise", max_skipped=100, remote=None, **options):
    batches = plan(folder, sampler, **options)
    shards = RemoteShards(url, **(remote or {}))
    return PlannedStream(shards, batches, transform or CropFlip(16), seed=2, on_error=on_error, max_skipped=max_skipped)


def loaded(stream, workers=0):
    return list(DataLoader(stream, batch_size=None, num_workers=workers))


def equal(first, second):
    return len(first) == len(second) and all(
        torch.equal(a, b) for one, two in zip(first, second, strict=True) for a, b in zip(one, two, strict=True)
    )


@pytest.mark.parametrize("sampler", ["shuffle", "cbs"])
@pytest.mark.parametrize("workers", [0, 2, 3])
def test_a_stream_gives_the_batches_of_random_access(folder, sampler, workers):
    stream = stream_of(folder, folder, sampler)
    assert len(stream) == 10
    assert equal(loaded(stream, workers), random_access(folder, sampler))
    stream.set_epoch(2)
    assert equal(loaded(stream, workers), random_access(folder, sampler, epoch=2))


def test_ranks_and_global_generators(folder):
    def noise(image):
        return image[:, :4, :4] + torch.rand(3, 4, 4)

    for rank in (0, 1):
        expected = random_access(folder, transform=noise, rank=rank, world_size=2)
        assert equal(loaded(stream_of(folder, folder, transform=noise, rank=rank, world_size=2)), expected)


@pytest.mark.parametrize("done", [1, 4, 9])
@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0), (2, 3)])
def test_resume_in_the_middle_with_another_number_of_workers(folder, done, before, after):
    expected = random_access(folder)
    first = stream_of(folder, folder)
    seen = [batch for batch, _ in zip(DataLoader(first, batch_size=None, num_workers=before), range(done), strict=False)]
    assert equal(seen, expected[:done])
    second = stream_of(folder, folder, epoch=0)
    second.load_state_dict(first.state_dict(done))
    second.set_epoch(1)
    assert equal(loaded(second, after), expected[done:])
    assert first.state_dict(10)["epoch"] == 2


def test_resume_with_another_number_of_ranks(folder):
    expected = random_access(folder)
    state = stream_of(folder, folder).state_dict(3)
    halves = []
    for rank in (0, 1):
        stream = stream_of(folder, folder, rank=rank, world_size=2, epoch=0)
        stream.load_state_dict(state)
        halves.append(loaded(stream))
    for batch, left, right in zip(expected[3:], *halves, strict=True):
        assert torch.equal(torch.cat([left.images, right.images]), batch.images)


def test_persistent_workers_follow_the_epoch(folder):
    stream = stream_of(folder, folder)
    loader = DataLoader(stream, batch_size=None, num_workers=2, persistent_workers=True)
    for epoch in (0, 1, 2):
        stream.set_epoch(epoch)
        assert equal(list(loader), random_access(folder, epoch=epoch))


@pytest.mark.parametrize("workers", [0, 2])
def test_over_http_each_byte_is_read_about_once(folder, workers):
    with Server(folder) as server:
        stream = stream_of(server.url, folder, remote={**QUICK, "merge_gap": 0})
        server.bytes = 0
        assert equal(loaded(stream, workers), random_access(folder))
        payload = sum(int(size) for size in ShardDataset(folder).sizes())
        assert payload < server.bytes < 1.1 * payload + 1024 * N
        server.requests.clear()
        assert equal(loaded(stream_of(server.url, folder), workers), random_access(folder))
        assert sum(server.requests.values()) < N / 2  # neighbours come together


@pytest.mark.parametrize("fault", ["500", "cut", "cut without length", "stall"])
def test_http_faults_are_tried_again(folder, fault):
    with Server(folder, lambda path, count: fault if path.endswith(".tar") and count % 3 == 1 else None) as server:
        stream = stream_of(server.url, folder, remote={**QUICK, "threads": 4})
        with pytest.warns(UserWarning, match="trying again"):
            made = loaded(stream)
        assert equal(made, random_access(folder))


@pytest.mark.parametrize("fault", ["500", "cut", "stall"])
@pytest.mark.filterwarnings("ignore:.*trying again")
def test_http_faults_that_stay_end_loudly(folder, fault):
    with Server(folder, lambda path, count: fault if path == "train-000003.tar" else None) as server:
        stream = stream_of(server.url, folder, remote={**QUICK, "retries": 1})
        with pytest.raises(ShardError, match=r"train-000003.tar, bytes \d+ to \d+ could not be read in 2 attempts"):
            loaded(stream)


def test_missing_shard_changed_shard_and_server_without_ranges(folder, tmp_path):
    with Server(folder, ranges=False) as server:
        stream = stream_of(server.url, folder, remote=QUICK)
        with pytest.raises(ShardError, match="it must support ranges"):
            loaded(stream)
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with Server(tmp_path) as server:
        stream = stream_of(server.url, folder, remote=QUICK)
        samples = [(picture(500 + i, (23, 16)), 0) for i in range(20)]
        write_shards(samples, tmp_path / "other", progress=False)
        (tmp_path / "train-000002.tar").write_bytes((tmp_path / "other" / "train-000000.tar").read_bytes())
        with pytest.raises(ShardError, match=r"train-000002.tar changed after|could not be read|damaged header"):
            loaded(stream)
        (tmp_path / "train-000002.tar").unlink()
        with pytest.raises(ShardError, match=r"train-000002.tar is missing"):
            loaded(stream)
        with pytest.raises(ShardError, match=r"dataset.json is missing"):
            RemoteShards(server.url + "/nothing")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore:skipped")
def test_skip_keeps_the_number_of_batches(folder, workers):
    with Server(folder, lambda path, count: "500" if path == "train-000003.tar" else None) as server:
        remote = {"retries": 0, "merge_gap": 0}
        stream = stream_of(server.url, folder, on_error="skip", remote=remote)
        made = loaded(stream, workers)
        assert len(made) == 10
        assert sum(int(batch.skipped) for batch in made) == 20
        assert len(stream.skipped()) == 20
        assert all("train-000003.tar" in name for name in stream.skipped())
        stream = stream_of(server.url, folder, on_error="skip", max_skipped=19, remote=remote)
        with pytest.raises(ShardError, match="more than max_skipped=19"):
            loaded(stream, workers)


@pytest.mark.parametrize(
    "url",
    [
        "pipe:touch MARK",
        "pipe://touch MARK",
        "simplecache::http://x/y",
        "http://a/b::pipe:touch MARK",
        "ssh://host/x",
        "ftp://x/y",
    ],
)
def test_other_urls_are_refused(url, tmp_path, monkeypatch):
    monkeypatch.setenv("GOPEN_REWRITE", f"http=pipe:touch {tmp_path / 'MARK'};")
    with pytest.raises(ValueError, match="cannot read shards from"):
        RemoteShards(url.replace("MARK", str(tmp_path / "MARK")))
    assert not (tmp_path / "MARK").exists()


def test_a_stream_refuses_plans_that_are_not_its_own(folder, tmp_path):
    data = ShardDataset(folder)
    anywhere = GroupingBatchSampler(ShuffleSampler(N), 16, labels=data.labels, layout="1x2")
    with pytest.raises(ValueError, match="needs a plan that follows the shards"):
        PlannedStream(folder, anywhere)
    local = ShuffleSampler(N, shards=data.shard_sizes, lanes=4)
    with pytest.raises(ValueError, match="made for other labels"):
        PlannedStream(folder, GroupingBatchSampler(local, 16, labels=np.roll(data.labels, 1), layout="1x2"))
    local = ShuffleSampler(N, shards=[N // 2, N // 2], lanes=4)
    with pytest.raises(ValueError, match="made for other shards"):
        PlannedStream(folder, GroupingBatchSampler(local, 16, labels=data.labels, layout="1x2"))
    stream = PlannedStream(folder, plan(folder), Fit(8))
    with pytest.raises(ValueError, match="another data set or setting: seed"):
        stream.load_state_dict({**stream.state_dict(0), "settings": {**stream.state_dict(0)["settings"], "seed": 5}})


def test_accelerate_may_not_take_batches_apart(folder):
    """A stand-in for accelerate's class of this name, which iterates over the data set it was given."""
    module = types.ModuleType("accelerate.data_loader")
    code = "class IterableDatasetShard:\n    def go(self, data):\n        return next(iter(data))\n"
    exec(code, module.__dict__)
    with pytest.raises(ValueError, match="accelerate's prepare would deal the batches"):
        module.IterableDatasetShard().go(stream_of(folder, folder))
