"""ns_data: natural selection for deep networks, on the data set's side.

Samples of a batch compete in groups; each one's score decides the weight of its loss.
Source: "Darwinian Optimization: Training Deep Networks with Natural Selection".
"""

import importlib
from typing import Any

__version__ = "0.1.0"

# Public name -> module. Loaded at first use, so that `import ns_data` needs torch and NumPy only.
_PUBLIC = {
    "Layout": "layout",
    "ClassStats": "stats",
    "GROUPINGS": "grouping",
    "max_groups": "dealing",
    "rivals": "grouping",
    "SAMPLINGS": "sampling",
    "ShuffleSampler": "sampling",
    "ClassBalancedSampler": "sampling",
    "SquareRootSampler": "sampling",
    "ProgressivelyBalancedSampler": "sampling",
    "PowerSampler": "sampling",
    "EffectiveNumberSampler": "sampling",
    "GroupingBatchSampler": "batching",
    "PlannedBatch": "batching",
    "GroupedBatch": "collate",
    "NSCollator": "collate",
    "stitch": "scoring.stitch",
    "group_softmax": "scoring.scorer",
    "ns_scores": "scoring.scorer",
    "NSScorer": "scoring.scorer",
    "ns_weights": "scoring.weighting",
    "own_scores": "scoring.weighting",
    "WEIGHTINGS": "scoring.weighting",
    "ScoreLedger": "scoring.ledger",
    "LOSSES": "losses",
    "MODELS": "models",
    "create_model": "models",
    "write_shards": "shards.writer",
    "index_shards": "shards.index",
    "ShardError": "shards.index",
    "ShardDataset": "shards.dataset",
    "PlannedStream": "shards.stream",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'ns_data' has no attribute {name!r}")
    return getattr(importlib.import_module(f"ns_data.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
