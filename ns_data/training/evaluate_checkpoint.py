"""Evaluate a checkpoint: of a run, or a bare file of weights, on any data that configs know, lists of labels included."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from ns_data.augment import normalize
from ns_data.choose import unknown
from ns_data.shards.index import load_index
from ns_data.shards.label_lists import label_list_key, read_label_lists, refuse_label_lists
from ns_data.training.checkpoint import Checkpoint, open_checkpoint
from ns_data.training.config import Config
from ns_data.training.data import load_split
from ns_data.training.distributed import default_device
from ns_data.training.label_space import ListEvaluation, map_classes, right_logits
from ns_data.training.metrics import Evaluation, per_class_accuracy

OPTIONS = ("split", "labels", "classes", "out")
USAGE = "ns-data evaluate RUN_OR_CHECKPOINT [CONFIG.yaml] [split=test] [labels=...] [classes=DIR] [out=FILE] [key=value ...]"


def main(arguments: Sequence[str]) -> None:
    """The command; ``out=-`` prints JSON alone, ``out=FILE`` writes it beside what is printed for people."""
    if not arguments:
        raise ValueError(f"name a run folder or a checkpoint: {USAGE}")
    place, *words = arguments
    config_file = words.pop(0) if words and "=" not in words[0] else None
    options: dict[str, str] = {}
    for word in [word for word in words if "." not in word.partition("=")[0]]:
        name, equals, value = word.partition("=")
        if equals and name in OPTIONS:
            options[name] = value
            words.remove(word)
        elif equals and name not in Config.__dataclass_fields__:
            raise ValueError(unknown(name, [*OPTIONS, *Config.__dataclass_fields__], "option"))
    out = options.pop("out", None)
    found = evaluate_checkpoint(Path(place), config_file, words, **options)
    if out is not None and out != "-":
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        Path(out).write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1) if out == "-" else for_people(found))


def evaluate_checkpoint(
    place: Path,
    config_file: str | None = None,
    words: Sequence[str] = (),
    *,
    split: str | None = None,
    labels: str | None = None,
    classes: str | None = None,
) -> dict[str, Any]:
    """All numbers of a network on a split.

    Args:
        place, config_file, words: see ``open_checkpoint``.
        split: by default the config's ``data.test_split``.
        labels: "json:KEY" for lists of labels, "cls" for the class ids of the index; by default as the data's source noted.
        classes: a folder of shards that names the network's classes, if its run does not.

    Returns what was evaluated and, for single labels, the numbers of ``Evaluation`` and ``recall``, the accuracy by logit
    (``None`` without samples); for lists those of ``ListEvaluation``. Raises ``ValueError`` in one sentence.
    """
    checkpoint = open_checkpoint(place, config_file, words)
    config = checkpoint.config
    config.data.on_error = "raise"  # every sample counts
    split = config.data.test_split if split is None else split
    dataset, where = load_split(config.data, split, config.seed)
    if getattr(dataset, "description", {}).get("kind") == "text":
        raise ValueError(f"{where} holds texts: examples/text_classification.py evaluates networks on them")
    names = load_index(classes)[1]["classes"] if classes is not None else checkpoint.classes
    logits_of_K = map_classes(checkpoint.num_classes, names, dataset.classes)
    key = _list_key(dataset, labels)
    network = {"checkpoint": str(checkpoint.path), "model": config.model.name, "classes": checkpoint.num_classes}
    network |= {"data": where, "split": split, "label_lists": key is not None}
    if key is None:
        return {**network, **_single(checkpoint, dataset, logits_of_K)}
    right_NK = right_logits(read_label_lists(dataset, key), logits_of_K, checkpoint.num_classes)
    return {**network, **_lists(checkpoint, dataset, right_NK)}


def _list_key(dataset: Any, labels: str | None) -> str | None:
    if labels == "cls":
        refuse_label_lists(dataset, "labels=cls")
        return None
    if labels is None:
        return label_list_key(dataset)
    key = labels.removeprefix("json:")
    if key == labels or not key:
        raise ValueError(f"labels={labels} is neither cls, the class ids of the index, nor json:KEY, lists in the JSON members")
    if not hasattr(dataset, "shard_paths"):
        raise ValueError(f"labels={labels} reads the JSON members of shards, and the data is none: leave it out")
    return key


def _single(checkpoint: Checkpoint, dataset: Any, logits_of_K: np.ndarray) -> dict[str, Any]:
    counts = Evaluation(checkpoint.num_classes, _device(checkpoint.config))
    place_K = torch.from_numpy(logits_of_K).to(_device(checkpoint.config))
    for logits_BK, ids_B in _predictions(checkpoint, dataset):
        labels_B = torch.from_numpy(dataset.labels[ids_B.numpy()].astype(np.int64))
        counts.update(logits_BK, place_K[labels_B.to(logits_BK.device)])
    numbers = counts.numbers(checkpoint.training_counts)
    numbers |= {"test_samples": numbers.pop("samples"), "invalid_predictions": numbers.pop("invalid")}
    recall = per_class_accuracy(counts.confusion_KP)
    return {**numbers, "recall": [None if np.isnan(share) else round(float(share), 6) for share in recall]}


def _lists(checkpoint: Checkpoint, dataset: Any, right_NK: Tensor) -> dict[str, Any]:
    counts = ListEvaluation()
    for logits_BK, ids_B in _predictions(checkpoint, dataset):
        counts.update(logits_BK, right_NK[ids_B].to(logits_BK.device))
    return counts.numbers()


@torch.no_grad()
def _predictions(checkpoint: Checkpoint, dataset: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """(logits, sample ids) batch by batch, in evaluation mode."""
    config, device = checkpoint.config, _device(checkpoint.config)
    memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
    model: Any = checkpoint.model.to(device)
    model = model.to(memory_format=memory_format)
    loading: dict[str, Any] = {"num_workers": config.data.workers, "pin_memory": device.type == "cuda"}
    loader = DataLoader(dataset, config.eval_batch_size, **loading)
    for images, _, ids_B in tqdm(loader, "evaluating", leave=False, disable=None):
        images = normalize(images.to(device, non_blocking=True), config.data.mean, config.data.std)
        yield model(images.to(memory_format=memory_format)), ids_B


def _device(config: Config) -> torch.device:
    return torch.device(config.device or default_device())


_SHARES = {
    "accuracy": "accuracy",
    "top5_accuracy": "top-5 accuracy",
    "balanced_accuracy": "balanced accuracy",
    "many_shot": "many-shot classes",
    "medium_shot": "medium-shot classes",
    "few_shot": "few-shot classes",
}


def for_people(found: dict[str, Any]) -> str:
    """The numbers as lines to read."""
    lines = [f"{found['model']} of {found['checkpoint']}, {found['classes']} classes"]
    lists = f", {found['labels_per_sample']:.2f} right labels each" if found["label_lists"] else ""
    lines.append(f"on {found['test_samples']:,} samples of {found['data']}, split {found['split']}{lists}")
    lines += [f"  {title:<20} {found[name]:.2%}" for name, title in _SHARES.items() if name in found]
    names = {"test_loss": "cross-entropy", "calibration_error": "calibration error"}
    lines += [f"  {title:<20} {found[name]:.4f}" for name, title in names.items() if name in found]
    if found["invalid_predictions"]:
        lines.append(f"  invalid predictions  {found['invalid_predictions']}, counted as wrong")
    return "\n".join(lines)
