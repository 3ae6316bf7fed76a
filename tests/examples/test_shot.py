"""SHOT's parts against plain computations: loops, scipy's distances, torch's older weight_norm."""

import math
import warnings

import numpy as np
import pytest
import sfda_shot
import torch
from scipy.spatial.distance import cosine
from sfda_config import SfdaConfig, SGDConfig, WinnersConfig
from shot import (
    ShotNet,
    centroid_labels,
    create_sgd,
    decay,
    information_maximisation,
    load_state,
    look,
    read_published,
)
from torch import nn
from torch.utils.data import DataLoader
from torchvision.models import resnet18

from ns_data import LOSSES, ClassStats, GroupedBatch, stitch
from ns_data.training.config import LossConfig
from ns_data.training.distributed import World
from ns_data.training.optim import set_lr


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def small_net(num_classes=5, seed=0, **options):
    torch.manual_seed(seed)
    return ShotNet("small_cnn", num_classes, bottleneck=6, width=4, **options)


@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0])
def test_information_maximisation_by_loops(scale):
    logits = scale * randn(7, 4)
    p = [[math.exp(z) / sum(math.exp(other) for other in row) for z in row] for row in logits.double().tolist()]
    mean = [sum(row[k] for row in p) / 7 for k in range(4)]

    def entropy(q):
        return -sum(x * math.log(x + 1e-5) for x in q)

    expected = sum(entropy(row) for row in p) / 7 - entropy(mean)
    assert information_maximisation(logits).item() == pytest.approx(expected, abs=2e-6)


def test_information_maximisation_is_least_for_sure_and_spread_predictions():
    sure_and_spread, sure_and_one = 50 * torch.eye(4), 50 * torch.eye(4)[[0, 0, 0, 0]]
    assert information_maximisation(sure_and_spread).item() == pytest.approx(-math.log(4), abs=1e-3)
    assert information_maximisation(sure_and_one).item() == pytest.approx(0, abs=1e-3)


def plain_labels(features, p, threshold, rounds):
    """Pseudo-labels sample by sample and class by class, in float64."""
    features, p = features.double().numpy(), p.double().numpy()
    N, K = p.shape
    f = [np.append(row, 1.0) / math.sqrt((row**2).sum() + 1) for row in features]
    share, labels = p, [int(row.argmax()) for row in p]
    for _ in range(rounds):
        kept = [k for k in range(K) if labels.count(k) > threshold]
        centroids = {k: sum(share[i][k] * f[i] for i in range(N)) / (1e-8 + sum(share[i][k] for i in range(N))) for k in kept}
        labels = [min(kept, key=lambda k: cosine(f[i], centroids[k])) for i in range(N)]
        share = [[float(labels[i] == k) for k in range(K)] for i in range(N)]
    return labels


@pytest.mark.parametrize(("threshold", "seed"), [(0, 0), (0, 1), (4, 2), (6, 3)])
def test_centroid_labels_in_two_rounds(threshold, seed):
    features, p = randn(60, 3, seed=seed), torch.softmax(2 * randn(60, 7, seed=seed + 100), dim=1)
    p[:, 5] = 1e-4  # no sample's class
    labels = centroid_labels(features, p, threshold).tolist()
    assert labels == plain_labels(features, p, threshold, rounds=2)
    assert labels != plain_labels(features, p, threshold, rounds=1)
    assert 5 not in labels


def test_classes_are_counted_anew_in_the_second_round():
    """A class with more than ``threshold`` samples at first has no centroid once it is left with fewer."""
    features, p = randn(40, 2, seed=0), torch.softmax(2 * randn(40, 5, seed=100), dim=1)
    at_first, after_one = p.argmax(1).tolist(), plain_labels(features, p, 5, rounds=1)
    lost = [k for k in range(5) if at_first.count(k) > 5 and 0 < after_one.count(k) <= 5]
    assert lost
    labels = centroid_labels(features, p, 5).tolist()
    assert not set(lost) & set(labels)
    assert labels == plain_labels(features, p, 5, rounds=2)


def test_no_class_left_and_numbers_that_are_not_finite_are_refused():
    features, p = randn(9, 3), torch.softmax(randn(9, 3), dim=1)
    with pytest.raises(ValueError, match=r"no class has more than threshold=9 of the 9 .* set a lower threshold"):
        centroid_labels(features, p, 9)
    features[3, 1] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        centroid_labels(features, p)


