"""Events: the numbers of metrics.jsonl for TensorBoard, in the run folder, where it is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def open_events(folder: Path, wanted: bool | None, first_epoch: int) -> Any:
    """A ``SummaryWriter`` that goes on at ``first_epoch``, or ``None`` if none is wanted or, without a wish, none is there.

    Of epochs that are trained again, TensorBoard shows what is written from now on.
    Raises ``ValueError`` if it is wanted and not installed.
    """
    if wanted is False:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        if wanted:
            raise ValueError("tensorboard=true needs the package tensorboard: pip install tensorboard") from None
        return None
    return SummaryWriter(str(folder), purge_step=first_epoch)


def write_events(events: Any, line: dict[str, Any]) -> None:
    """A line of metrics.jsonl: numbers by their names, lists (one number a class) as histograms; the step is the epoch."""
    for name, value in line.items():
        if isinstance(value, list):
            known = np.array([number for number in value if number is not None])
            if known.size:
                events.add_histogram(name, known, line["epoch"])
        elif name != "epoch":
            events.add_scalar(name, value, line["epoch"])
    events.flush()
