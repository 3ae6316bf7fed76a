"""What scoring adds to a training step, by network, group size and mode.

    python benchmarks/step_overhead.py [--device cuda] [--rounds 9] [--cases small_cnn resnet18] [--compile] [--no-write]

All variants of a case run in turn in every round, in one process; medians over the rounds, of processor time if torch uses
one thread. A plain step is forward, backward and SGD on a batch of digits. "limit" is a no-gradient forward of B/m plain
images, with batch statistics as in exact scoring. The table gives every other time in percent of the plain step; "x limit" is
exact scoring over that forward, "stitching" the share of stitching in it, "memory" the change of the step's peak. The paper
(ResNet-18 and Swin-T on ImageNet, m = 4) reports 10.2 and 12.7 %; if a backward pass costs two forward passes the bound is
1/(3m). rho is the rank correlation of a mode's scores with the exact ones on further batches of the network as these few steps
have trained it (agreement.py has it along a training, and for every=k).

The last table is the paper's Tables 12 and 13 in its units: milliseconds of a step without and with scoring, of stitching and
of the inference on the composites (scoring less stitching), and the peak memory of both steps: tensors of the step, weights,
buffers and optimiser. Beside a GPU's peak as its driver shows it, the context and cached blocks are missing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet18, swin_t
from torchvision.models.resnet import BasicBlock
from toy import RESULTS, digits, machine, spearman

from ns_data import Layout, NSScorer, ScoreLedger, create_model, own_scores, stitch
from ns_data.scoring.modes import scoring_mode


class ResNet110(nn.Module):
    """18 basic blocks in each of three stages of 16, 32 and 64 channels, for 32x32 images."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
        channels = 16
        for width, stride in ((16, 1), (32, 2), (64, 2)):
            for block in range(18):
                first = block == 0 and channels != width
                shortcut = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))
                layers.append(BasicBlock(channels, width, stride if first else 1, shortcut if first else None))
                channels = width
        self.net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Case(NamedTuple):
    model: Callable[[], nn.Module]
    batch_size: int
    size: int
    layouts: tuple[str, ...]
    warm_steps: int  # before the rounds, so that scores mean something
    lr: float = 0.1


CASES = {
    "small_cnn": Case(lambda: create_model("small_cnn", 10), 128, 32, ("1x2", "2x2", "2x4"), 40),
    "resnet110": Case(lambda: ResNet110(10), 128, 32, ("2x2",), 15),
    "resnet18": Case(lambda: resnet18(num_classes=10), 32, 112, ("2x2", "2x4"), 5),
    "resnet18-224": Case(lambda: resnet18(num_classes=10), 16, 224, ("2x2",), 2),
    "swin_t": Case(lambda: swin_t(num_classes=10), 8, 224, ("2x2",), 2, 0.01),
}
MODES: dict[str, dict[str, Any]] = {
    "running": {"batch_norm": "running"},
    "bfloat16": {"dtype": torch.bfloat16},
    "channels_last": {"channels_last": True},
    "both": {"dtype": torch.bfloat16, "channels_last": True},
    "scale=0.5": {"scale": 0.5},
}


def papers_scores(model: nn.Module, images: Tensor, labels: Tensor, layout: Layout) -> Tensor:
    """The paper's listing: join the full images, scale down, train-mode forward, full softmax, quotient."""
    m = layout.group_size
    members = images.view(-1, m, *images.shape[1:]).unbind(1)
    rows = [torch.cat([members[i] for i in row], dim=3) for row in layout.grid()]
    composites = F.interpolate(torch.cat(rows, dim=2), size=images.shape[2:], mode="bilinear", align_corners=False)
    with torch.no_grad():
        probabilities = torch.softmax(model(composites), dim=1)
        q = probabilities.gather(1, labels.view(-1, m))
        return (q / q.sum(1, keepdim=True)).reshape(-1)


