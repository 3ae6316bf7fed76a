"""Networks by name: our own, and torchvision's classification networks by theirs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from ns_data.choose import construct, unknown
from ns_data.models.alexnet_cifar import AlexNetCIFAR
from ns_data.models.resnet_cifar import resnet32_cifar, resnet110_cifar
from ns_data.models.resnext_cifar import ResNeXtCIFAR
from ns_data.models.small_cnn import SmallCNN
from ns_data.models.textcnn import TextCNN
from ns_data.models.vgg_cifar import VGG19CIFAR
from ns_data.models.vmamba import VMamba
from ns_data.models.weights import load_weights, read_weights, torchvision_weights
from ns_data.models.wrn_cifar import WideResNetCIFAR

log = logging.getLogger(__name__)

MODELS: dict[str, Callable[..., nn.Module]] = {
    "small_cnn": SmallCNN,
    "alexnet_cifar": AlexNetCIFAR,
    "vgg19_bn_cifar": VGG19CIFAR,
    "resnet110_cifar": resnet110_cifar,
    "resnext29_cifar": ResNeXtCIFAR,
    "wrn28_10_cifar": WideResNetCIFAR,
    "resnet32_cifar": resnet32_cifar,
    "vmamba_t": VMamba,
    "textcnn": TextCNN,
}


def create_model(
    name: str, num_classes: int, *, weights: str | Path | None = None, weights_key: str | None = None, **options: Any
) -> nn.Module:
    """A network with ``num_classes`` logits: for images (B, 3, H, W), or for token ids (B, L) if it is a text network.

    Args:
        name: of ``MODELS``, or of a classification network of torchvision.
        weights: a local file (``.pt``, ``.pth``, ``.safetensors``) or torchvision's name of weights. Everything is loaded
            but a head for another number of classes. What became of each tensor is logged and kept as the model's
            ``weights_report``, a ``WeightsReport``.
        weights_key: the entry of the file that holds the state dict; see ``read_weights``.
        options: the constructor's.

    Without ``weights`` the network is freshly initialised, from torch's global generator.
    Raises ``ValueError`` for an unknown name or option, naming the nearest one, and for weights that do not fit.
    """
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
        raise ValueError(f"num_classes must be a whole number from 1 on, got {num_classes!r}")
    if name in MODELS:
        model = construct(MODELS, name, "model", {"num_classes": num_classes, **options})
    else:
        model = _torchvision_model(name, num_classes, options)
    if weights is None and weights_key is not None:
        raise ValueError(f"weights_key={weights_key!r} has no effect without weights, the file that holds it")
    if weights is not None:
        named = torchvision_weights(name, str(weights)) if name not in MODELS else None
        state, source = named or read_weights(weights, weights_key)
        report = load_weights(model, state, num_classes, source)
        log.info("%s: %s", name, report)
        model.weights_report = report  # type: ignore[assignment]  # any attribute; nn.Module's types know tensors and modules only
    return model


def _torchvision_model(name: str, num_classes: int, options: dict[str, Any]) -> nn.Module:
    import torchvision  # only here: it takes longer than all the rest

    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        raise ValueError(unknown(name, [*MODELS, *names], "model"))
    try:
        model: nn.Module = torchvision.models.get_model(name, num_classes=num_classes, **options)
    except TypeError as error:
        raise ValueError(f"torchvision's model {name!r} does not take these options: {error}") from None
    return model
