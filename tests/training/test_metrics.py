"""Numbers of an evaluation against torchmetrics and scikit-learn, by hand where those differ, and over ranks."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import balanced_accuracy_score, log_loss, recall_score, top_k_accuracy_score
from torch import distributed as dist
from torch import multiprocessing

from ns_data.training.metrics import Evaluation, calibration_error, per_class_accuracy, shot_accuracies


def random_batch(samples=500, num_classes=12, seed=0):
    """Logits that favour the label, more so for lower classes; labels of a long tail."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.linspace(1, 0.1, num_classes)
    labels_B = torch.multinomial(weights, samples, replacement=True, generator=generator)
    logits_BK = torch.randn(samples, num_classes, generator=generator)
    logits_BK[torch.arange(samples), labels_B] += 2 * weights[labels_B]
    return logits_BK, labels_B


def evaluated(logits_BK, labels_B, batch_size=None):
    evaluation = Evaluation(logits_BK.shape[1])
    for start in range(0, len(labels_B), batch_size or len(labels_B)):
        stop = start + (batch_size or len(labels_B))
        evaluation.update(logits_BK[start:stop], labels_B[start:stop])
    return evaluation


@pytest.mark.parametrize("num_classes", [2, 12, 100])
def test_numbers_are_those_of_scikit_learn(num_classes):
    logits_BK, labels_B = random_batch(num_classes=num_classes)
    evaluation = evaluated(logits_BK, labels_B, batch_size=64)
    numbers = evaluation.numbers()
    predicted_B, seen = logits_BK.argmax(dim=1), np.unique(labels_B)
    assert numbers["samples"] == 500
    assert numbers["invalid"] == 0
    assert numbers["accuracy"] == pytest.approx(float((predicted_B == labels_B).double().mean()), abs=1e-12)
    assert numbers["balanced_accuracy"] == pytest.approx(
        recall_score(labels_B, predicted_B, labels=seen, average="macro", zero_division=0), abs=1e-12
    )
    if num_classes > 5:
        expected = top_k_accuracy_score(labels_B, logits_BK, k=5, labels=range(num_classes))
        assert numbers["top5_accuracy"] == pytest.approx(expected, abs=1e-12)
    else:
        assert "top5_accuracy" not in numbers
    expected = log_loss(labels_B, torch.softmax(logits_BK.double(), dim=1), labels=range(num_classes))
    assert numbers["test_loss"] == pytest.approx(expected, rel=1e-6)
    recalls = recall_score(labels_B, predicted_B, labels=seen, average=None, zero_division=0)
    np.testing.assert_allclose(per_class_accuracy(evaluation.confusion_KP)[seen], recalls)


def test_balanced_accuracy_leaves_classes_without_samples_out():
    logits_BK, labels_B = random_batch()
    kept = (labels_B != 3) & (logits_BK.argmax(dim=1) != 3)  # scikit-learn warns of predictions outside the labels
    evaluation = evaluated(logits_BK[kept], labels_B[kept])
    expected = balanced_accuracy_score(labels_B[kept], logits_BK[kept].argmax(dim=1))
    assert evaluation.numbers()["balanced_accuracy"] == pytest.approx(expected)
    assert math.isnan(per_class_accuracy(evaluation.confusion_KP)[3])


@pytest.mark.parametrize("num_classes", [2, 12, 100])
def test_numbers_are_those_of_torchmetrics(num_classes):
    classification = pytest.importorskip("torchmetrics.functional.classification")
    logits_BK, labels_B = random_batch(num_classes=num_classes, seed=1)
    evaluation = evaluated(logits_BK, labels_B, batch_size=77)
    numbers = evaluation.numbers()
    options = {"preds": logits_BK, "target": labels_B, "num_classes": num_classes}
    for name, top_k in {"accuracy": 1, "top5_accuracy": 5}.items():
        if name in numbers:
            micro = classification.multiclass_accuracy(**options, average="micro", top_k=top_k)
            assert numbers[name] == pytest.approx(float(micro), abs=1e-6)
    by_class = classification.multiclass_accuracy(**options, average="none").numpy()
    seen = np.unique(labels_B)
    np.testing.assert_allclose(per_class_accuracy(evaluation.confusion_KP)[seen], by_class[seen], atol=1e-6)
    assert numbers["balanced_accuracy"] == pytest.approx(by_class[seen].mean(), abs=1e-6)
    if num_classes == 12:  # all of them have samples
        macro = classification.multiclass_accuracy(**options, average="macro")
        assert numbers["balanced_accuracy"] == pytest.approx(float(macro), abs=1e-6)
    assert torch.equal(evaluation.confusion_KP[:, :-1], classification.multiclass_confusion_matrix(**options))
    error = classification.multiclass_calibration_error(
        torch.softmax(logits_BK, dim=1), labels_B, num_classes, n_bins=15, norm="l1"
    )
    assert numbers["calibration_error"] == pytest.approx(float(error), abs=1e-6)


def test_calibration_by_hand():
    """Four samples in two bins: at confidence 0.9 two of three are right, at 0.6 none of one; a sure one joins the last bin."""

    def logits(confidence):
        return [math.log(confidence), math.log(1 - confidence)] if confidence < 1 else [200.0, -200.0]

    logits_B2 = torch.tensor([logits(c) for c in (0.9, 0.9, 0.9, 0.6)])
    evaluation = evaluated(logits_B2, torch.tensor([0, 0, 1, 1]))
    expected = 3 / 4 * abs(2 / 3 - 0.9) + 1 / 4 * 0.6
    assert evaluation.numbers()["calibration_error"] == pytest.approx(expected, abs=1e-6)

    evaluation = evaluated(torch.tensor([logits(0.95), logits(1)]), torch.tensor([1, 0]))
    assert evaluation.calibration_N3[:, 0].tolist() == [0] * 14 + [2]
    assert evaluation.numbers()["calibration_error"] == pytest.approx(abs(1 / 2 - 1.95 / 2), abs=1e-6)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below():
    evaluation = evaluated(torch.zeros(1, 3), torch.tensor([0]))  # 1/3 is 5/15
    assert evaluation.calibration_N3[:, 0].nonzero().flatten().tolist() == [4]


