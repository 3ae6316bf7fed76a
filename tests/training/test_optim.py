import math

import pytest
import torch
from torch import nn

from ns_data.training.optim import create_optimizer, create_schedule, parameter_groups, set_lr

TORCHS = {
    "cosine": (torch.optim.lr_scheduler.CosineAnnealingLR, {"T_max": 10}, {}),
    "cosine to 0.1": (torch.optim.lr_scheduler.CosineAnnealingLR, {"T_max": 10, "eta_min": 0.1}, {"final": 0.1}),
    "multi_step": (torch.optim.lr_scheduler.MultiStepLR, {"milestones": [3, 6]}, {"milestones": [3, 6], "factor": 0.1}),
    "poly": (torch.optim.lr_scheduler.PolynomialLR, {"total_iters": 10, "power": 0.9}, {}),
    "poly of 2": (torch.optim.lr_scheduler.PolynomialLR, {"total_iters": 10, "power": 2.0}, {"power": 2}),
}


@pytest.mark.parametrize("name", TORCHS)
def test_schedules_against_torchs(name):
    build, their_options, our_options = TORCHS[name]
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), 1.0)
    theirs = build(optimizer, **their_options)
    ours = create_schedule(name.split()[0], 10, our_options)
    for epoch in range(11):
        assert ours(epoch) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


def test_shots_schedule_by_hand():
    ours = create_schedule("shot", 20, {})
    expected = [math.exp(-0.75 * math.log(1 + 10 * share)) for share in (0, 1 / 4, 1 / 2, 1)]
    assert [ours(epoch) for epoch in (0, 5, 10, 20)] == pytest.approx(expected)
    assert create_schedule("shot", 20, {"gamma": 3, "power": 0.5})(20) == 0.5


@pytest.mark.parametrize("name", ["cosine", "poly", "shot"])
def test_a_warm_up_comes_before_the_whole_curve(name):
    plain, warmed = create_schedule(name, 20, {}), create_schedule(name, 25, {"warmup_epochs": 5})
    assert [warmed(epoch) for epoch in (0, 2.5)] == pytest.approx([0, 0.5], abs=1e-3)
    assert [warmed(epoch) for epoch in range(5, 26)] == [plain(epoch) for epoch in range(21)]


def test_polynomial_decay_against_torchs():
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), 1.0)
    theirs = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=10, power=0.9)
    ours = create_schedule("poly", 10, {"power": 0.9})
    for epoch in range(11):
        assert ours(epoch) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


def test_warm_up_rises_to_the_peak_and_the_end_is_final():
    schedule = create_schedule("cosine", 20, {"warmup_epochs": 5, "final": 0.1})
    assert 0 < schedule(0) < 0.01
    assert schedule(2.5) == pytest.approx(0.5, abs=0.01)
    assert schedule(5) == 1
    assert schedule(12.5) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 2)) / 2)
    assert schedule(20) == pytest.approx(0.1)
    assert create_schedule("constant", 20, {})(7) == 1


def test_adamw_decays_matrices_only():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    optimizer = create_optimizer("adamw", net, 0.1, {"weight_decay": 0.3})
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] == 0.3 for p in group["params"]}
    assert decayed == {id(net[0].weight), id(net[2].weight)}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(net.parameters()))
    set_lr(optimizer, 0.02)
    assert {group["lr"] for group in optimizer.param_groups} == {0.02}


class Net(nn.Module):
    """Parts named like those of torchvision's networks."""

    def __init__(self):
        super().__init__()
        self.stem, self.layer1 = nn.Conv2d(3, 4, 3), nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
        self.fc, self.fc2 = nn.Linear(4, 2), nn.Linear(2, 2)

    def forward(self, x):
        return self.fc2(self.fc(self.layer1(self.stem(x)).mean((2, 3))))


def rates(optimizer, net):
    """Learning rate of each parameter by its name; those that are not trained are absent."""
    names = {parameter: name for name, parameter in net.named_parameters()}
    return {names[p]: group["lr"] for group in optimizer.param_groups for p in group["params"]}


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_parts_of_a_network_have_learning_rates_of_their_own(name):
    net = Net()
    optimizer = create_optimizer(name, net, 0.1, {}, {"fc": 10, "layer1": 0.5, "layer1.1": 2, "fc2.bias": 3})
    for lr in (0.1, 0.02):
        set_lr(optimizer, lr)
        factors = {"stem": 1, "layer1.0": 0.5, "layer1.1": 2, "fc": 10, "fc2": 1}
        expected = {f"{part}.{what}": lr * factor for part, factor in factors.items() for what in ("weight", "bias")}
        assert rates(optimizer, net) == pytest.approx({**expected, "fc2.bias": 3 * lr})


