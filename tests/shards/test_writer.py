"""The writer: reproducible, shuffled, whole or not at all, and able to go on."""

import hashlib
import io
import json
import os
import resource
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
from PIL import Image

from ns_data.shards.dataset import ShardDataset
from ns_data.shards.verify import verify_shards
from ns_data.shards.writer import write_shards
from tests.shards.helpers import picture


def files(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


class Named(list):
    """Samples with names and labels: an interrupted run can go on."""

    def __init__(self, samples):
        super().__init__(samples)
        self.names = [f"file{i}" for i in range(len(samples))]
        self.labels = [sample[1] for sample in samples]
        self.reads = []

    def __getitem__(self, index):
        self.reads.append(index)
        return super().__getitem__(index)


SAMPLES = [(picture(i), i % 5, {"row": i}) for i in range(53)]


@pytest.mark.parametrize("workers", [0, 2])
def test_two_runs_give_identical_bytes(tmp_path, workers):
    for name, count in (("a", 0), ("b", workers)):
        write_shards(SAMPLES, tmp_path / name, samples_per_shard=10, workers=count, progress=False)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    write_shards(SAMPLES, tmp_path / "c", samples_per_shard=10, seed=1, progress=False)
    assert files(tmp_path / "c") != files(tmp_path / "a")


def test_members_are_plain_and_shuffled_and_images_untouched(tmp_path):
    write_shards(SAMPLES, tmp_path, samples_per_shard=20, progress=False)
    seen = {}
    for path in sorted(tmp_path.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                assert (member.mtime, member.type, member.pax_headers) == (0, tarfile.REGTYPE, {})
                seen[member.name] = tar.extractfile(member).read()
    assert len(seen) == 3 * 53
    rows = [json.loads(seen[f"{i:09d}.json"])["row"] for i in range(53)]
    assert sorted(rows) == list(range(53))
    assert rows != sorted(rows)
    for i, row in enumerate(rows):
        assert seen[f"{i:09d}.jpg"] == picture(row)
        assert int(seen[f"{i:09d}.cls"]) == row % 5
    assert [json.loads(line) for line in (tmp_path / "train.list").read_text().splitlines()] == rows


def test_webdataset_reads_what_was_written(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    write_shards(SAMPLES, tmp_path, samples_per_shard=20, progress=False)
    urls = [str(path) for path in sorted(tmp_path.glob("*.tar"))]
    read = list(webdataset.WebDataset(urls, shardshuffle=False).to_tuple("jpg", "cls"))
    dataset = ShardDataset(tmp_path)
    assert [jpg for jpg, _ in read] == [dataset.read_bytes(i) for i in range(53)]
    assert [int(cls) for _, cls in read] == dataset.labels.tolist()


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path):
    write_shards(Named(SAMPLES), tmp_path / "whole", samples_per_shard=10, progress=False)

    class Stops(Named):
        def __getitem__(self, index):
            if len(self.reads) == 35:
                raise KeyboardInterrupt
            return super().__getitem__(index)

    with pytest.raises(KeyboardInterrupt):
        write_shards(Stops(SAMPLES), tmp_path / "cut", samples_per_shard=10, progress=False)
    assert sorted(files(tmp_path / "cut")) == [f"train-00000{i}.tar" for i in range(3)] + ["train.writing"]
    rest = Named(SAMPLES)
    write_shards(rest, tmp_path / "cut", samples_per_shard=10, progress=False)
    assert len(rest.reads) == 23  # three shards were whole
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    again = Named(SAMPLES)
    write_shards(again, tmp_path / "cut", samples_per_shard=10, progress=False)
    assert not again.reads  # nothing was missing


def test_other_settings_start_anew(tmp_path):
    write_shards(Named(SAMPLES), tmp_path, samples_per_shard=5, progress=False)
    write_shards(Named(SAMPLES), tmp_path, samples_per_shard=20, progress=False)
    assert len(list(tmp_path.glob("*.tar"))) == 3
    assert len(ShardDataset(tmp_path)) == 53
    again = Named(SAMPLES[:-1])
    write_shards(again, tmp_path, samples_per_shard=20, progress=False)
    assert len(again.reads) == 52


class Slow(Named):
    """Takes its time, so that a process is killed inside a shard."""

    def __getitem__(self, index):
        time.sleep(0.003)
        return super().__getitem__(index)


KILLED = """
import sys
from ns_data.shards.writer import write_shards
from tests.shards.test_writer import SAMPLES, Slow
write_shards(Slow(SAMPLES), sys.argv[1], samples_per_shard=3, workers=int(sys.argv[2]), progress=False)
"""


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_sigkill_at_random_moments_leaves_no_half_shard(tmp_path, workers):
    write_shards(Named(SAMPLES), tmp_path / "whole", samples_per_shard=3, progress=False)
    folder = tmp_path / "cut"
    rng = np.random.default_rng(0)
    for _ in range(3):
        child = subprocess.Popen([sys.executable, "-c", KILLED, str(folder), str(workers)], start_new_session=True)
        while child.poll() is None and not list(folder.glob("*.tar")):
            time.sleep(0.001)
        time.sleep(float(rng.random()) * 0.04)
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        whole = files(tmp_path / "whole")
        for name, digest in files(folder).items():
            assert name.endswith((".partial", ".writing")) or whole[name] == digest
    write_shards(Named(SAMPLES), folder, samples_per_shard=3, progress=False)
    assert files(folder) == files(tmp_path / "whole")


def test_a_full_disk_leaves_no_half_shard(tmp_path):
    folder = tmp_path / "set"
    code = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, {resource.RLIM_INFINITY}))\n" + KILLED
    code = code.replace("samples_per_shard=3", "samples_per_shard=10")
    child = subprocess.run([sys.executable, "-c", code, str(folder), "0"], capture_output=True, text=True)
    assert child.returncode == 1
    assert "OSError" in child.stderr
    assert not list(folder.glob("*.tar*"))
    write_shards(Named(SAMPLES), folder, samples_per_shard=10, progress=False)
    assert not verify_shards(folder).problems


