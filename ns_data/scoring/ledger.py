"""ScoreLedger: what each sample scored, by id, over a run. Columns of float32, saved with the run as ``scores.npz``."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


class ScoreLedger:
    """Running scores of ``num_samples`` samples. A repeated id (CBS draws a tail image often) counts every time."""

    def __init__(self, num_samples: int) -> None:
        if num_samples < 1:
            raise ValueError(f"a ledger needs at least one sample, got {num_samples}")
        self.num_samples = num_samples
        self._columns: dict[str, np.ndarray] = {
            "count": np.zeros(num_samples, np.float32),  # scores seen
            "total": np.zeros(num_samples, np.float32),  # their sum
            "last": np.full(num_samples, np.nan, np.float32),
            "label": np.full(num_samples, -1, np.int32),
            "epoch": np.full(num_samples, -1, np.int32),  # of the last score
        }

    def update(self, ids: Tensor, scores: Tensor, labels: Tensor, epoch: int) -> None:
        """Enter the scores of one batch, tensors of shape (B,), on any device."""
        rows = ids.cpu().numpy()
        outside = rows[(rows < 0) | (rows >= self.num_samples)]
        if outside.size:
            raise ValueError(f"id {outside[0]} is out of range for a ledger of {self.num_samples} samples")
        values = scores.detach().float().cpu().numpy()
        np.add.at(self._columns["count"], rows, 1)
        np.add.at(self._columns["total"], rows, values)
        self._columns["last"][rows] = values  # of a repeated id, the last
        self._columns["label"][rows] = labels.cpu().numpy()
        self._columns["epoch"][rows] = epoch

    def mean_by_sample(self) -> np.ndarray:
        """Mean score of each sample, shape (num_samples,); NaN for samples without one."""
        count, total = self._columns["count"], self._columns["total"]
        return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)

    def last_by_sample(self) -> np.ndarray:
        """Last score of each sample, shape (num_samples,); NaN for samples without one."""
        return self._columns["last"].copy()

    def labels(self) -> np.ndarray:
        """Label of each sample as last seen; -1 for samples without a score."""
        return self._columns["label"].copy()

    def mean_by_class(self) -> np.ndarray:
        """Mean score of each class over all of its scores, shape (highest label + 1,); NaN for classes without one."""
        label = self._columns["label"]
        seen = label >= 0
        size = int(label.max()) + 1
        count = np.bincount(label[seen], self._columns["count"][seen], minlength=size)
        total = np.bincount(label[seen], self._columns["total"][seen], minlength=size)
        return np.divide(total, count, out=np.full(size, np.nan), where=count > 0)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the columns as an ``.npz``, through a temporary name."""
        path = Path(path)
        partial = path.with_name(path.name + ".partial")
        with partial.open("wb") as file:
            np.savez(file, allow_pickle=False, **self._columns)
        partial.replace(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ScoreLedger:
        """Read a saved ledger; nothing in the file is executed."""
        with np.load(path, allow_pickle=False) as columns:
            state = {name: torch.from_numpy(columns[name]) for name in columns.files}
        if "count" not in state:
            raise ValueError(f"{path} is not a saved ledger: it has no column 'count'")
        ledger = cls(state["count"].shape[0])
        ledger.load_state_dict(state)
        return ledger

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of the columns, for a checkpoint."""
        return {name: torch.from_numpy(column.copy()) for name, column in self._columns.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, column in self._columns.items():
            if name not in state or tuple(state[name].shape) != column.shape:
                raise ValueError(
                    f"the saved ledger has no column {name!r} of {self.num_samples} samples: it belongs to another run"
                )
            column[:] = state[name].numpy()
