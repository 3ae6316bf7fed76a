"""SHOT, the parts: its network, the learning-rate law, information maximisation and pseudo-labels by centroids.

A source model C(B(F(x))) comes without its data. On the unlabelled target, the classifier C stays, and F and B learn from two
terms: a cross-entropy with pseudo-labels, and information maximisation, which wants every prediction sure and all of them
together spread over the classes. Here N samples, D features, K classes.

Source: "Do We Really Need to Access the Source Data? Source Hypothesis Transfer for Unsupervised Domain Adaptation", Liang,
Hu and Feng, 2020, and its published code where the paper leaves something open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from ns_data import ClassStats, create_model
from ns_data.models.weights import read_weights
from ns_data.training.evaluate import evaluate
from ns_data.training.optim import SCHEDULES, create_optimizer

_EPS = 1e-5  # in the logarithm of the entropies


class ShotNet(nn.Module):
    """Logits C(B(F(x))): any network without its head, Linear and BatchNorm1d, and a weight-normalised linear head.

    ``weight_norm`` makes row k of C's weight g_k v_k / |v_k|.
    """

    def __init__(self, name: str, num_classes: int, *, bottleneck: int = 256, **options: Any) -> None:
        super().__init__()
        self.features = create_model(name, num_classes, **options)
        width = _cut_head(self.features, name, num_classes)
        self.bottleneck = nn.Sequential(nn.Linear(width, bottleneck), nn.BatchNorm1d(bottleneck))
        self.classifier = weight_norm(nn.Linear(bottleneck, num_classes))
        nn.init.xavier_normal_(self.bottleneck[0].weight)
        nn.init.zeros_(self.bottleneck[0].bias)
        nn.init.zeros_(self.classifier.bias)  # the published code also draws C's weight anew, which weight_norm undoes

    def forward(self, images_BCHW: Tensor) -> Tensor:
        logits_BK: Tensor = self.classifier(self.bottleneck(self.features(images_BCHW)))
        return logits_BK

    def freeze_classifier(self) -> None:
        """The source hypothesis: what adaptation leaves alone."""
        self.classifier.eval().requires_grad_(False)


def _cut_head(network: nn.Module, name: str, num_classes: int) -> int:
    """Put an identity in the place of a network's last linear layer; return how many features come there."""
    linear = [(path, module) for path, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linear or linear[-1][1].out_features != num_classes:
        raise ValueError(f"model {name!r} has no linear layer at its end to cut off: choose another, such as resnet50")
    path, head = linear[-1]
    parent, _, child = path.rpartition(".")
    setattr(network.get_submodule(parent), child, nn.Identity())
    return head.in_features


# What the published checkpoints call the tensors of each part, and what they are called here.
_FILES = {
    "source_F.pt": {"": "features."},
    "source_B.pt": {"bottleneck.": "bottleneck.0.", "bn.": "bottleneck.1."},
    "source_C.pt": {
        "fc.weight_g": "classifier.parametrizations.weight.original0",
        "fc.weight_v": "classifier.parametrizations.weight.original1",
        "fc.bias": "classifier.bias",
    },
}


def read_published(folder: str | Path) -> dict[str, Tensor]:
    """The state dict of a ``ShotNet`` from a folder with the published code's source_F.pt, source_B.pt and source_C.pt.

    Raises ``ValueError`` for a missing file and for a tensor of a kind that the network does not have.
    """
    return {
        key: tensor
        for file, names in _FILES.items()
        for key, tensor in rename(read_weights(Path(folder) / file)[0], names, file).items()
    }


def rename(state: Mapping[str, Tensor], names: Mapping[str, str], file: str) -> dict[str, Tensor]:
    """``state`` with each key's known beginning replaced."""
    renamed = {}
    for key, tensor in state.items():
        begin = next((begin for begin in names if key.startswith(begin)), None)
        if begin is None:
            raise ValueError(f"{file} holds {key!r}, but its keys should begin with {', '.join(names)}")
        renamed[names[begin] + key.removeprefix(begin)] = tensor
    return renamed


def load_state(model: ShotNet, state: Mapping[str, Tensor], place: str | Path) -> None:
    """Load all of ``state``; ``ValueError`` if it is not the state of such a network."""
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{place} does not fit the network ({reason}): set model and bottleneck as it was trained") from None


def decay(it: int, max_it: int) -> float:
    """Factor on the learning rates of step ``it`` = 1, 2, ..., ``max_it``: (1 + 10 it / max_it)^-0.75."""
    return SCHEDULES["shot"](it, max_it)


def create_sgd(model: ShotNet, lr: float, features: float, momentum: float, weight_decay: float) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum over what is not frozen, F at ``features`` times the rate of B and C."""
    options = {"momentum": momentum, "weight_decay": weight_decay, "nesterov": True}
    return create_optimizer("sgd", model, lr, options, {"features": features})


def information_maximisation(logits_BK: Tensor) -> Tensor:
    """Mean entropy of the predictions minus the entropy of their mean, a scalar; p log p is computed as p log(p + 1e-5)."""
    p_BK = torch.softmax(logits_BK.float(), dim=1)
    return _entropy(p_BK).mean() - _entropy(p_BK.mean(dim=0))


def _entropy(p: Tensor) -> Tensor:
    return -(p * (p + _EPS).log()).sum(dim=-1)


def centroid_labels(features_ND: Tensor, p_NK: Tensor, threshold: int = 0) -> Tensor:
    """Pseudo-labels, shape (N,): the class whose centroid is nearest to a sample by cosine distance, in two rounds.

        f = [feature, 1] / |[feature, 1]|,    centroid_k = sum_i a_ik f_i / (1e-8 + sum_i a_ik)

    First a = p, the predicted probabilities; then a is 1 for the class assigned in the first round, else 0. In each round
    only classes to which more than ``threshold`` samples are assigned (at first: by the largest p) have a centroid: the
    others get no sample.

    Raises ``ValueError`` if no class has one, and for features that are not finite.
    """
    if not (torch.isfinite(features_ND).all() and torch.isfinite(p_NK).all()):
        raise ValueError("features or predictions of the target are not finite numbers: train with a lower optimizer.lr")
    N, K = p_NK.shape
    f_ND = F.normalize(torch.cat([features_ND, features_ND.new_ones(N, 1)], dim=1), dim=1)
    share_NK, labels_N = p_NK, p_NK.argmax(dim=1)
    for _ in range(2):
        centroids_KD = share_NK.T @ f_ND / (1e-8 + share_NK.sum(dim=0))[:, None]
        counts_K = torch.bincount(labels_N, minlength=K)
        kept = (counts_K > threshold).nonzero()[:, 0]
        if not kept.numel():
            raise ValueError(
                f"no class has more than threshold={threshold} of the {N} target samples (the most are {int(counts_K.max())}): "
                "set a lower threshold"
            )
        similarity_NL = f_ND @ F.normalize(centroids_KD[kept], dim=1).T
        labels_N = kept[similarity_NL.argmax(dim=1)]
        share_NK = F.one_hot(labels_N, K).to(f_ND.dtype)
    return labels_N


def look(
    model: ShotNet, loader: Iterable[Any], to_input: Callable[[Tensor], Tensor], stats: ClassStats, threshold: int = 0
) -> tuple[Tensor, dict[str, Any]]:
    """Pseudo-labels (N,) of all samples, in the loader's order, and the numbers of ``evaluate``, both from one pass.

    The true labels enter the numbers alone.
    """
    seen: list[tuple[Tensor, Tensor]] = []
    hook = model.classifier.register_forward_hook(lambda _, inputs, logits: seen.append((inputs[0], logits)))
    try:
        numbers = evaluate(model, loader, to_input, stats)
    finally:
        hook.remove()
    features_ND, logits_NK = (torch.cat(parts).float() for parts in zip(*seen, strict=True))
    return centroid_labels(features_ND, torch.softmax(logits_NK, dim=1), threshold), numbers