def test_shots_follow_the_training_counts():
    accuracy_K = np.array([0.9, 0.7, 0.5, 0.4, 0.3, 0.1])
    assert shot_accuracies(accuracy_K, [5000, 101, 100, 20, 19, 0]) == pytest.approx(
        {"many_shot": 0.8, "medium_shot": 0.45, "few_shot": 0.2}
    )
    assert shot_accuracies(accuracy_K, [500] * 6).keys() == {"many_shot"}
    assert shot_accuracies(accuracy_K, range(6), many=4, few=1) == pytest.approx(
        {"many_shot": 0.1, "medium_shot": 0.475, "few_shot": 0.9}
    )
    with pytest.raises(ValueError, match="5 training counts do not fit 6 classes"):
        shot_accuracies(accuracy_K, [1] * 5)
    with pytest.raises(ValueError, match="few=20 must not be more than many=10"):
        shot_accuracies(accuracy_K, [1] * 6, many=10)
    logits_BK, labels_B = random_batch()
    numbers = evaluated(logits_BK, labels_B).numbers(training_counts=[200] * 6 + [3] * 6)
    by_class = [float((logits_BK.argmax(1) == labels_B)[labels_B == k].double().mean()) for k in range(12)]
    assert numbers["many_shot"] == pytest.approx(np.mean(by_class[:6]))
    assert numbers["few_shot"] == pytest.approx(np.mean(by_class[6:]))
    assert "medium_shot" not in numbers


def test_batches_in_any_order_give_the_same_numbers_exactly():
    logits_BK, labels_B = random_batch(1000)
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(3))
    one = evaluated(logits_BK, labels_B).numbers([50] * 12)
    other = evaluated(logits_BK[order], labels_B[order], batch_size=33).numbers([50] * 12)
    assert one.pop("test_loss") == pytest.approx(other.pop("test_loss"), rel=1e-12)
    assert one == other


def test_invalid_logits_are_wrong_and_counted():
    logits_BK, labels_B = random_batch(100, 12)
    logits_BK[torch.arange(100), labels_B] += 20  # all correct
    logits_BK[:10] = math.nan
    logits_BK[10:15, 0] = math.inf
    numbers = evaluated(logits_BK, labels_B).numbers()
    assert numbers["invalid"] == 15
    assert numbers["accuracy"] == numbers["top5_accuracy"] == 0.85
    assert numbers["calibration_error"] == pytest.approx(0, abs=1e-3)
    assert numbers["test_loss"] == pytest.approx(float(F.cross_entropy(logits_BK[15:], labels_B[15:])))
    logits_BK[15, labels_B[15] - 1] = -math.inf  # a class ruled out is no fault
    assert evaluated(logits_BK, labels_B).numbers()["invalid"] == 15
    assert math.isnan(calibration_error(torch.zeros(15, 3)))


def test_a_lead_that_the_softmax_rounds_away_still_decides():
    logits_BK = torch.tensor([[0.0, 1e-9, -90.0]])
    assert torch.softmax(logits_BK, dim=1)[0, 0] == torch.softmax(logits_BK, dim=1)[0, 1]
    assert evaluated(logits_BK, torch.tensor([1])).numbers()["accuracy"] == 1


def test_half_precision_logits_are_evaluated_in_float32():
    logits_BK, labels_B = random_batch()
    half = logits_BK.bfloat16()
    assert evaluated(half, labels_B).numbers() == evaluated(half.float(), labels_B).numbers()


def test_what_does_not_fit_is_refused():
    evaluation = Evaluation(3)
    with pytest.raises(ValueError, match="no samples were evaluated"):
        evaluation.numbers()
    with pytest.raises(ValueError, match=r"logits of shape \(2, 4\).*3 classes"):
        evaluation.update(torch.zeros(2, 4), torch.tensor([0, 1]))
    for label in (3, -1):
        with pytest.raises(ValueError, match=f"label {label} is out of range for an evaluation of 3 classes"):
            evaluation.update(torch.zeros(2, 3), torch.tensor([0, label]))
    evaluation.update(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))
    assert not evaluation.confusion_KP.any()


def _rank(rank, file, world_size, expected):
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world_size)
    logits_BK, labels_B = random_batch(101)
    own = evaluated(logits_BK[rank::world_size], labels_B[rank::world_size])
    total = own.summed_over_ranks()
    assert own.numbers()["samples"] == len(range(rank, 101, world_size))  # unchanged
    assert total.numbers() == pytest.approx(expected, rel=1e-12)
    few = Evaluation(12)
    if rank == 1:  # the others have nothing to evaluate
        few.update(logits_BK[:1], labels_B[:1])
    assert few.summed_over_ranks().numbers()["samples"] == 1
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_together_give_the_numbers_of_one_process(tmp_path, world_size):
    expected = evaluated(*random_batch(101)).numbers()
    multiprocessing.spawn(_rank, args=(tmp_path / "rendezvous", world_size, expected), nprocs=world_size)
    assert evaluated(*random_batch(101)).summed_over_ranks().numbers() == expected