def test_reencoding_makes_smaller_images_and_is_recorded(tmp_path):
    large = picture(3, size=(60, 120))
    description = write_shards([(large, 0), (picture(4), 1)], tmp_path, seed=None, max_side=40, quality=80, progress=False)
    assert description["made_by"]["train"]["max_side"] == 40
    assert description["made_by"]["train"]["quality"] == 80
    dataset = ShardDataset(tmp_path)
    assert dataset[0][0].shape == (3, 20, 40)
    assert dataset[1][0].shape == (3, 12, 10)
    expected = io.BytesIO()
    with Image.open(io.BytesIO(large)) as image:
        image.convert("RGB").resize((40, 20), Image.Resampling.BICUBIC).save(expected, "JPEG", quality=80)
    assert dataset.read_bytes(0) == expected.getvalue()
    write_shards([(picture(4), 1)], tmp_path / "untouched", max_side=40, progress=False)
    assert ShardDataset(tmp_path / "untouched").read_bytes(0) == picture(4)


def test_arrays_and_dictionaries_and_texts(tmp_path):
    gray, color = np.arange(64, dtype=np.uint8).reshape(8, 8), np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    write_shards([(gray, 0), {"png": color, "cls": 1, "json": {"a": 1}}], tmp_path / "images", seed=None, progress=False)
    dataset = ShardDataset(tmp_path / "images")
    assert np.array_equal(dataset[0][0].numpy(), np.stack([gray] * 3))
    assert np.array_equal(dataset[1][0].numpy(), color.transpose(2, 0, 1))
    write_shards([("good film", 1), ("Überlänge", 0)], tmp_path / "texts", seed=None, progress=False)
    texts = ShardDataset(tmp_path / "texts")
    assert [texts[i][:2] for i in range(2)] == [("good film", 1), ("Überlänge", 0)]


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ((picture(1), -1), "label must be a non-negative integer, got -1"),
        ((picture(1), "3"), "label must be a non-negative integer, got '3'"),
        ((b"GIF89a", 0), "not a readable"),
        ((np.zeros((4, 4)), 0), "uint8 of shape"),
        ({"cls": 1}, "needs one image"),
        ({"jpg": picture(1), "png": picture(2), "cls": 0}, "needs one image"),
        ({"jpg": picture(1), "cls": 0, "pyd": object()}, "member 'pyd' must be bytes or text"),
        (7, "must be \\(image"),
    ],
)
def test_wrong_samples_are_refused_by_number(tmp_path, sample, message):
    with pytest.raises(ValueError, match=f"sample 0: .*{message}"):
        write_shards([sample], tmp_path, progress=False)
    assert not list(tmp_path.glob("*.tar*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"samples_per_shard": 0}, "samples_per_shard"), ({"quality": 0}, "quality"), ({"max_side": 0}, "max_side")],
)
def test_wrong_options_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        write_shards(SAMPLES, tmp_path, progress=False, **options)
    with pytest.raises(ValueError, match="no samples to write"):
        write_shards([], tmp_path, progress=False)
