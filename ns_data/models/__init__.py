"""Models by name: our own, and torchvision's by theirs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ns_data.choose import construct, unknown
from ns_data.models.small_cnn import SmallCNN

MODELS: dict[str, Callable[..., nn.Module]] = {
    "small_cnn": SmallCNN,
}


def create_model(name: str, num_classes: int, **options: Any) -> nn.Module:
    """A network for images of shape (3, H, W) with ``num_classes`` logits, freshly initialised.

    ``options`` are its constructor's. Raises ``ValueError`` for an unknown name or option, naming the nearest one.
    """
    if name in MODELS:
        return construct(MODELS, name, "model", {"num_classes": num_classes, **options})
    from torchvision.models import get_model, list_models  # only here: it takes its time

    names = list_models()
    if name not in names:
        raise ValueError(unknown(name, [*MODELS, *names], "model"))
    try:
        model: nn.Module = get_model(name, num_classes=num_classes, **options)
    except TypeError as error:
        raise ValueError(f"torchvision's model {name!r} does not take these options: {error}") from None
    return model