def test_a_factor_is_a_multiple_of_the_step_that_is_made():
    steps = {}
    for factor in (1, 10):
        torch.manual_seed(0)
        net = Net()
        before = {name: p.detach().clone() for name, p in net.named_parameters()}
        optimizer = create_optimizer("sgd", net, 0.1, {"weight_decay": 0.01}, {"fc": factor})
        set_lr(optimizer, 0.1)
        net(torch.ones(2, 3, 8, 8)).square().sum().backward()
        optimizer.step()
        steps[factor] = {name: p.detach() - before[name] for name, p in net.named_parameters()}
    for name, step in steps[1].items():
        torch.testing.assert_close(steps[10][name], step * (10 if name.startswith("fc.") else 1), rtol=1e-4, atol=1e-6)
    assert steps[1]["fc.weight"].abs().sum() > 0


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_factor_of_zero_freezes(name):
    net = Net()
    before = {key: value.clone() for key, value in net.named_parameters()}
    optimizer = create_optimizer(name, net, 0.1, {"weight_decay": 0.5}, {"stem": 0, "layer1": 0})
    net(torch.randn(2, 3, 8, 8)).square().sum().backward()
    optimizer.step()
    changed = {key for key, value in net.named_parameters() if not torch.equal(value, before[key])}
    assert changed == {"fc.weight", "fc.bias", "fc2.weight", "fc2.bias"}
    assert all(net.get_parameter(key).grad is None for key in before.keys() - changed)  # clip_grad must not see them


def test_adamw_keeps_its_groups_without_decay_in_every_part():
    net = Net()
    optimizer = create_optimizer("adamw", net, 0.1, {"weight_decay": 0.3}, {"layer1": 2})
    decay = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {name: decay[p] for name, p in net.named_parameters()} == {
        name: 0.3 if p.ndim > 1 else 0 for name, p in net.named_parameters()
    }
    sgd = create_optimizer("sgd", net, 0.1, {"weight_decay": 0.3}, {"layer1": 2})
    assert {group["weight_decay"] for group in sgd.param_groups} == {0.3}


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ({"f": 10}, "unknown part of the network in optimizer.groups 'f': did you mean 'fc'"),
        ({"wumpus": 10}, "known are: stem, layer1, fc, fc2"),
        ({"layer1.2": 10}, "did you mean 'layer1.1'"),
        ({"fc": -1}, "optimizer.groups.fc must be a factor on the learning rate, 0 or more, got -1"),
        ({"fc": "high"}, "got 'high'"),
        ({"fc": float("inf")}, "got inf"),
        ({"stem": 0, "layer1": 0, "fc": 0, "fc2": 0}, "freezes the whole network"),
    ],
)
def test_groups_that_cannot_be_are_refused(factors, message):
    with pytest.raises(ValueError, match=message):
        parameter_groups(Net(), factors)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda net: create_optimizer("sgd", net, 0.1, {"lr": 0.5}), "unknown option of optimizer 'sgd' 'lr'"),
        (lambda net: create_schedule("poly", 3, {"num_epochs": 5}), "unknown option of schedule 'poly' 'num_epochs'"),
        (lambda net: create_schedule("poly", 3, {"power": 0}), "schedule.options.power must be above 0, got 0"),
        (lambda net: create_schedule("shot", 3, {"gamma": -1}), "schedule.options.gamma must be at least 0, got -1"),
        (lambda net: create_optimizer("sdg", net, 0.1, {}), "did you mean 'sgd'"),
        (lambda net: create_optimizer("sgd", net, 0.1, {"momentun": 0.9}), "did you mean 'momentum'"),
        (lambda net: create_schedule("cosin", 3, {}), "did you mean 'cosine'"),
        (lambda net: create_schedule("cosine", 3, {"warmup": 1}), "did you mean 'warmup_epochs'"),
    ],
)
def test_unknown_names_and_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make(nn.Linear(1, 1))
