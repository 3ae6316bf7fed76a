"""Every loss against the values and gradients of its published code, entry by entry of the file that ``expected`` reads."""

import copy
import json

import numpy as np
import pytest
import torch

from ns_data.losses.ce_ogc import find_threshold, fit_two_normals
from tests.losses import expected

FILE = expected.read()
OWN = json.loads(expected.OWN.read_text())
TIGHT = {"loss": 1e-9, "grad": 1e-9}  # of entries without a tolerance of their own
NON_FINITE = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}


def tensor(values):
    """Nested lists as float64; the file writes values that are not finite as words."""
    return torch.tensor(_numbers(values), dtype=torch.float64)


def _numbers(values):
    return [_numbers(value) for value in values] if isinstance(values, list) else float(NON_FINITE.get(values, values))


def close(actual, wanted, atol):
    wanted = torch.as_tensor(wanted, dtype=torch.float64)
    torch.testing.assert_close(actual.detach().double(), wanted, rtol=0, atol=atol)


def inputs_of(file, entry):
    if entry["input"] not in file["inputs"]:
        raise expected.NotMappedError(f"input {entry['input']!r}")
    given = file["inputs"][entry["input"]]
    return tensor(given["logits"]).requires_grad_(), torch.tensor(given["labels"])


def check_values(file, entry, loss, state):
    """Values and gradients of every sample and of the batch; and that a sample has the same value without the others."""
    logits, labels = inputs_of(file, entry)
    extra, atol = entry.get("extra", {}), entry.get("suggested_atol", TIGHT)
    ids = torch.arange(len(labels))
    if "negative_labels" in extra:
        negatives = torch.tensor(extra["negative_labels"]).view(len(labels), -1)
        assert loss.draw(labels, logits.shape[1]).shape == negatives.shape
        loss.draw = lambda labels_B, num_classes: negatives
    if "prob_thr" in state:
        loss.threshold = state["prob_thr"]
        tau = loss.base.pull(torch.tensor(loss.threshold, dtype=torch.float64))
        assert tau.item() == pytest.approx(state["tau"], rel=1e-6)
        loss.eval()  # the threshold is given: nothing to learn from this batch
    loss.start_epoch(0, 100)
    loss_B = loss(logits, labels, ids=ids)
    grad_BK = torch.autograd.grad(loss_B.sum(), logits)[0]
    wanted_B, wanted_BK = tensor(entry["per_sample"]), tensor(entry["grad_per_sample"])
    # where the published gradient is 0 * inf, ours is its limit
    wanted_BK = wanted_BK.where(~wanted_BK.isnan(), torch.zeros(()).double())
    close(loss_B, wanted_B, atol["loss"])
    close(grad_BK, wanted_BK, atol["grad"])
    close(loss_B.mean(), entry["mean"], atol["loss"])
    if "mean_grad" in entry:
        close(grad_BK / len(labels), tensor(entry["mean_grad"]), atol["grad"])
    if "per_sample_exact" in extra:
        close(loss_B, tensor(extra["per_sample_exact"]), 1e-9)
        close(grad_BK, tensor(extra["grad_per_sample_exact"]), 1e-9)
        close(loss.weights(logits.log_softmax(1), labels), tensor(extra["weights_exact_projection"]), 1e-9)
    elif entry["couples_batch"]:
        raise expected.NotMappedError("couples_batch without exact values")
    else:
        if "negative_labels" in extra:
            loss.draw = lambda labels_B, num_classes: negatives[:1]
        close(loss(logits[:1], labels[:1], ids=ids[:1]), wanted_B[:1], atol["loss"])


def check_pruning(file, entry, loss, state):
    """The samples that truncated GCE keeps after it has seen all of them."""
    logits, labels = inputs_of(file, entry)
    loss.start_epoch(0, 3)
    loss(logits, labels, ids=torch.arange(len(labels)))
    loss.start_epoch(1, 3)
    assert loss.kept[: len(labels)].double().tolist() == entry["extra"]["weights"]


def check_regularizer(file, entry, loss, state):
    """The L1 term beside the mean of the data term, and the gradient of both."""
    extra = entry["extra"]
    weight, bias = tensor(extra["weight"]), tensor(extra["bias"])
    model = torch.nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
    model.load_state_dict({"weight": weight, "bias": bias})
    data = loss(model(tensor(extra["x"])), torch.tensor(extra["labels"])).mean()
    penalty = loss.regularizer(model)
    (data + penalty).backward()
    atol = entry.get("suggested_atol", {"loss": 1e-6, "grad": 1e-8})  # A is a float32 number in the published code
    close(data, extra["data_term"], atol["loss"])
    close(penalty, loss.delta * extra["l1_norm"], 1e-12)
    close(data + penalty, extra["total"], atol["loss"])
    close(model.weight.grad, tensor(extra["grad_weight"]), atol["grad"])
    close(model.bias.grad, tensor(extra["grad_bias"]), atol["grad"])


def check_soft_labels(file, entry, loss, state):
    extra = entry["extra"]
    for epsilon1, wanted in extra["expected_4_decimals"].items():
        loss.epsilon1 = float(epsilon1)
        close(loss(tensor(extra["logits"]), tensor(extra["soft_labels"])), tensor(wanted), 1e-4)


