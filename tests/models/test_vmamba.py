"""VMamba-T against expected outputs and initialisation of the official network, and its scan against the recurrence."""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torchvision.ops import StochasticDepth

from ns_data import create_model
from ns_data.models import vmamba
from ns_data.models.scan import linear_scan

GOLDEN = json.loads((Path(__file__).parent.parent / "data" / "vmamba_tiny.json").read_text())


def golden_weight(key, shape):
    """The recipe in the file of expected values."""
    leaf = key.rsplit(".", 1)[-1]
    r = np.random.RandomState(zlib.crc32(key.encode()) & 0xFFFFFFFF).standard_normal(shape)
    if leaf == "A_logs":
        r = 0.3 * r
    elif leaf == "Ds":
        r = 1 + 0.1 * r
    elif leaf == "dt_projs_bias":
        r = -3 + 0.5 * r
    elif len(shape) == 1:
        r = 1 + 0.1 * r if leaf == "weight" else 0.1 * r
    elif leaf in ("x_proj_weight", "dt_projs_weight"):
        r = r / shape[-1] ** 0.5
    else:
        r = r / math.prod(shape[1:]) ** 0.5
    return torch.from_numpy(r.astype(np.float32))


@pytest.fixture(scope="module")
def state():
    return {key: golden_weight(key, tuple(shape)) for key, shape in GOLDEN["keys"].items()}


def empty_network():
    with torch.device("meta"):
        model = create_model("vmamba_t", 1000)
    return model.to_empty(device="cpu").eval()


def test_outputs_are_those_of_the_official_network(state):
    model = empty_network()
    model.load_state_dict(state, strict=True)
    expected = GOLDEN["golden"]["outputs"]["64x96"]
    images = torch.from_numpy(np.random.RandomState(expected["seed"]).standard_normal(expected["shape"]).astype(np.float32))
    with torch.no_grad():
        logits = model(images)[0].double()
    assert logits[:8].tolist() == pytest.approx(expected["first8"], abs=1e-4)
    assert float(logits.sum()) == pytest.approx(expected["sum"], abs=1e-3)  # of a thousand logits
    assert float(logits.abs().sum()) == pytest.approx(expected["abs_sum"], abs=1e-2)
    assert float(logits.std()) == pytest.approx(expected["std"], abs=1e-4)
    assert logits.argmax() == expected["argmax"][0]


def test_parameters_have_the_official_names_and_shapes():
    shapes = {key: list(value.shape) for key, value in empty_network().state_dict().items()}
    assert shapes == GOLDEN["keys"]
    assert sum(math.prod(shape) for shape in shapes.values()) == GOLDEN["params"] == 30_249_064


def test_linear_layers_saved_as_1x1_convolutions_load_strictly():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, other = (create_model("vmamba_t", 4, depths=(1,), dim=16) for _ in range(2))
    saved = model.state_dict()
    reshaped = {
        key: value[..., None, None] if key.endswith(("proj.weight", "fc1.weight")) else value for key, value in saved.items()
    }
    assert reshaped["layers.0.blocks.0.op.in_proj.weight"].ndim == 4
    other.load_state_dict(reshaped, strict=True)
    assert all(torch.equal(saved[key], value) for key, value in other.state_dict().items())


