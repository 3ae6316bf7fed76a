"""Pretrained weights for a new network: read from a local file or by torchvision's name, matched, loaded, reported.

Everything of the file's network must fit. Only the head may differ, if the classes do: it keeps its fresh initialisation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights

STATE_KEYS = ("model", "state_dict", "model_ema")  # where checkpoints keep a state dict, in the order they are tried
WRAPPERS = ("module.", "_orig_mod.")  # prefixes of DistributedDataParallel and torch.compile


class WeightsReport(NamedTuple):
    """What became of each tensor, by its name; ``str()`` is one line for the log."""

    source: str
    loaded: list[str]
    replaced: list[str]  # in the file for another number of classes: freshly initialised
    missing: list[str]  # the network's head or counters, not in the file: as the network was initialised
    unused: list[str]  # in the file, not in the network

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} tensors loaded from {self.source}"]
        for what, names in (
            ("replaced for another number of classes", self.replaced),
            ("not in the file and left as initialised", self.missing),
            ("not in the network and left out", self.unused),
        ):
            if names:
                parts.append(f"{len(names)} {what} ({_few(names)})")
        return "; ".join(parts)


def read_weights(path: str | Path, key: str | None = None) -> tuple[dict[str, Tensor], str]:
    """The state dict in a ``.safetensors`` file or a checkpoint of ``torch.save``, and where it was found.

    Nothing is unpickled but tensors and plain containers.

    Args:
        key: the checkpoint's entry that holds the state dict. By default the first of ``STATE_KEYS`` that it has, or else
            the checkpoint itself; in the checkpoint of a run of train.py the network.

    Raises:
        ValueError: for a file that is missing, not a checkpoint, not safe to load, or without a state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"no weights at {str(path)!r}: give a local .pt, .pth or .safetensors file, or torchvision's name of weights for "
            "its own networks"
        )
    checkpoint: Any = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f"{path} holds a {type(checkpoint).__name__}, not a state dict: save model.state_dict()")
    if key is not None and key not in checkpoint:
        raise ValueError(f"{path} has no entry {key!r}: it has {_few(map(str, checkpoint))}")
    if isinstance(checkpoint.get("training"), Mapping) and key in (None, "training"):
        checkpoint, key = checkpoint["training"], None  # last.pt of a run of train.py
    entry = key or next((name for name in STATE_KEYS if isinstance(checkpoint.get(name), Mapping)), None)
    state = checkpoint if entry is None else checkpoint[entry]
    tensors = {}
    if isinstance(state, Mapping):
        tensors = {_plain_name(str(name)): tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
    if not tensors:
        raise ValueError(
            f"{path} has no tensors by name{f' under {entry!r}' if entry else ''}: it has {_few(map(str, checkpoint))}; "
            "name the entry with weights_key"
        )
    return tensors, str(path) if entry is None else f"{path}[{entry}]"


def load_weights(model: nn.Module, state: Mapping[str, Tensor], num_classes: int, source: str) -> WeightsReport:
    """Load ``state`` into ``model``, all but a head for another number of classes, and say what became of each tensor.

    Linear layers saved as 1x1 convolutions fit. A tensor may differ only in its first size, the number of classes.
    Only the network's last layer, its head, may be missing, and buffers of integers, which are counters and indices.

    Raises:
        ValueError: naming the first tensor that does not fit. The model is then unchanged.
    """
    own = model.state_dict()
    common = [name for name in own if name in state]
    way_out = "; create the model that the file was made with, or load the tensors you want by model.load_state_dict"
    if not common:
        raise ValueError(
            f"{source} does not fit {type(model).__name__} at all: it has tensors such as {_few(state)}, "
            f"the network such as {_few(own)}{way_out}"
        )
    fitting, replaced = {}, []
    for name in common:
        file_shape, own_shape = _shape(state[name]), _shape(own[name])
        if file_shape == own_shape:
            fitting[name] = state[name].reshape(own[name].shape)
        elif own_shape[:1] == (num_classes,) and file_shape[1:] == own_shape[1:]:
            replaced.append(name)
        else:
            raise ValueError(
                f"{source} does not fit {type(model).__name__}: {name!r} has shape {tuple(state[name].shape)} in the file "
                f"and {tuple(own[name].shape)} in the network{way_out}"
            )
    missing = [name for name in own if name not in state]
    head = _head_prefix(model)
    absent = [name for name in missing if own[name].is_floating_point() and not name.startswith(head)]
    if absent:
        raise ValueError(f"{source} lacks {len(absent)} tensors of {type(model).__name__}: {_few(absent)}{way_out}")
    model.load_state_dict(fitting, strict=False)
    return WeightsReport(source, list(fitting), replaced, missing, [name for name in state if name not in own])


def classes_of_state(model: nn.Module, state: Mapping[str, Tensor]) -> int | None:
    """For how many classes the head in ``state`` is, by the network's last parameter; ``None`` if it has none of that name."""
    last = [name for name, _ in model.named_parameters()][-1]
    return state[last].shape[0] if last in state else None


def torchvision_weights(name: str, weights: str) -> tuple[dict[str, Tensor], str] | None:
    """The state dict of torchvision's ``weights`` for its model ``name``, downloaded once; ``None`` if that is no name of it.

    Takes "IMAGENET1K_V1", "DEFAULT" and the form with the class, "ResNet50_Weights.IMAGENET1K_V1".
    Raises ``ValueError`` if the download fails.
    """
    known = get_model_weights(name)
    member = weights.removeprefix(f"{known.__name__}.")
    if member not in known.__members__:
        return None
    chosen = known[member]
    try:
        state = chosen.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"torchvision's weights {chosen} could not be had ({_first_line(error)}): download {chosen.url} on another machine "
            "and give the file"
        ) from None
    return {_plain_name(key): tensor for key, tensor in state.items()}, str(chosen)


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises errors of any type for bytes that are no checkpoint
        foreign = re.search(r"GLOBAL ([\w.]+)", str(error))
        if foreign:
            raise ValueError(
                f"{path} holds {foreign[1]}, which may run code when it is loaded: if you trust the file, save its tensors "
                "alone once, with torch.save(torch.load(FILE, weights_only=False)['model'], 'weights.pt')"
            ) from None
        raise ValueError(f"{path} cannot be read as a checkpoint ({_first_line(error)}): is it complete?") from None


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        import safetensors
        import safetensors.torch
    except ModuleNotFoundError:
        raise ValueError(f"{path} needs the package safetensors: pip install safetensors") from None
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"{path} cannot be read as a safetensors file ({_first_line(error)}): is it complete?") from None
    return tensors


def _plain_name(name: str) -> str:
    """Without wrappers' prefixes, and with today's spelling of the layers in torchvision's DenseNet files."""
    while name.startswith(WRAPPERS):
        name = name.partition(".")[2]
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", name)


def _shape(tensor: Tensor) -> tuple[int, ...]:
    """Without the last sizes of 1 that a 1x1 convolution has and a linear layer has not."""
    shape = tuple(tensor.shape)
    return shape[:2] if shape[2:] == (1, 1) else shape


def _head_prefix(model: nn.Module) -> str:
    """Prefix of the names of the last layer's parameters."""
    return [name for name, _ in model.named_parameters()][-1].rpartition(".")[0] + "."


def _few(names: Any) -> str:
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__
