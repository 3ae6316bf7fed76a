"""Stopwatch: seconds spent in a part of the step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Stopwatch:
    """Seconds spent in a part of the step: by events on a GPU, which it does not hold up, by the clock elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self._events: list[Any] | None = [] if device.type == "cuda" else None
        self._seconds = 0.0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        if self._events is None:
            start = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - start
        else:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self._events.append((begin, end))

    def read(self) -> float:
        """Seconds since the last reading."""
        if self._events:
            torch.cuda.synchronize()
            self._seconds += sum(begin.elapsed_time(end) for begin, end in self._events) / 1000
            self._events.clear()
        seconds, self._seconds = self._seconds, 0.0
        return seconds
