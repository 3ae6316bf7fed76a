"""Loading speed: our shards beside WebDataset and ImageFolder with Pillow, on generated JPEGs; resident sets; index size.

    python benchmarks/loading.py [--samples 320] [--rounds 3] [--images 768]

Every method gets the same files, makes batches of 64 random resized crops of 224 pixels with flips, and ends in normalised
floats. Methods run interleaved in one process, medians over the rounds; the table goes to benchmarks/results/loading.md.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms as T

from ns_data import GroupingBatchSampler, NSCollator, ShardDataset, ShuffleSampler
from ns_data.augment import CropFlip, ResizedCropFlip, normalize, uniforms
from ns_data.shards.decode import DECODERS, decode_image
from ns_data.shards.index import INDEX_DTYPE
from ns_data.shards.resident import ResidentLoader
from ns_data.shards.writer import write_shards

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
BATCH = 64


def jpeg(rng: np.random.Generator, noise: float) -> bytes:
    """A 500x375 picture of smooth shapes and noise."""
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((500, 375), Image.Resampling.BICUBIC)
    pixels = np.asarray(coarse, np.float32) + rng.normal(0, noise, (375, 500, 3))
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def noise_for(size: int) -> float:
    """The noise that gives files of about ``size`` bytes."""
    low, high = 0.0, 100.0
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if len(jpeg(np.random.default_rng(0), middle)) < size else (low, middle)
    return low


def make_files(root: Path, count: int) -> None:
    rng, noise = np.random.default_rng(1), noise_for(115_000)
    images = [jpeg(rng, noise) for _ in range(count)]
    for i, data in enumerate(images):
        path = root / "folders" / f"{i % 10}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    write_shards([(data, i % 10) for i, data in enumerate(images)], root / "shards", samples_per_shard=128, progress=False)


def processes(workers: int) -> dict[str, Any]:
    """Workers live on from epoch to epoch, so that starting them is not measured."""
    return {"num_workers": workers, "persistent_workers": workers > 0}


def pil_transform() -> Any:
    return T.Compose([T.RandomResizedCrop(224), T.RandomHorizontalFlip(), T.ToTensor(), T.Normalize(MEAN, STD)])


def ours(root: Path, workers: int, decoder: str) -> Iterator[int]:
    data = ShardDataset(root / "shards", "train", ResizedCropFlip(224), decoder=decoder)
    epoch = 0
    sampler = GroupingBatchSampler(ShuffleSampler(data.labels), BATCH, drop_last=True, labels=data.labels, layout="2x2")
    loader = DataLoader(data, batch_sampler=sampler, collate_fn=NSCollator("2x2"), **processes(workers))
    while True:
        sampler.set_epoch(epoch)
        for batch in loader:
            normalize(batch.images, MEAN, STD)
            yield len(batch.images)
        epoch += 1


def webdataset_pil(root: Path, workers: int) -> Iterator[int]:
    import webdataset as wds

    urls = [str(path) for path in sorted((root / "shards").glob("*.tar"))]
    stream = wds.WebDataset(urls, shardshuffle=len(urls)).shuffle(256).decode("pil").to_tuple("jpg", "cls")
    loader = DataLoader(stream.map_tuple(pil_transform(), int).batched(BATCH), batch_size=None, **processes(workers))
    while True:
        for images, _ in loader:
            yield len(images)


def image_folder_pil(root: Path, workers: int) -> Iterator[int]:
    data = torchvision.datasets.ImageFolder(str(root / "folders"), pil_transform())
    loader = DataLoader(data, BATCH, shuffle=True, drop_last=True, **processes(workers))
    while True:
        for images, _ in loader:
            yield len(images)


METHODS: dict[str, Callable[[Path, int], Iterator[int]]] = {
    "WebDataset + Pillow": webdataset_pil,
    "ImageFolder + Pillow": image_folder_pil,
    **{f"ours, {name}": lambda root, workers, name=name: ours(root, workers, name) for name in DECODERS},
}


def rate(stream: Iterator[int], samples: int) -> float:
    """Samples a second of wall time, after a first batch."""
    next(stream)
    done, start = 0, time.perf_counter()
    while done < samples:
        done += next(stream)
    return done / (time.perf_counter() - start)


def compare(root: Path, samples: int, rounds: int) -> list[str]:
    lines = ["| loader | workers 0 | workers 2 |", "|---|---|---|"]
    rates: dict[tuple[str, int], list[float]] = {}
    for _ in range(rounds):
        for workers in (0, 2):
            for name, method in METHODS.items():
                rates.setdefault((name, workers), []).append(rate(method(root, workers), samples))
    middle = {key: statistics.median(values) for key, values in rates.items()}
    for name in METHODS:
        cells = [f"{middle[name, w]:.0f}/s ({middle[name, w] / middle['WebDataset + Pillow', w]:.2f} x)" for w in (0, 2)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    best = [max(middle[name, w] for name in METHODS if name.startswith("ours")) for w in (0, 2)]
    ratios = [best[i] / max(middle["WebDataset + Pillow", w], middle["ImageFolder + Pillow", w]) for i, w in enumerate((0, 2))]
    lines += ["", f"Our fastest against the better of the two: {ratios[0]:.2f} x (workers 0), {ratios[1]:.2f} x (workers 2)."]
    return lines


def cpu_shares(root: Path, decoder: str, count: int = 256) -> str:
    """CPU time of the steps of our path, one process: the limit is decoding alone."""
    data = ShardDataset(root / "shards", "train")
    law, collate = ResizedCropFlip(224), NSCollator("2x2")
    rng = np.random.default_rng(0)
    ids = rng.integers(0, len(data), count).tolist()
    clock = time.process_time
    marks = [clock()]
    blobs = [data.read_bytes(i) for i in ids]
    marks.append(clock())
    images = [decode_image(blob, decoder) for blob in blobs]
    marks.append(clock())
    keys = rng.integers(0, 1 << 62, count).astype(np.uint64)
    crops = [law(image, uniforms(keys[i : i + 1], law.num_draws)[0]) for i, image in enumerate(images)]
    marks.append(clock())
    for start in range(0, count, BATCH):
        normalize(collate([(crop, 0, 0) for crop in crops[start : start + BATCH]]).images, MEAN, STD)
    marks.append(clock())
    spent = np.diff(marks)
    shares = " / ".join(f"{100 * part / spent.sum():.0f} %" for part in spent)
    return f"| {decoder} | {shares} | {1000 * spent.sum() / count:.2f} ms | {1000 * spent[1] / count:.2f} ms |"


def resident(root: Path, rounds: int, images: int = 20_000) -> list[str]:
    """A set of raw 32x32 images, resident, beside torchvision's CIFAR10 class on the same images and 2 workers."""
    pixels = np.random.default_rng(0).integers(0, 256, (images, 32, 32, 3), dtype=np.uint8)

    class Cifar(torchvision.datasets.CIFAR10):
        def __init__(self, transform: Any) -> None:
            self.data, self.targets, self.transform, self.target_transform = (
                pixels,
                [i % 10 for i in range(images)],
                transform,
                None,
            )

    law = T.Compose([T.RandomCrop(32, padding=4), T.RandomHorizontalFlip(), T.ToTensor(), T.Normalize(MEAN, STD)])
    theirs_loader = DataLoader(Cifar(law), 128, shuffle=True, num_workers=2, persistent_workers=True)
    from ns_data.shards.dataset import PlannedDataset

    class Raw(PlannedDataset):
        labels = np.arange(images) % 10

        def read(self, index: int) -> Any:
            return torch.from_numpy(pixels[index]).permute(2, 0, 1)

    data = Raw(CropFlip(32))
    sampler = GroupingBatchSampler(ShuffleSampler(images), 128, labels=data.labels, layout="2x2")
    loader = ResidentLoader(data, sampler)
    times: dict[str, list[float]] = {"theirs": [], "ours": [], "uint8": []}
    for turn in range(rounds + 1):
        start = time.perf_counter()
        for _ in theirs_loader:
            pass
        after = time.perf_counter()
        sampler.set_epoch(2 * turn)
        for batch in loader:
            normalize(batch.images, MEAN, STD)
        normalised = time.perf_counter()
        sampler.set_epoch(2 * turn + 1)
        for _ in loader:
            pass
        for name, spent in zip(times, (after - start, normalised - after, time.perf_counter() - normalised), strict=True):
            times[name].append(spent)
    middle = {name: images / statistics.median(values[1:]) for name, values in times.items()}
    return [
        f"torchvision CIFAR10, 2 workers: {middle['theirs']:,.0f}/s; resident, normalised floats: {middle['ours']:,.0f}/s "
        f"({middle['ours'] / middle['theirs']:.1f} x); resident, uint8 for the device to normalise: {middle['uint8']:,.0f}/s "
        f"({middle['uint8'] / middle['theirs']:.1f} x). Crop and flip included everywhere; one process for ours."
    ]


