import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ns_data import WEIGHTINGS, ClassStats, Layout, ns_weights
from ns_data.scoring.weighting import Step, Strength

LABELS = torch.tensor([0, 0, 0, 1, 0, 1, 2, 0])
SCORES = torch.tensor([0.7, 0.1, 0.1, 0.1, 0.25, 0.25, 0.4, 0.1])


def step(**changes):
    values = {
        "scores_B": SCORES,
        "logits_BK": torch.randn(8, 3, generator=torch.Generator().manual_seed(0)),
        "labels_B": LABELS,
        "groups_GM": torch.arange(8).view(2, 4),
        "layout": Layout.parse("2x2"),
        "sigma": 1.5,
        "rho": -1.0,
        "stats": ClassStats(np.array([500, 100, 0, 20])),
        "generator": torch.Generator().manual_seed(0),
    }
    return Step(**{**values, **changes})


@given(st.floats(1, 5), st.floats(-1, 1), st.sampled_from([2, 4, 8]))
def test_mean_weight_is_sigma_plus_rho_over_m(sigma, rho, group_size):
    scores = torch.softmax(torch.randn(10, group_size), 1).reshape(-1)
    weights = ns_weights(scores, sigma=sigma, rho=rho)
    assert weights.mean().item() == pytest.approx(sigma + rho / group_size, rel=1e-5)
    normalized = ns_weights(scores, sigma=sigma, rho=rho, group_size=group_size, normalize=True)
    assert normalized.mean().item() == pytest.approx(1, rel=1e-5)
    torch.testing.assert_close(normalized * weights.mean(), weights)


@pytest.mark.parametrize(("sigma", "rho", "bound"), [(0.5, -1, 1), (1.4, -1.5, 1.5), (-0.1, 1, 0), (float("nan"), 1, 0)])
def test_negative_weights_are_refused_with_the_bound(sigma, rho, bound):
    with pytest.raises(ValueError, match=f"sigma must be at least {bound}"):
        ns_weights(SCORES, sigma=sigma, rho=rho)


def test_normalize_needs_a_group_size_and_a_mean():
    with pytest.raises(ValueError, match="pass group_size"):
        ns_weights(SCORES, sigma=1, normalize=True)
    with pytest.raises(ValueError, match="mean weight 0"):
        ns_weights(SCORES, sigma=1, rho=-1, group_size=1, normalize=True)


def test_ns_and_own_and_constant_and_none():
    torch.testing.assert_close(WEIGHTINGS["ns"].weigh(step())[0], 1.5 - SCORES)
    own, own_scores = WEIGHTINGS["own"].weigh(step(scores_B=None))
    assert own.mean().item() == pytest.approx(1.25)
    torch.testing.assert_close(own, 1.5 - own_scores)
    assert WEIGHTINGS["constant"].weigh(step(scores_B=None))[0].tolist() == [1.25] * 8
    assert WEIGHTINGS["none"].weigh(step(scores_B=None))[0].tolist() == [1.0] * 8


def test_shuffled_permutes_the_scores_by_its_own_generator():
    weights, scores = WEIGHTINGS["shuffled"].weigh(step())
    assert sorted(scores.tolist()) == sorted(SCORES.tolist())
    assert scores.tolist() != SCORES.tolist()
    again, _ = WEIGHTINGS["shuffled"].weigh(step())
    torch.testing.assert_close(weights, again)
    other, _ = WEIGHTINGS["shuffled"].weigh(step(generator=torch.Generator().manual_seed(1)))
    assert weights.tolist() != other.tolist()


def test_inverse_frequency_has_the_same_mean_over_the_data_set():
    stats = ClassStats(np.array([500, 100, 0, 20]))
    labels = torch.tensor(np.repeat(np.arange(4), stats.counts))
    weights, _ = WEIGHTINGS["inverse_frequency"].weigh(step(labels_B=labels, stats=stats))
    assert weights.mean().item() == pytest.approx(1.25, rel=1e-5)
    by_class = weights[[0, 500, 600]]
    torch.testing.assert_close(by_class * torch.tensor([500.0, 100, 20]), torch.full((3,), 1.25 * 620 / 3))


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_contract(name):
    weights, scores = WEIGHTINGS[name].weigh(step())
    assert weights.shape == scores.shape == (8,)
    assert weights.dtype == torch.float32
    assert (weights >= 0).all()
    assert not weights.requires_grad


def test_strength_starts_and_moves_linearly():
    strength = Strength(sigma=1.5, rho=-1.0, start_epoch=2, sigma_end=1.0, rho_end=0.0)
    assert strength.at(0, 7) == strength.at(1, 7) == (1.0, 0.0)
    assert strength.at(2, 7) == (1.5, -1.0)
    assert strength.at(4, 7) == (1.25, -0.5)
    assert strength.at(6, 7) == (1.0, 0.0)
    assert Strength(2.5, -1).at(9, 10) == (2.5, -1)
    assert Strength(2.5, -1, start_epoch=9, rho_end=0.0).at(9, 10) == (2.5, -1)
    with pytest.raises(ValueError, match="sigma must be at least 1"):
        Strength(sigma=1.0, rho=0.0, rho_end=-1.0, sigma_end=0.5)