def test_rates_follow_the_law_and_the_network_before_the_bottleneck_takes_a_tenth():
    assert [decay(it, 4) for it in (1, 2, 4)] == pytest.approx([3.5**-0.75, 6**-0.75, 11**-0.75])
    model = small_net()
    optimizer = create_sgd(model, lr=0.4, features=0.1, momentum=0.9, weight_decay=1e-3)
    set_lr(optimizer, 0.4 * 0.5)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.2)
    set_lr(optimizer, 0.4 * 0.25)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert rates[id(parameter)] == pytest.approx(0.01 if name.startswith("features") else 0.1)
    assert all(group["nesterov"] for group in optimizer.param_groups)
    model.freeze_classifier()
    optimizer = create_sgd(model, lr=0.4, features=0.1, momentum=0.9, weight_decay=1e-3)
    frozen = {id(p) for p in model.classifier.parameters()}
    assert not frozen & {id(p) for group in optimizer.param_groups for p in group["params"]}


def test_the_head_is_normalised_by_rows():
    model, x = small_net(), randn(3, 6)
    state, bias = model.state_dict(), model.classifier.bias
    g, v = (state[f"classifier.parametrizations.weight.original{i}"] for i in range(2))
    g.mul_(torch.linspace(0.5, 2, 5)[:, None])
    expected = [[g[k, 0] * (v[k] @ row) / math.sqrt((v[k] ** 2).sum()) + bias[k] for k in range(5)] for row in x]
    torch.testing.assert_close(model.classifier(x), torch.tensor(expected))
    assert bias.abs().max() == 0


class Bottleneck(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.bn, self.bottleneck = nn.BatchNorm1d(8), nn.Linear(width, 8)


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            self.fc = nn.utils.weight_norm(nn.Linear(8, 3))


@pytest.fixture
def published(tmp_path):
    """The three files of the published code, and the network that wrote them."""
    torch.manual_seed(0)
    backbone, bottleneck, head = resnet18(), Bottleneck(512), Head()
    backbone.fc = nn.Identity()
    parts = {"source_F.pt": backbone, "source_B.pt": bottleneck, "source_C.pt": head}
    for file, part in parts.items():
        with torch.no_grad():
            for parameter in part.parameters():
                parameter.add_(0.02 * randn(*parameter.shape))
        torch.save(part.state_dict(), tmp_path / file)
    assert set(torch.load(tmp_path / "source_C.pt")) == {"fc.weight_g", "fc.weight_v", "fc.bias"}
    network = nn.Sequential(backbone, bottleneck.bottleneck, bottleneck.bn, head.fc)
    return tmp_path, network.eval()


def test_published_checkpoints_fit(published):
    folder, network = published
    model = ShotNet("resnet18", 3, bottleneck=8)
    load_state(model, read_published(folder), folder)
    images = randn(2, 3, 32, 32)
    torch.testing.assert_close(model.eval()(images), network(images))


def test_checkpoints_that_do_not_fit_are_one_sentence(published, tmp_path):
    folder, _ = published
    with pytest.raises(ValueError, match=r"does not fit the network .*: set model and bottleneck") as error:
        load_state(ShotNet("resnet18", 3, bottleneck=16), read_published(folder), folder)
    assert "\n" not in str(error.value)
    torch.save({"head.weight": torch.ones(2)}, folder / "source_C.pt")
    with pytest.raises(ValueError, match=r"source_C.pt holds 'head.weight', but its keys should begin with fc.weight_g"):
        read_published(folder)
    (folder / "source_B.pt").unlink()
    with pytest.raises(ValueError, match=r"no weights at .*source_B\.pt"):
        read_published(folder)
    with pytest.raises(ValueError, match="model 'squeezenet1_0' has no linear layer at its end"):
        ShotNet("squeezenet1_0", 3)


def test_one_pass_gives_labels_and_accuracy_and_leaves_the_network_alone():
    model, images = small_net().train(), randn(50, 3, 8, 8)
    labels = torch.arange(50) % 5
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    passes = []
    handle = model.features.register_forward_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    seen, numbers = look(
        model, DataLoader(list(zip(images, labels, range(50), strict=True)), 16), lambda x: x, ClassStats([10] * 5)
    )
    handle.remove()
    assert passes == [False] * 4
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    model.eval()
    with torch.no_grad():
        features = model.bottleneck(model.features(images))
        p = torch.softmax(model.classifier(features), dim=1)
    assert seen.tolist() == plain_labels(features, p, 0, rounds=2)
    assert numbers["accuracy"] == pytest.approx((p.argmax(1) == labels).float().mean().item())


def adaptation(**settings):
    return sfda_shot.Adaptation(SfdaConfig(**settings), small_net(), 8, World(0, 1, torch.device("cpu")))


def a_batch():
    labels, ids = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2]), torch.arange(8)
    return GroupedBatch(randn(8, 3, 8, 8), labels, ids, ids.view(2, 4), torch.tensor(0))