def index_size(root: Path, entries: int = 1_281_167) -> str:
    """Size of an index of ImageNet's length, and the time to open it in a fresh state."""
    index = np.zeros(entries, INDEX_DTYPE)
    path = root / "index.npy"
    np.save(path, index)
    times = []
    for _ in range(20):
        start = time.perf_counter()
        opened = np.load(path, mmap_mode="r", allow_pickle=False)
        opened[entries // 2]
        times.append(time.perf_counter() - start)
    start = time.perf_counter()
    np.ascontiguousarray(opened["label"])
    labels = time.perf_counter() - start
    megabytes, milliseconds = path.stat().st_size / 1e6, 1000 * statistics.median(times)
    opened_in = f"{megabytes:.1f} MB, opened in {milliseconds:.2f} ms"
    return f"{entries:,} entries: {opened_in}; reading all labels once takes {1000 * labels:.1f} ms."


def machine() -> str:
    try:
        name = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
        name = name.partition(":")[2].strip()
    except (OSError, StopIteration):
        name = platform.processor()
    import webdataset

    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}, webdataset {webdataset.__version__}"
    load = f"load average {os.getloadavg()[0]:.1f} at the start"
    return f"{os.cpu_count()} cores, {name}; Python {platform.python_version()}, {versions}; {load}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=768)
    options = parser.parse_args()
    lines = ["# Loading", "", machine(), ""]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_files(root, options.images)
        mean = statistics.mean(path.stat().st_size for path in islice((root / "folders").rglob("*.jpg"), 200))
        lines += [f"JPEG 500x375 of {mean / 1000:.0f} kB to 224, random resized crop and flip, batches of {BATCH}, warm files;"]
        lines += [
            f"median of {options.rounds} rounds of {options.samples} samples. Ours in random order, WebDataset in its own.",
            "",
        ]
        lines += compare(root, options.samples, options.rounds)
        lines += ["", "| decoder | read / decode / transform / collate and normalise | CPU a sample | decode alone |"]
        lines += ["|---|---|---|---|", *[cpu_shares(root, name) for name in DECODERS]]
        lines += ["", "## Resident 32x32", "", *resident(root, options.rounds)]
        lines += ["", "## Index", "", index_size(root), ""]
    text = "\n".join(lines)
    print(text)
    target = Path(__file__).parent / "results" / "loading.md"
    target.parent.mkdir(exist_ok=True)
    target.write_text(text)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    main()
