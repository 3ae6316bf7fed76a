"""What train.py's images a second are beside a bare loop's, and what it says when the loader is the limit.

    python benchmarks/train_throughput.py [--device cuda] [--amp bf16] [--rounds 7] [--cases small_cnn] [--quick] [--no-write]

Each case is one run of train.py itself, without natural selection (ns.weighting=none), on digits scaled up and kept in memory.
After every epoch of it, in the same process, a bare loop takes the same number of steps: the same network, batch, optimiser
and precision on one batch of digits that is there already, normalised (random pixels take a CPU longer to pool); forward,
cross-entropy, backward, step. A round is one epoch of both. The script's time is its own "train_seconds": planning, cutting
batches from memory, normalising, weights, ledger and sums are in it, evaluation and checkpoints are not. With one thread it is
processor time for both, so that other processes do not count. Medians over the rounds after the first, which warms up; the
ratio is that of each round's two times. At least 0.97 is wanted. In the cases called "loader" images are read from shards one
by one, by no worker and by two; time is the wall's, and the waiting share is what the epoch's line in metrics.jsonl says.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from toy import RESULTS, digits, machine

sys.path.insert(0, str(Path(__file__).parent.parent))

import train
from ns_data import create_model
from ns_data.training import progress
from ns_data.training.optim import create_optimizer
from ns_data.training.run import RunFolder

WANTED = 0.97
OPTIONS = {"momentum": 0.9, "weight_decay": 5e-4}
RESIDENT, READ = ("data.resident=true",), ("data.resident=false", "data.augment=crop_flip")


class Case(NamedTuple):
    model: str
    batch_size: int
    size: int
    imbalance: int = 1  # 1500 digits; 50: 417
    words: tuple[str, ...] = RESIDENT


CASES = {
    "small_cnn": Case("small_cnn", 128, 32),
    "resnet32_cifar": Case("resnet32_cifar", 128, 32, 50),
    "resnet18": Case("resnet18", 32, 64, 50),
    "loader, 0 workers": Case("small_cnn", 128, 16, 1, READ),
    "loader, 2 workers": Case("small_cnn", 128, 16, 1, (*READ, "data.workers=2")),
}
ON_GPU = {
    "resnet18": Case("resnet18", 256, 224),
    "resnet50": Case("resnet50", 128, 224),
    "loader, 0 workers": Case("resnet18", 256, 224, 1, READ),
    "loader, 2 workers": Case("resnet18", 256, 224, 1, (*READ, "data.workers=2")),
}


def bare_loop(case: Case, device: torch.device, amp: torch.dtype | None, clock: Callable[[], float]) -> Callable[[int], float]:
    """A function that takes that many steps of a plain training loop and returns the seconds."""
    torch.manual_seed(0)
    model = create_model(case.model, 10).to(device).train()
    optimizer = create_optimizer("sgd", model, 0.01, OPTIONS)
    data = digits(size=case.size)
    images, labels = data["images"][: case.batch_size].to(device), data["labels"][: case.batch_size].to(device)

    def run(steps: int) -> float:
        began = clock()
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device.type, amp, enabled=amp is not None):
                logits = model(images)
            F.cross_entropy(logits.float(), labels).backward()
            optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return clock() - began

    return run


def measure(case: Case, device: torch.device, amp: str | None, rounds: int, folder: Path) -> dict[str, float]:
    """One run of the script, with an epoch of the bare loop after each of its own."""
    alone = device.type == "cpu" and torch.get_num_threads() == 1 and case.words == RESIDENT
    clock = time.process_time if alone else time.perf_counter
    bare = bare_loop(case, device, train.AMP[amp] if amp else None, clock)
    lines: list[dict[str, Any]] = []
    bare_seconds: list[float] = []

    class Beside(RunFolder):
        def log(self, line: dict[str, Any]) -> None:
            super().log(line)
            lines.append(line)
            bare_seconds.append(bare(line["samples"] // case.batch_size))

    words = [
        *(f"model.name={case.model}", f"batch_size={case.batch_size}", f"data.image_size={case.size}", "drop_last=true"),
        *(
            f"data.options={{imbalance: {case.imbalance}}}",
            "data.augment=none",
            "data.augment_options={padding: null, flip: null}",
        ),
        *("ns.weighting=none", "ns.grouping=random", f"epochs={rounds + 1}", "optimizer.lr=0.01", "tensorboard=false"),
        *(f"device={device}", f"amp={amp or 'null'}", f"run_dir={folder / 'run'}", f"data.root={folder}", *case.words),
    ]
    clocks = patch.object(progress, "time", SimpleNamespace(perf_counter=clock))
    with clocks, patch.object(train, "RunFolder", Beside), contextlib.redirect_stdout(io.StringIO()):
        train.main(words)
    script, plain = np.array([line["train_seconds"] for line in lines[1:]]), np.array(bare_seconds[1:])
    steps = lines[0]["samples"] // case.batch_size
    return {
        "script, images/s": float(np.median([line["samples_per_second"] for line in lines[1:]])),
        "bare loop, images/s": float(np.median(lines[0]["samples"] / plain)),
        "ratio": float(np.median(plain / script)),
        "lowest": float((plain / script).min()),
        "highest": float((plain / script).max()),
        "ms a step more": float(np.median(script - plain)) / steps * 1000,
        "waiting": float(np.median([line["waiting_share"] for line in lines[1:]])),
    }


def table(results: dict[str, tuple[Case, dict[str, float]]]) -> str:
    rows = [
        "| case | network, batch, size | script, images/s | bare loop, images/s | ratio (lowest to highest) | ms a step more "
        "| waiting |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, (case, r) in results.items():
        what = f"{case.model}, {case.batch_size}, {case.size}x{case.size}"
        spread = f"{r['ratio']:.3f} ({r['lowest']:.3f} to {r['highest']:.3f})"
        rates = f"{r['script, images/s']:.0f} | {r['bare loop, images/s']:.0f}"
        rows.append(f"| {name} | {what} | {rates} | {spread} | {r['ms a step more']:.2f} | {r['waiting']:.1%} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--amp", choices=list(train.AMP))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cases", nargs="+")
    parser.add_argument("--quick", action="store_true", help="three rounds of the smallest cases, to see that it works")
    parser.add_argument("--no-write", action="store_true")
    args = parser.parse_args()
    device = torch.device(args.device)
    known = ON_GPU if device.type == "cuda" else CASES
    names = args.cases or (["small_cnn", "loader, 0 workers"] if args.quick and device.type == "cpu" else list(known))
    rounds = 3 if args.quick else args.rounds
    results = {}
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            results[name] = (known[name], measure(known[name], device, args.amp, rounds, Path(folder)))
        print(table({name: results[name]}).splitlines()[-1], flush=True)
    where = f"{torch.cuda.get_device_name(device)}; " if device.type == "cuda" else ""
    options = f"--device {device} --rounds {rounds}" + (f" --amp {args.amp}" if args.amp else "")
    text = "\n".join(
        [
            "# train.py beside a bare loop",
            "",
            f"`python benchmarks/train_throughput.py {options}` on {where}{machine()}.",
            f"Medians; what the columns mean is at the top of the script. A ratio of {WANTED} is wanted where data is not the",
            'limit; in the cases called "loader" it is, and "waiting" says so.',
            "",
            table(results),
            "",
        ]
    )
    print(text)
    if not (args.no_write or args.quick):
        suffix = ("" if device.type == "cpu" else f"-{device.type}") + (f"-{args.amp}" if args.amp else "")
        (RESULTS / f"train_throughput{suffix}.md").write_text(text)


if __name__ == "__main__":
    main()
