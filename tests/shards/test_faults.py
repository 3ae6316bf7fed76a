"""Each fault that a tar reader passes over silently, or meets late, is refused where it lies, or read rightly."""

import gzip
import io
import json
import os
import re
import tarfile

import numpy as np
import pytest

from ns_data.batching import GroupingBatchSampler
from ns_data.collate import NSCollator
from ns_data.sampling import ShuffleSampler
from ns_data.shards.dataset import ShardDataset
from ns_data.shards.index import ShardError, index_shards, load_index
from ns_data.shards.verify import verify_shards
from ns_data.shards.writer import write_shards
from tests.shards.helpers import header_positions, members, picture, tar_bytes, three_shards

GOOD = tar_bytes(members(10, 10))
AT = header_positions(GOOD)


def cut_at_a_member(data):
    return data[: AT["000015.jpg"]]


def cut_in_a_payload(data):
    return data[: AT["000015.jpg"] + 600]


def cut_in_a_header(data):
    return data[: AT["000015.jpg"] + 100]


def cut_in_the_end_marker(data):
    end = AT["000019.cls"] + 1024
    return data[: end + 512]


def bit_in_a_header(data):
    damaged = bytearray(data)
    damaged[AT["000015.jpg"] + 3] ^= 4
    return bytes(damaged)


def hole_over_a_header(data):
    start = AT["000015.jpg"]
    return data[:start] + bytes(1536) + data[start + 1536 :]


def member_too_large(data):
    rows = tarfile.TarInfo("000000.jpg")
    rows.size = 8 << 30
    return rows.tobuf(tarfile.GNU_FORMAT) + bytes(1024)


def link(data):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, payload in members(10, 1):
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            tar.addfile(info, io.BytesIO(payload))
        info = tarfile.TarInfo("000011.jpg")
        info.type, info.linkname = tarfile.LNKTYPE, "000010.jpg"
        tar.addfile(info)
    return buffer.getvalue()


def rows(*changes):
    return lambda data: tar_bytes([*members(10, 2), *changes, *members(15, 2)])


