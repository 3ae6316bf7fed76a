"""ScoreLedger: what each sample scored, by id, over a run. Columns of float32, saved with the run as ``scores.npz``."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ns_data.scoring.targets import hard_labels

_SUMS = ("count", "total", "losses", "loss_total")
_NEWEST = ("last", "label", "epoch")


class ScoreLedger:
    """Running scores of ``num_samples`` samples. A repeated id (CBS draws a tail image often) counts every time.

    28 bytes a sample. On the ``device`` of the training an update waits for nothing; 4 more bytes a sample there.
    """

    def __init__(self, num_samples: int, *, device: torch.device | str = "cpu") -> None:
        if num_samples < 1:
            raise ValueError(f"a ledger needs at least one sample, got {num_samples}")
        self.num_samples = num_samples
        self.device = torch.device(device)
        self._columns: dict[str, Tensor] = {
            "count": torch.zeros(num_samples, device=device),  # scores seen
            "total": torch.zeros(num_samples, device=device),  # their sum
            "last": torch.full((num_samples,), torch.nan, device=device),
            "label": torch.full((num_samples,), -1, dtype=torch.int32, device=device),
            "epoch": torch.full((num_samples,), -1, dtype=torch.int32, device=device),  # of the last score
            "losses": torch.zeros(num_samples, device=device),  # losses seen
            "loss_total": torch.zeros(num_samples, device=device),
        }
        self._winner = torch.zeros(num_samples, dtype=torch.int32, device=device)  # of each id in the batch at hand
        self._merged: dict[str, Tensor] = {}  # the sums that all ranks share since the last merge

    def update(self, ids: Tensor, scores: Tensor, labels: Tensor, epoch: int, *, losses: Tensor | None = None) -> None:
        """Enter the scores of one batch, tensors of shape (B,), on any device; NaN means none, and is passed over.

        ``losses`` (B,), unweighted, are only needed for the ranking by loss of ``suspects``. Of distributions (B, K) as
        labels the likeliest class is kept.
        """
        ids = ids.to(self.device, torch.int64)
        if self.device.type == "cpu" and ids.numel():
            low, high = (int(bound) for bound in ids.aminmax())
            if low < 0 or high >= self.num_samples:
                outside = low if low < 0 else high
                raise ValueError(f"id {outside} is out of range for a ledger of {self.num_samples} samples")
        values = scores.detach().to(self.device, torch.float32)
        entered = ~values.isnan()
        column = self._columns
        column["count"].index_add_(0, ids, entered.float())
        column["total"].index_add_(0, ids, values.nan_to_num())
        if losses is not None:
            column["losses"].index_add_(0, ids, torch.ones_like(values))
            column["loss_total"].index_add_(0, ids, losses.detach().to(self.device, torch.float32))
        # Of a repeated id the last entry stays: all of its entries write that one, whatever the order of writing.
        place = torch.arange(ids.shape[0], dtype=torch.int32, device=self.device).masked_fill_(~entered, -1)
        self._winner.scatter_reduce_(0, ids, place, "amax", include_self=False)
        winner = self._winner[ids]
        newest = {
            "last": values,
            "label": hard_labels(labels).to(self.device, torch.int32),
            "epoch": torch.full_like(place, epoch),
        }
        for name, new in newest.items():
            column[name][ids] = torch.where(winner >= 0, new[winner.clamp(min=0)], column[name][ids])

    def last(self, ids: Tensor) -> Tensor:
        """Last scores of these ids, on their device; NaN where there is none."""
        return self._columns["last"][ids.to(self.device)].to(ids.device)

    def mean_by_sample(self) -> np.ndarray:
        """Mean score of each sample, shape (num_samples,); NaN for samples without one."""
        return _quotient(self._column("total"), self._column("count"))

    def last_by_sample(self) -> np.ndarray:
        """Last score of each sample, shape (num_samples,); NaN for samples without one."""
        return self._column("last").copy()

    def last_epoch_by_sample(self) -> np.ndarray:
        """Epoch of each sample's last score, shape (num_samples,); -1 for samples without one."""
        return self._column("epoch").copy()

    def labels(self) -> np.ndarray:
        """Label of each sample as last seen; -1 for samples without a score."""
        return self._column("label").copy()

    def mean_by_class(self) -> np.ndarray:
        """Mean score of each class over all of its scores, shape (highest label + 1,); NaN for classes without one."""
        label = self._column("label")
        seen = label >= 0
        count = np.bincount(label[seen], self._column("count")[seen])
        return _quotient(np.bincount(label[seen], self._column("total")[seen]), count)

    def suspects(self, n: int, *, by: str = "score") -> np.ndarray:
        """Ids of the ``n`` samples most likely mislabelled, the likeliest first.

        "score": those that persistently lose against their group, by the mean score beside their class's mean, so that
        a hard class is not suspect as a whole. "loss": those of the largest mean loss, the plain small-loss criterion.
        Samples without a score (or loss) are never named.
        """
        if by == "score":
            label, mean = self._column("label"), self.mean_by_sample()
            evidence = np.full_like(mean, np.nan)
            seen = label >= 0
            evidence[seen] = self.mean_by_class()[label[seen]] - mean[seen]
        elif by == "loss":
            evidence = _quotient(self._column("loss_total"), self._column("losses"))
        else:
            raise ValueError(f"suspects are ranked by 'score' or 'loss', got {by!r}")
        known = int((~np.isnan(evidence)).sum())
        if not 0 <= n <= known:
            hint = ": update() takes them as losses=" if by == "loss" and known == 0 else ""
            raise ValueError(f"cannot name {n} suspects: {known} of {self.num_samples} samples have a {by}{hint}")
        return np.argsort(-np.nan_to_num(evidence, nan=-np.inf), kind="stable")[:n]

    def merge(self, group: dist.ProcessGroup | None = None) -> None:
        """Make the ledgers of all ranks one, at the end of an epoch; every rank calls it. Alone it does nothing.

        Sums are added up. Of a sample that several ranks saw since the last merge (CBS), the newest epoch's last score
        stays, the higher rank's if they are equal.
        """
        if not (dist.is_available() and dist.is_initialized()):
            return
        world, rank = dist.get_world_size(group), dist.get_rank(group)
        on = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend(group) == "nccl" else torch.device("cpu")
        base = {name: self._merged.get(name, torch.zeros_like(self._columns[name])) for name in _SUMS}
        grown = {name: (self._columns[name] - base[name]).to(on) for name in _SUMS}
        claim = torch.where(grown["count"] > 0, self._columns["epoch"].to(on, torch.int64) * world + rank, -1)
        newest = claim.clone()
        dist.all_reduce(newest, dist.ReduceOp.MAX, group)
        for name in _NEWEST:
            column = self._columns[name].to(on)
            sent = torch.where((claim == newest) & (newest >= 0), column, torch.zeros_like(column))
            dist.all_reduce(sent, group=group)
            self._columns[name].copy_(torch.where(newest >= 0, sent, column))
        for name, delta in grown.items():
            dist.all_reduce(delta, group=group)
            self._columns[name] = base[name] + delta.to(self.device)
            self._merged[name] = self._columns[name].clone()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the columns as an ``.npz``, through a temporary name."""
        path = Path(path)
        partial = path.with_name(path.name + ".partial")
        with partial.open("wb") as file:
            np.savez(file, allow_pickle=False, **{name: self._column(name) for name in self._columns})
        partial.replace(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> ScoreLedger:
        """Read a saved ledger; nothing in the file is executed."""
        with np.load(path, allow_pickle=False) as columns:
            state = {name: torch.from_numpy(columns[name]) for name in columns.files}
        if "count" not in state:
            raise ValueError(f"{path} is not a saved ledger: it has no column 'count'")
        ledger = cls(state["count"].shape[0], device=device)
        ledger.load_state_dict(state)
        return ledger

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of the columns, for a checkpoint. Ranks that go on from one checkpoint must have merged before it."""
        return {name: column.to("cpu", copy=True) for name, column in self._columns.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, column in self._columns.items():
            if name not in state or state[name].shape != column.shape:
                raise ValueError(
                    f"the saved ledger has no column {name!r} of {self.num_samples} samples: it belongs to another run"
                )
            column.copy_(state[name])
        self._merged = {name: self._columns[name].clone() for name in _SUMS}

    def _column(self, name: str) -> np.ndarray:
        return self._columns[name].cpu().numpy()


def _quotient(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