def check_thresholds(file, entry, loss, state):
    for row in entry["extra"]["table"]:
        means, variances = tensor([row["mean_clean"], row["mean_noisy"]]), tensor([row["var_clean"], row["var_noisy"]])
        threshold = find_threshold(means, variances, 1 + row["epsilon"] * row["lr"], loss.base.pull)
        assert threshold == pytest.approx(row["prob_thr"], abs=1e-12), row
        assert loss.base.pull(torch.tensor(threshold)).item() == pytest.approx(row["tau"], rel=1e-6), row


def check_stream(file, entry, loss, state):
    """The state of the clipped loss over its first steps, on two-class logits with the given -log p_y."""
    extra = entry["extra"]
    h = tensor(value_of(file, extra["queue_H"], "queue_H"))
    loss.set_lr(state["lr"])
    for number, step in enumerate(extra["steps"]):
        part = h.chunk(len(extra["steps"]))[number]
        logits = torch.stack([-part, torch.log(-torch.expm1(-part))], 1)
        mean = loss(logits, torch.zeros(len(part), dtype=torch.long)).mean()
        assert mean.item() == pytest.approx(step["loss"], rel=1e-6), step
        assert loss.threshold == pytest.approx(step["prob_thr"], abs=1e-12), step
    fit, (means, variances) = extra["gmm"], fit_two_normals(loss.queue)
    close(means, [fit["mean_clean"], fit["mean_noisy"]], 1e-6)
    close(variances, [fit["covar_clean"], fit["covar_noisy"]], 1e-6)


def value_of(file, value, key):
    """A field, or that of the entry which it refers to in words."""
    if not isinstance(value, str):
        return value
    other = value.removeprefix("same as ")
    return next(entry for entry in file["goldens"] if entry["id"] == other)["extra"][key]


def check(entry, file=OWN):
    """False if there is nothing of ours to check."""
    mapped = expected.map_entry(entry)
    if mapped is None:
        return False
    special = {
        "weights": check_pruning,
        "l1_norm": check_regularizer,
        "expected_4_decimals": check_soft_labels,
        "table": check_thresholds,
        "steps": check_stream,
    }
    checks = [special[key] for key in entry.get("extra", {}) if key in special]
    if entry.get("per_sample") is not None:
        checks.append(check_values)
    if not checks:
        raise expected.NotMappedError("nothing in it that a check knows")
    for one in checks:
        one(file, entry, *copy.deepcopy(mapped))
    return True


@pytest.mark.parametrize("entry", FILE["goldens"], ids=[entry["id"] for entry in FILE["goldens"]])
def test_entry(entry):
    if not check(entry, FILE):
        pytest.skip(f"{entry['loss']} is not built")


def entry_of(loss):
    return copy.deepcopy(next(entry for entry in OWN["goldens"] if entry["loss"] == loss and entry.get("per_sample")))


@pytest.mark.parametrize("loss", ["Focal", "SCE", "ANL", "CE_eps+MAE", "LOW", "CE+OGC"])
@pytest.mark.parametrize("field", ["per_sample", "grad_per_sample", "mean"])
def test_a_changed_number_is_noticed(loss, field):
    entry = entry_of(loss)
    where = entry
    if loss == "LOW":
        where, field = entry["extra"], {"mean": "weights_exact_projection"}.get(field, field + "_exact")
    changed = np.array(where[field])
    changed.flat[0] += 1e-4
    where[field] = changed.tolist()
    with pytest.raises(AssertionError, match="not close"):
        check(entry)


def test_what_cannot_be_mapped_is_an_error():
    entry = entry_of("Focal")
    entry["hparams"]["temperature"] = 2.0
    with pytest.raises(expected.NotMappedError, match=r"hparam temperature=2\.0"):
        check(entry)
    entry = entry_of("ANL")
    entry["hparams"]["negative"] = "mae"
    with pytest.raises(expected.NotMappedError, match="hparam negative"):
        check(entry)
    with pytest.raises(expected.NotMappedError, match="loss 'Focal-Tversky'"):
        check({**entry_of("Focal"), "loss": "Focal-Tversky"})
    with pytest.raises(expected.NotMappedError, match="nothing in it"):
        check({**entry_of("CE"), "per_sample": None})
    with pytest.raises(expected.NotMappedError, match="input 'Z'"):
        check({**entry_of("CE"), "input": "Z"})
    assert not check({**entry_of("CE"), "loss": "LDAM"})


def test_another_file_is_read_where_the_environment_names_one(tmp_path, monkeypatch):
    other = {"inputs": {}, "goldens": [entry_of("CE")]}
    (tmp_path / "other.json").write_text(json.dumps(other))
    monkeypatch.setenv("NS_LOSS_GOLDENS", str(tmp_path / "other.json"))
    assert expected.read() == other
    monkeypatch.delenv("NS_LOSS_GOLDENS")
    assert len(expected.read()["goldens"]) > 50


def test_only_the_later_stages_of_nlnl_are_left_out():
    left_out = {entry["loss"] for entry in OWN["goldens"] if expected.map_entry(entry) is None}
    assert left_out <= set(expected.NOT_BUILT)