def limit(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad(), scoring_mode(model, "batch"):
        return model(images)


def milliseconds(run: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end)
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter  # other processes do not count
    began = clock()
    run()
    return 1000 * (clock() - began)


def peak_mib(run: Callable[[], object], device: torch.device) -> float:
    """Most memory that ``run`` holds at a time beyond what was held before."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = np.cumsum([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())])
    return float(max(0, held.max())) / 2**20


def state_mib(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    """What stays between steps: weights, buffers and the optimiser's moments."""
    moments = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    held = [*model.parameters(), *model.buffers(), *moments]
    return sum(tensor.numel() * tensor.element_size() for tensor in held) / 2**20


def measure(case: Case, layout: Layout, device: torch.device, rounds: int, compiled: bool) -> dict[str, float]:
    torch.manual_seed(0)
    data = digits(size=case.size)
    model = case.model().to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), case.lr, momentum=0.9)
    rng, B, m = np.random.default_rng(0), case.batch_size, layout.group_size
    ledger = ScoreLedger(len(data["labels"]), device=device)

    def draw() -> tuple[Tensor, Tensor, Tensor]:
        ids = torch.tensor(rng.choice(len(data["labels"]), B, replace=False))
        return data["images"][ids].to(device), data["labels"][ids].to(device), ids.to(device)

    def step(score: Callable[[Tensor, Tensor], Tensor] | None = None) -> Tensor:
        weights = 1 if score is None else 1.5 - score(images, labels)
        logits = model(images)
        loss = (weights * F.cross_entropy(logits, labels, reduction="none")).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return logits.detach()

    images, labels, ids = draw()
    for _ in range(case.warm_steps):
        images, labels, ids = draw()
        step()
    modes = {**MODES, "every=4": {"every": 4, "ledger": ledger}, "placements=m": {"placements": m}}
    if compiled:
        modes["compile"] = {"compile": True}
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        modes.pop("running")  # the same as exact
    scorers = {name: NSScorer(model, layout=layout, **options) for name, options in {"exact": {}, **modes}.items()}
    logits = step()
    variants: dict[str, Callable[[], object]] = {
        "plain": step,
        "limit": lambda: limit(model, images[: B // m]),
        "paper": lambda: papers_scores(model, images, labels, layout),
        "stitch": lambda: stitch(images, layout),
        "own": lambda: own_scores(logits, labels, layout=layout),
        **{name: partial(lambda s: s(images, labels, ids_B=ids), s) for name, s in scorers.items() if name != "every=4"},
        "every=4": lambda: [scorers["every=4"](images, labels, ids_B=ids) for _ in range(4)],
        "whole": lambda: step(scorers["exact"]),
    }
    for run in variants.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(max(rounds, min(45, int(10_000 / milliseconds(step, device))))):  # more where a step is short
        images, labels, ids = draw()
        for name in variants if number % 2 else reversed(variants):
            times[name].append(milliseconds(variants[name], device))
    found = {name: float(np.median(seen)) for name, seen in times.items()}
    found["every=4"] /= 4
    # Ratios of what ran in one round, since the machine's speed drifts from round to round.
    found["x limit"] = float(np.median(np.divide(times["exact"], times["limit"])))
    found["stitching"] = float(np.median(np.divide(times["stitch"], times["exact"])))
    # In turn, the least of three: a first profile also sees what libraries set aside once.
    peaks = [(peak_mib(step, device), peak_mib(variants["whole"], device)) for _ in range(3)]
    found["plain MiB"], found["whole MiB"] = (min(peak) for peak in zip(*peaks, strict=True))
    found["state MiB"] = state_mib(model, optimizer)
    pooled: dict[str, list[Tensor]] = {name: [] for name in scorers if name != "every=4"}
    for _ in range(max(2, 256 // B)):
        images, labels, ids = draw()
        for name in pooled:
            pooled[name].append(scorers[name](images, labels))
    exact = torch.cat(pooled["exact"])
    found |= {f"rho {name}": spearman(torch.cat(scores), exact) for name, scores in pooled.items() if name != "exact"}
    return found


def tables(results: dict[tuple[str, str], dict[str, float]]) -> str:
    modes = [*("running", "bfloat16", "channels_last", "both", "compile", "scale=0.5", "every=4", "placements=m")]
    lines = [
        "| network, batch | m | bound 1/(3m) | plain step ms | paper's recipe | exact | x limit | stitching | own | memory |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    rows = []
    for (name, layout), r in results.items():
        case, m = CASES[name], Layout.parse(layout).group_size
        label = f"{name}, {case.batch_size} of {case.size}x{case.size} | {m}"
        percent = {key: f"{100 * value / r['plain']:.1f} %" for key, value in r.items()}
        memory = 100 * (r["whole MiB"] / r["plain MiB"] - 1)
        lines.append(
            f"| {label} | {100 / (3 * m):.1f} % | {r['plain']:.0f} | {percent['paper']} | {percent['exact']} | "
            f"{r['x limit']:.2f} | {100 * r['stitching']:.1f} % | {percent['own']} | {memory:+.2f} % |"
        )
        cells = [
            f"{percent[mode]} (rho {r[f'rho {mode}']:.2f})" if f"rho {mode}" in r else percent.get(mode, "") for mode in modes
        ]
        rows.append(f"| {label} | " + " | ".join(cells) + " |")
    lines += ["", "| network, batch | m | " + " | ".join(modes) + " |", "|---" * (len(modes) + 2) + "|", *rows]
    return "\n".join([*lines, "", *costs(results)])


def costs(results: dict[tuple[str, str], dict[str, float]]) -> list[str]:
    """Per-step milliseconds and peak memory."""
    lines = [
        "| network, batch | m | plain step ms | with scores ms | stitching ms | inference ms | plain MiB | with scores MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (name, layout), r in results.items():
        case, m = CASES[name], Layout.parse(layout).group_size
        plain, whole = (r["state MiB"] + r[key] for key in ("plain MiB", "whole MiB"))
        lines.append(
            f"| {name}, {case.batch_size} of {case.size}x{case.size} | {m} | {r['plain']:.1f} | {r['whole']:.1f} | "
            f"{r['stitch']:.2f} | {r['exact'] - r['stitch']:.2f} | {plain:.0f} | {whole:.0f} |"
        )
    return lines


def plot(results: dict[tuple[str, str], dict[str, float]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    bars = ["paper", "exact", "running", "bfloat16", "channels_last", "both", "scale=0.5", "every=4"]
    figure, axis = plt.subplots(figsize=(10, 4))
    for i, bar in enumerate(bars):
        heights = [100 * r.get(bar, np.nan) / r["plain"] for r in results.values()]
        axis.bar(np.arange(len(results)) + (i - 3.5) * 0.11, heights, 0.1, label=bar)
    axis.set_xticks(range(len(results)), [f"{name}\nm={Layout.parse(layout).group_size}" for name, layout in results])
    axis.set_ylabel("scoring, % of a plain step")
    axis.legend(ncols=4, fontsize=8)
    figure.tight_layout()
    figure.savefig(RESULTS / "step_overhead.png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--compile", action="store_true", help="also the compiled pass (minutes on a CPU)")
    parser.add_argument("--no-write", action="store_true")
    args = parser.parse_args()
    device = torch.device(args.device)
    results = {}
    for name in args.cases:
        for layout in CASES[name].layouts:
            results[name, layout] = measure(CASES[name], Layout.parse(layout), device, args.rounds, args.compile)
            print(name, layout, {key: round(value, 3) for key, value in results[name, layout].items()}, flush=True)
    where = torch.cuda.get_device_name() if device.type == "cuda" else machine()
    text = "\n".join(
        [
            "# What scoring adds to a training step",
            "",
            f"`python benchmarks/step_overhead.py --device {device} --rounds {args.rounds}` on {where}.",
            "Percent of the plain step; what the columns mean is at the top of the script.",
            "The paper reports 10.2 % (ResNet-18) and 12.7 % (Swin-T) at m = 4 on its GPUs.",
            "",
            tables(results),
            "",
        ]
    )
    print(text)
    if not args.no_write:
        RESULTS.mkdir(exist_ok=True)
        suffix = "" if device.type == "cpu" else f"-{device.type}"
        (RESULTS / f"step_overhead{suffix}.md").write_text(text)
        if device.type == "cpu":
            plot(results)


if __name__ == "__main__":
    main()
