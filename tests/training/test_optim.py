import math

import pytest
import torch
from torch import nn

from ns_data.training.optim import create_optimizer, create_schedule, set_lr


def test_schedules_against_torchs():
    net = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(net.parameters(), 1.0)
    theirs = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 6], 0.1)
    ours = create_schedule("multi_step", 10, {"milestones": [3, 6], "factor": 0.1})
    for epoch in range(10):
        assert ours(epoch) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(torch.optim.SGD(net.parameters(), 1.0), 10)
    ours = create_schedule("cosine", 10, {})
    for epoch in range(10):
        assert ours(epoch) == pytest.approx(cosine.get_last_lr()[0])
        cosine.optimizer.step()
        cosine.step()


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


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda net: create_optimizer("sdg", net, 0.1, {}), "did you mean 'sgd'"),
        (lambda net: create_optimizer("sgd", net, 0.1, {"momentun": 0.9}), "did you mean 'momentum'"),
        (lambda net: create_schedule("cosin", 3, {}), "did you mean 'cosine'"),
        (lambda net: create_schedule("cosine", 3, {"warmup": 1}), "did you mean 'warmup_epochs'"),
    ],
)
def test_unknown_names_and_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make(nn.Linear(1, 1))
