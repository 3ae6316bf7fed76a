"""Skips: which samples could not be read, shared by all workers, counted and bounded."""

from __future__ import annotations

import warnings

import torch

from ns_data.shards.tar import ShardError


class Skips:
    """One flag a sample in shared memory: setting it twice is no race, and the count is of distinct samples."""

    def __init__(self, num_samples: int, limit: int) -> None:
        self.flags = torch.zeros(num_samples, dtype=torch.bool).share_memory_()
        self.limit = limit

    @classmethod
    def by_policy(cls, on_error: str, num_samples: int, limit: int) -> Skips | None:
        """None for "raise"."""
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error must be 'raise' or 'skip', got {on_error!r}")
        return cls(num_samples, limit) if on_error == "skip" else None

    def add(self, index: int, error: ShardError) -> None:
        """Note a sample and say so once; raises when there are more than ``limit``."""
        if not self.flags[index]:
            warnings.warn(f"skipped: {error}", stacklevel=3)
        self.flags[index] = True
        count = int(self.flags.sum())
        if count > self.limit:
            raise ShardError(f"{count} samples could not be read, more than max_skipped={self.limit}: {error}") from None

    def ids(self) -> list[int]:
        """The samples noted so far, by any worker."""
        return self.flags.nonzero()[:, 0].tolist()