JPG = picture(1)
REFUSED = {
    "cut at a member's end": (cut_at_a_member, f"ends at byte {AT['000015.jpg']} without an end marker"),
    "cut in a payload": (cut_in_a_payload, "not whole tar blocks: it was cut"),
    "cut in a header": (cut_in_a_header, "not whole tar blocks: it was cut"),
    "cut in the end marker": (cut_in_the_end_marker, "only one zero block at byte"),
    "flipped bit in a header": (bit_in_a_header, f"damaged header at byte {AT['000015.jpg']}"),
    "hole over a header": (hole_over_a_header, "data after the end marker"),
    "no members": (lambda data: tar_bytes([]), "holds no samples"),
    "empty file": (lambda data: b"", "is empty"),
    "html page": (lambda data: b"<html>404</html>", "is no tar"),
    "html page of 1024 bytes": (lambda data: b"<html>404</html>" * 64, "damaged header at byte 0"),
    "member larger than the file": (member_too_large, "declares 8589934592 bytes"),
    "link": (link, "is a link or device"),
    "key used twice, not adjacent": (rows(*members(12, 1), *members(10, 1)), "key '000010' occurs again"),
    "adjacent duplicate member": (rows(("a.jpg", JPG), ("a.jpg", JPG), ("a.cls", b"1")), "member .jpg at byte .* occurs twice"),
    "label -1": (rows(("a.jpg", JPG), ("a.cls", b"-1")), "label b'-1' is not a class id"),
    "label 1_0": (rows(("a.jpg", JPG), ("a.cls", b"1_0")), "label b'1_0' is not a class id"),
    "label of ten digits": (rows(("a.jpg", JPG), ("a.cls", b"1234567890")), "is not a class id"),
    "missing label": (rows(("a.jpg", JPG)), "sample 'a' has no label member .cls"),
    "missing image": (rows(("a.cls", b"1")), "sample 'a' has no image"),
    "two images": (rows(("a.jpg", JPG), ("a.png", JPG), ("a.cls", b"1")), "is a second image"),
    "dot in a key": (rows(("img.1.jpg", JPG), ("img.1.cls", b"1")), "a dot in a key"),
    "sorted by extension": (
        lambda data: tar_bytes(sorted(members(10, 3), key=lambda row: row[0][-3:])),
        "has no image",
    ),
    "no key": (rows((".jpg", JPG)), "has no key or no extension"),
    "no extension": (rows(("README", b"hello")), "has no key or no extension"),
    "name that is not UTF-8": (
        lambda data: tar_bytes([("ab\udcff.jpg", JPG)], errors="surrogateescape", encoding="utf-8"),
        "is not UTF-8",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_fault_is_refused_naming_shard_and_place(tmp_path, name):
    damage, message = REFUSED[name]
    folder = three_shards(tmp_path / "set", damage(GOOD))
    with pytest.raises(ShardError, match=f"train-000001.*{message}"):
        index_shards(folder)
    assert not (folder / "dataset.json").exists()


def test_whole_shards_are_read_to_the_last_sample(tmp_path):
    description = index_shards(three_shards(tmp_path / "set", GOOD))
    assert description["splits"]["train"]["counts"] == [6, 6, 6, 6, 6]
    dataset = ShardDataset(tmp_path / "set")
    assert dataset.labels.tolist() == [number % 5 for number in range(30)]
    assert [dataset.read_bytes(i) for i in range(30)] == [picture(i) for i in range(30)]


@pytest.mark.parametrize("pax", [{"comment": "made by somebody"}, {"path": "long/" * 40 + "000000.jpg"}])
def test_extended_headers_of_real_shards_are_read(tmp_path, pax):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members(0, 1):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1.5  # a float: webdataset's writer makes a header for each
            info.pax_headers = {"comment": "x"}
            tar.addfile(info, io.BytesIO(data))
    (tmp_path / "a-0.tar").write_bytes(buffer.getvalue())
    index_shards(tmp_path)
    assert ShardDataset(tmp_path).read_bytes(0) == picture(0)


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_long_names_of_every_tar_format(tmp_path, form):
    folder = "folder" * 10
    rows = [(f"{folder}/{'x' * 60}{i}.{kind}", data) for i in (1, 2) for kind, data in (("jpeg", JPG), ("cls", b"1"))]
    (tmp_path / "a-0.tar").write_bytes(tar_bytes(rows, format=form))
    assert index_shards(tmp_path)["splits"]["a"]["samples"] == 2


def test_pax_size_record_is_refused(tmp_path):
    info = tarfile.TarInfo("000000.jpg")
    info.size, info.pax_headers = 3, {"size": "3"}
    data = info.tobuf(tarfile.PAX_FORMAT) + b"abc" + bytes(509 + 1024)
    (tmp_path / "a-0.tar").write_bytes(data)
    with pytest.raises(ShardError, match="changes a size"):
        index_shards(tmp_path)


def test_foreign_folders_are_explained(tmp_path):
    with pytest.raises(ShardError, match=r"holds no \.tar shard"):
        index_shards(tmp_path)
    (tmp_path / "a-0.tar.gz").write_bytes(gzip.compress(GOOD))
    with pytest.raises(ShardError, match=r"unpack .tar.gz"):
        index_shards(tmp_path)
    with pytest.raises(ShardError, match=r"has no dataset\.json"):
        ShardDataset(tmp_path)
    (tmp_path / "b-0.tar").mkdir()
    with pytest.raises((ShardError, IsADirectoryError)):
        index_shards(tmp_path)


def test_missing_shard_and_replaced_shard(tmp_path):
    folder = three_shards(tmp_path / "set", GOOD)
    index_shards(folder)
    (folder / "train-000001.tar").write_bytes(tar_bytes(members(10, 9)))
    with pytest.raises(ShardError, match=r"train-000001.tar changed after it was indexed"):
        ShardDataset(folder)[10]
    other = [(name.replace("0000", "9999"), data) for name, data in members(10, 10)]
    (folder / "train-000001.tar").write_bytes(tar_bytes(other))
    assert os.path.getsize(folder / "train-000001.tar") == len(GOOD)
    with pytest.raises(ShardError, match=r"train-000001.tar changed after it was indexed"):
        ShardDataset(folder)[10]
    (folder / "train-000001.tar").unlink()
    with pytest.raises(ShardError, match=r"train-000001.tar is missing"):
        ShardDataset(folder)[10]


def test_a_shard_that_lost_its_end_after_indexing(tmp_path):
    folder = three_shards(tmp_path / "set", GOOD)
    index_shards(folder)
    os.truncate(folder / "train-000001.tar", len(GOOD) - 1024)  # all headers are as they were
    with pytest.raises(ShardError, match=r"train-000001.tar changed after it was indexed"):
        ShardDataset(folder)[10]


def test_copies_with_another_mtime_are_the_same_shard(tmp_path):
    folder = three_shards(tmp_path / "set", GOOD)
    index_shards(folder)
    for path in folder.glob("*.tar"):
        os.utime(path, (1, 1))
    assert ShardDataset(folder)[29][1] == 4


def test_a_shard_cut_while_it_is_open(tmp_path):
    folder = three_shards(tmp_path / "set", GOOD)
    index_shards(folder)
    dataset = ShardDataset(folder)
    assert dataset[10][1] == 0
    os.truncate(folder / "train-000001.tar", 4096)
    with pytest.raises(ShardError, match=r"000019.jpg is cut|at byte \d+ is cut|member  is cut"):
        _ = dataset[19]


def flip_payload(path, member):
    with tarfile.open(path) as tar:
        info = tar.getmember(member)
    data = bytearray(path.read_bytes())
    data[info.offset_data + info.size // 2] ^= 0xFF
    path.write_bytes(bytes(data))


def test_verify_finds_flipped_payload_bytes_missing_shards_and_changed_lists(tmp_path):
    samples = [(picture(i), i % 3) for i in range(30)]
    write_shards(samples, tmp_path, samples_per_shard=10, progress=False)
    found = verify_shards(tmp_path)
    assert not found.problems
    assert not found.unknown
    assert len(found.intact) == 4  # three shards and the list of samples
    flip_payload(tmp_path / "train-000001.tar", "000000014.jpg")
    (tmp_path / "train-000002.tar").unlink()
    (tmp_path / "train.list").write_text("other\n")
    problems = "\n".join(verify_shards(tmp_path).problems)
    assert len(verify_shards(tmp_path).problems) == 3
    assert re.search(r"train-000001.tar: its bytes", problems)
    assert re.search(r"train-000002.tar is missing", problems)
    assert re.search(r"train.list: its bytes", problems)


def test_verify_knows_foreign_shards_only_after_they_were_digested(tmp_path):
    folder = three_shards(tmp_path / "set", GOOD)
    index_shards(folder)
    assert len(verify_shards(folder).unknown) == 3
    index_shards(folder, digest=True)
    assert len(verify_shards(folder).intact) == 3
    flip_payload(folder / "train-000000.tar", "000003.jpg")
    assert len(verify_shards(folder).problems) == 1
    description = index_shards(folder)  # headers are the same, so the digest of before is kept
    assert description["shards"][0]["sha256"] is not None
    assert len(verify_shards(folder).problems) == 1


def broken_set(tmp_path, bad):
    """24 samples of which those in ``bad`` hold no image under their name."""
    rows = []
    for number in range(24):
        data = b"\xff\xd8\xff" + bytes(40) if number in bad else picture(number)
        rows += [(f"{number:06d}.jpg", data), (f"{number:06d}.cls", str(number % 4).encode())]
    (tmp_path / "train-0.tar").write_bytes(tar_bytes(rows))
    index_shards(tmp_path)
    return tmp_path


def test_a_bad_image_raises_naming_its_key(tmp_path):
    folder = broken_set(tmp_path, {5})
    with pytest.raises(ShardError, match=r"train-0.tar, member 000005.jpg: not a readable JPEG"):
        ShardDataset(folder)[5]


def two_ranks(rank):
    labels = np.arange(24) % 4
    return GroupingBatchSampler(ShuffleSampler(24), 4, labels=labels, layout="1x2", rank=rank, world_size=2, seed=1)


def plan_of_rank(rank):
    return {i for batch in two_ranks(rank) for i in batch}


@pytest.mark.parametrize("workers", [0, 2])
def test_skip_keeps_batches_and_dissolves_groups(tmp_path, workers):
    from torch.utils.data import DataLoader

    bad = {next(iter(two_ranks(rank)))[0] for rank in (0, 1)}  # one for each rank
    folder = broken_set(tmp_path, bad)
    for rank in (0, 1):
        dataset = ShardDataset(folder, on_error="skip")
        sampler = two_ranks(rank)
        with pytest.warns(UserWarning, match="skipped") if workers == 0 else open(os.devnull):
            batches = list(DataLoader(dataset, batch_sampler=sampler, collate_fn=NSCollator("1x2"), num_workers=workers))
        assert len(batches) == 3
        seen = {int(i) for batch in batches for i in batch.ids}
        mine = bad & plan_of_rank(rank)
        assert seen == plan_of_rank(rank) - mine
        assert sum(int(batch.skipped) for batch in batches) == len(mine)
        assert sum(len(batch.groups) for batch in batches) == 6 - len(mine)
        assert [name.split()[-1] for name in dataset.skipped()] == [f"{i:06d}.jpg" for i in sorted(mine)]


def test_skip_has_a_cap(tmp_path):
    dataset = ShardDataset(broken_set(tmp_path, {1, 2, 3}), on_error="skip", max_skipped=2)
    with pytest.warns(UserWarning, match="skipped"):
        assert [dataset[i] for i in (1, 1, 2)] == [None] * 3  # the same sample again counts once
    with pytest.warns(UserWarning, match="skipped"), pytest.raises(ShardError, match=r"3 samples could .* max_skipped=2"):
        dataset[3]
    assert dataset[4] is not None


def test_a_shard_that_vanishes_is_skipped_sample_by_sample_and_named(tmp_path):
    folder = three_shards(tmp_path / "set", GOOD)
    index_shards(folder)
    dataset = ShardDataset(folder, on_error="skip", max_skipped=5)
    assert dataset[0] is not None
    (folder / "train-000001.tar").unlink()
    with pytest.warns(UserWarning, match=r"train-000001.tar is missing"):
        assert [dataset[i] for i in range(10, 15)] == [None] * 5
    with pytest.warns(UserWarning, match="skipped"), pytest.raises(ShardError, match="6 samples could not be read"):
        dataset[15]


def test_bad_options_are_refused(tmp_path):
    index_shards(three_shards(tmp_path / "set", GOOD))
    with pytest.raises(ValueError, match="on_error must be 'raise' or 'skip', got 'ignore'"):
        ShardDataset(tmp_path / "set", on_error="ignore")
    with pytest.raises(ValueError, match="no split 'test'"):
        ShardDataset(tmp_path / "set", "test")
    with pytest.raises(IndexError, match="sample 30"):
        ShardDataset(tmp_path / "set")[30]
    with pytest.raises(ShardError, match="2 class names"):
        index_shards(tmp_path / "set", classes=["a", "b"])


def test_labels_from_json_and_indexes_beside_read_only_shards(tmp_path):
    rows = []
    for number in range(6):
        record = json.dumps({"label": number % 3, "flag": True, "text": "x"}).encode()
        rows += [(f"{number:03d}.jpeg", picture(number)), (f"{number:03d}.json", record), (f"{number:03d}.txt", b"a caption")]
    (tmp_path / "00000.tar").write_bytes(tar_bytes(rows))
    beside = tmp_path / "beside"
    index_shards(tmp_path, label="json:label", index_dir=beside)
    assert not (tmp_path / "dataset.json").exists()
    dataset = ShardDataset(tmp_path, index_dir=beside)
    assert dataset.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert dataset.read_bytes(4) == picture(4)
    for key, message in (("nothing", "no JSON with key 'nothing'"), ("flag", "'flag' is True"), ("text", "'text' is 'x'")):
        with pytest.raises(ShardError, match=message):
            index_shards(tmp_path, label=f"json:{key}", index_dir=beside)


def test_a_new_index_keeps_class_names_and_origin(tmp_path):
    write_shards([(picture(i), i % 2) for i in range(4)], tmp_path, classes=["cat", "dog"], made_by={"x": 1}, progress=False)
    before = load_index(tmp_path)[1]
    assert index_shards(tmp_path) == before


def test_splits_follow_one_another(tmp_path):
    for split, first in (("train", 0), ("test", 6)):
        samples = [(picture(i), i % 3) for i in range(first, first + 6)]
        write_shards(samples, tmp_path, split=split, seed=None, samples_per_shard=4, progress=False)
    everything = ShardDataset(tmp_path)
    assert [len(ShardDataset(tmp_path, split)) for split in ("test", "train")] == [6, 6]
    assert [everything.read_bytes(i) for i in range(12)] == [picture(i) for i in [*range(6, 12), *range(6)]]
    assert np.array_equal(ShardDataset(tmp_path, "train").labels, np.arange(6) % 3)
