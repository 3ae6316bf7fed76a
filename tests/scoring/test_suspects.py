"""Who is likely mislabelled: known cases, and the precision on planted label noise."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from ns_data import NSScorer, ScoreLedger, own_scores


def test_suspects_lose_beside_their_class():
    ledger = ScoreLedger(8)
    ids, labels = torch.arange(6), torch.tensor([0, 0, 0, 1, 1, 1])
    scores = torch.tensor([0.5, 0.5, 0.1, 0.3, 0.3, 0.01])  # class 1 is hard; its loser stands out less than class 0's
    losses = torch.tensor([0.1, 0.2, 1.0, 0.3, 0.4, 2.0])
    ledger.update(ids, scores, labels, 0, losses=losses)
    assert ledger.suspects(2).tolist() == [2, 5]
    assert ledger.suspects(2, by="loss").tolist() == [5, 2]
    assert ledger.suspects(0).tolist() == []
    assert set(ledger.suspects(6)) == set(range(6))


def test_who_has_no_score_is_no_suspect():
    ledger = ScoreLedger(4)
    ledger.update(torch.tensor([2, 3]), torch.tensor([0.2, 0.4]), torch.tensor([0, 0]), 0)
    with pytest.raises(ValueError, match="cannot name 3 suspects: 2 of 4 samples have a score"):
        ledger.suspects(3)
    with pytest.raises(
        ValueError, match=r"cannot name 1 suspects: 0 of 4 samples have a loss: update\(\) takes them as losses="
    ):
        ledger.suspects(1, by="loss")
    with pytest.raises(ValueError, match="by 'score' or 'loss', got 'margin'"):
        ledger.suspects(1, by="margin")


@pytest.fixture(scope="module")
def noisy_run():
    """A network trained on digits with 20 % of the labels wrong: ledgers of composite and own scores, and who is wrong."""
    data = load_digits()
    images = F.interpolate(torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1, scale_factor=2, mode="bilinear")
    rng = np.random.default_rng(0)
    size = len(images)
    wrong = np.zeros(size, bool)
    wrong[rng.permutation(size)[: size // 5]] = True
    labels = torch.tensor(np.where(wrong, (data.target + rng.integers(1, 10, size)) % 10, data.target))
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 48, 3, padding=1), nn.BatchNorm2d(48), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10)),
    )
    composites, own = ScoreLedger(size), ScoreLedger(size)
    scorer = NSScorer(net, ledger=composites)
    optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)
    for epoch in range(8):
        for ids in torch.tensor(rng.permutation(size)).split(128):
            scorer(images[ids], labels[ids], ids_B=ids)
            logits = net(images[ids])
            loss = F.cross_entropy(logits, labels[ids], reduction="none")
            own.update(ids, own_scores(logits, labels[ids]), labels[ids], epoch, losses=loss)
            optimizer.zero_grad()
            loss.mean().backward()
            optimizer.step()
    return composites, own, wrong


@pytest.mark.slow
def test_precision_on_planted_noise(noisy_run):
    """As many suspects as there are wrong labels: a fifth of them would be by chance."""
    composites, own, wrong = noisy_run
    n = wrong.sum()
    assert wrong[own.suspects(n)].mean() > 0.6
    assert wrong[own.suspects(n, by="loss")].mean() > 0.65
    assert wrong[own.suspects(50)].mean() > 0.95
    assert wrong[composites.suspects(n)].mean() > 0.3
