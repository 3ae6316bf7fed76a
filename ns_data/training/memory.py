"""Memory: what a step that does not fit is told as: one sentence with the sizes that matter and what to change."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ns_data.layout import Layout
from ns_data.training.config import Config
from ns_data.training.distributed import World

# How allocators say it that have no exception of their own: the CPU's, MPS's, and cuBLAS's workspace.
_SIGNS = ("can't allocate memory", "not enough memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


@contextmanager
def memory_advice(config: Config, world: World, phase: str) -> Iterator[None]:
    """Turn running out of memory in a "training" or "evaluation" step into a ``ValueError`` that says what would need less."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        sizes, advice = _training(config, world) if phase == "training" else _evaluation(config)
        asked = re.search(r"tried to allocate ([\d.]+ ?\w+)", str(error), re.IGNORECASE)
        image = f" at image_size {config.data.image_size}" if config.data.image_size else ""
        raise ValueError(
            f"out of memory in a step of {phase} with {sizes}{image}"
            f"{f' (it asked for {asked[1]} more)' if asked else ''}: try {advice}"
        ) from None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator of torch or Python could not serve."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def _training(config: Config, world: World) -> tuple[str, str]:
    own = config.batch_size // world.size
    sizes = f"batch_size {config.batch_size}" + (f", {own} samples in each of {world.size} processes" if world.size > 1 else "")
    group_size = Layout.parse(config.ns.layout).group_size
    advice = []
    if 2 * config.accumulate <= own // group_size:
        advice.append(f"accumulate={2 * config.accumulate}")
    if config.amp is None:
        advice.append("amp=bf16")
    whole = group_size * world.size  # the least that gives every process a group
    if config.batch_size >= 2 * whole:
        advice.append(f"batch_size={config.batch_size // 2 // whole * whole}")
    return sizes, _choice(advice)


def _evaluation(config: Config) -> tuple[str, str]:
    sizes = f"eval_batch_size {config.eval_batch_size}"
    return sizes, _choice([f"eval_batch_size={config.eval_batch_size // 2}"] if config.eval_batch_size > 1 else [])


def _choice(advice: list[str]) -> str:
    if not advice:
        return "smaller images or a smaller network"
    return " or ".join([", ".join(advice[:-1]), advice[-1]]) if len(advice) > 1 else advice[0]