def test_a_step_weighs_the_pseudo_label_term_alone():
    """Parameters after one step of SGD with Nesterov momentum, from a gradient written out: 0.3 mean(w CE) + IM."""
    rates = SGDConfig(lr=0.2, features=0.1, momentum=0.9, weight_decay=0.01)
    job, other, batch = adaptation(optimizer=rates), small_net(), a_batch()
    job.start_epoch(0, batch.labels)
    job.step(batch, 0, 0, it=3, max_it=10)

    other.train()
    composites = stitch(batch.images, "2x2", batch.groups)
    with torch.no_grad():  # batch statistics, as in training; the running ones are put back
        kept = {name: tensor.clone() for name, tensor in other.state_dict().items()}
        own = other(composites).gather(1, batch.labels.view(2, 4))
        other.load_state_dict(kept)
    weights = 0.6 + torch.softmax(own, dim=1).view(-1)
    assert weights.std() > 0.01
    logits = other(batch.images)
    log_p = torch.log_softmax(logits, dim=1)
    p = log_p.exp()
    im = -(p * torch.log(p + 1e-5)).sum(1).mean() + (p.mean(0) * torch.log(p.mean(0) + 1e-5)).sum()
    objective = 0.3 * (weights * -log_p[torch.arange(8), batch.labels]).sum() / 8 + im
    names, parameters = zip(*[(n, q) for n, q in other.named_parameters() if not n.startswith("classifier")], strict=True)
    gradients = torch.autograd.grad(objective, parameters)
    after = dict(job.model.named_parameters())
    for name, parameter, gradient in zip(names, parameters, gradients, strict=True):
        rate = 0.2 * (0.1 if name.startswith("features") else 1) * (1 + 10 * 3 / 10) ** -0.75
        expected = parameter - rate * 1.9 * (gradient + 0.01 * parameter)
        torch.testing.assert_close(after[name], expected, rtol=1e-4, atol=1e-6)
    for name, parameter in other.classifier.named_parameters():
        assert torch.equal(after[f"classifier.{name}"], parameter)


@pytest.mark.parametrize("weighting", ["own", "constant", "none"])
def test_controls_make_no_composites(weighting):
    job, batch = adaptation(ns=WinnersConfig(weighting=weighting)), a_batch()
    shapes = []
    job.model.register_forward_hook(lambda _, inputs, __: shapes.append(inputs[0].shape[0]))
    job.start_epoch(0, batch.labels)
    job.step(batch, 0, 0, 1, 1)
    assert shapes == [8]


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_takes_the_place_of_the_cross_entropy(name):
    """The objective's loss term, from the loss alone, on the pseudo-labels and with their ids."""
    options = {"k": 0.5, "start_prune": 1} if name == "gce" else {}
    job, batch = adaptation(loss=LossConfig(name, options), epochs=3), a_batch()
    labels_N = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2])
    entered = []
    for epoch in range(2):
        job.start_epoch(epoch, labels_N.roll(epoch))
        job.loss.register_forward_hook(
            lambda _, inputs, kwargs, losses: entered.append((kwargs["ids"], losses)), with_kwargs=True
        )
        job.step(batch._replace(labels=labels_N.roll(epoch)), epoch, 0, epoch + 1, 2)
        if hasattr(job.loss, "counts_K") and job.loss.counts_K is not None:
            assert job.loss.counts_K.tolist() == [2, 2, 2, 1, 1]
    assert [ids.tolist() for ids, _ in entered] == [list(range(8))] * 2
    assert all(losses.shape == (8,) and torch.isfinite(losses).all() for _, losses in entered)
    if name == "gce":
        assert job.loss.last_p.max() < 1  # kept over the change of labels
    if name == "nlnl":
        assert job.loss.steps == 2
