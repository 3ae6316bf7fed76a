import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, recall_score
from torch import nn
from torch.utils.data import DataLoader

from ns_data import ClassStats
from ns_data.training.evaluate import evaluate


def test_numbers_equal_scikit_learns():
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(101, 6, generator=generator), torch.randint(0, 5, (101,), generator=generator)
    model = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.9)).train()
    loader = DataLoader([(x, int(y), i) for i, (x, y) in enumerate(zip(images, labels, strict=True))], 16)
    result = evaluate(model, loader, lambda x: x, ClassStats(np.array([200, 50, 50, 10, 10, 5])))
    assert model.training
    model.eval()
    logits = model(images).detach()
    predicted = logits.argmax(1)
    assert result["accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    assert result["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert result["recall"][:5] == pytest.approx(recall_score(labels, predicted, average=None, labels=range(5)), abs=1e-6)
    assert result["recall"][5] is None
    assert result["many_shot"] == pytest.approx(result["recall"][0], abs=1e-6)
    assert result["few_shot"] == pytest.approx(np.mean(result["recall"][3:5]), abs=1e-6)
    assert result["test_samples"] == 101
    assert result["test_loss"] == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