def test_initialisation_is_that_of_the_official_network():
    """Means and standard deviations agree within what two samples may differ by, and so do the ranges of bounded laws."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        own = create_model("vmamba_t", 1000, depths=(1, 1, 1, 1)).state_dict()
    for key, official in GOLDEN["official_init_stats_seed0"].items():
        value = own[key].double()
        assert list(value.shape) == official["shape"]
        error = 5 * official["std"] / math.sqrt(value.numel())  # of a mean; two samples' difference is within sqrt(2) of it
        assert float(value.mean()) == pytest.approx(official["mean"], abs=math.sqrt(2) * error + 1e-5), key
        assert float(value.std(correction=0)) == pytest.approx(official["std"], abs=error + 1e-5), key
        if official["max"] - official["mean"] < 2 * official["std"]:  # a law with bounds
            assert float(value.min()) == pytest.approx(official["min"], abs=0.35 * official["std"]), key
            assert float(value.max()) == pytest.approx(official["max"], abs=0.35 * official["std"]), key


def test_drop_path_grows_from_none_to_its_rate():
    model = create_model("vmamba_t", 3, depths=(1, 2, 2), dim=16)
    rates = [module.p for module in model.modules() if isinstance(module, StochasticDepth)]
    assert rates == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])


# The scan


def recurrence(a_BLC, b_BLC):
    state, states = torch.zeros_like(b_BLC[:, 0]), []
    for t in range(b_BLC.shape[1]):
        state = a_BLC[:, t] * state + b_BLC[:, t]
        states.append(state)
    return torch.stack(states, dim=1)


def random_pair(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    a, b = (
        torch.rand(shape, generator=generator, dtype=torch.float64),
        torch.randn(shape, generator=generator, dtype=torch.float64),
    )
    return a.requires_grad_(), b.requires_grad_()


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 12, 16, 17, 49, 90, 196])
def test_scan_is_the_recurrence_with_its_gradients(length):
    a, b = random_pair((2, length, 3), seed=length)
    upstream = torch.randn(2, length, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    h, expected = linear_scan(a, b), recurrence(a, b)
    torch.testing.assert_close(h, expected)
    gradients = torch.autograd.grad(h, (a, b), upstream)
    for own, reference in zip(gradients, torch.autograd.grad(expected, (a, b), upstream), strict=True):
        torch.testing.assert_close(own, reference)


@pytest.mark.parametrize("length", [1, 6, 9, 11])
def test_scan_passes_gradcheck_in_float64(length):
    assert torch.autograd.gradcheck(linear_scan, random_pair((2, length, 2)))


def test_scan_gives_gradients_only_where_they_are_wanted():
    a, b = random_pair((1, 9, 2))
    linear_scan(a.detach(), b).sum().backward()
    assert b.grad is not None
    assert not linear_scan(a.detach(), b.detach()).requires_grad


def test_python_steps_of_the_scan_grow_like_the_root_of_the_length():
    def steps(length):
        a, b = random_pair((1, length, 1))
        with profile(activities=[ProfilerActivity.CPU]) as record:
            linear_scan(a, b).sum().backward()
        return sum(event.count for event in record.key_averages() if event.key == "aten::addcmul")

    few, many = steps(400), steps(6400)
    assert few <= 6 * 20
    assert many <= 4.2 * few  # for 16 times the length


def test_four_directions_read_rows_and_columns_both_ways():
    image = torch.arange(6.0).view(1, 2, 3, 1)  # 0 1 2 / 3 4 5
    u_KBLD = vmamba.cross_scan(image)
    assert u_KBLD[:, 0, :, 0].tolist() == [
        [0, 1, 2, 3, 4, 5],
        [0, 3, 1, 4, 2, 5],
        [5, 4, 3, 2, 1, 0],
        [5, 2, 4, 1, 3, 0],
    ]
    assert torch.equal(vmamba.cross_merge(u_KBLD, 2, 3), 4 * image)


def test_the_scan_runs_in_float32_under_every_precision(monkeypatch):
    seen = []

    def spy(a, b):
        seen.extend([a.dtype, b.dtype])
        return linear_scan(a, b)

    monkeypatch.setattr(vmamba, "linear_scan", spy)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = create_model("vmamba_t", 5, depths=(1, 1), dim=16).eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        half = model(images)
    half.float().sum().backward()
    assert seen == [torch.float32] * 4
    whole = model(images)
    torch.testing.assert_close(half.float(), whole, atol=0.02, rtol=0.05)
    seen.clear()
    half = model.bfloat16()(images.bfloat16())
    assert seen == [torch.float32] * 4
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), whole, atol=0.02, rtol=0.05)
