"""What single losses do beyond the contract: state, random choices, options, refusals."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, optimize, stats
from sklearn.mixture import GaussianMixture

from ns_data import LOSSES, ClassStats
from ns_data.losses import create_loss
from ns_data.losses.ce_ogc import MAX_P, MIN_P, find_threshold, fit_two_normals
from ns_data.losses.low import project_on_simplex

LABELS = torch.tensor([0, 2, 1, 2])


def logits_with(p_label, num_classes=10, dtype=torch.float64):
    """One row for each p: label 0 has it, the others share the rest."""
    p = torch.as_tensor(p_label, dtype=dtype)
    rest = ((1 - p) / (num_classes - 1)).log()
    return torch.cat([p.log()[:, None], rest[:, None].expand(-1, num_classes - 1)], 1)


def zeros(count):
    return torch.zeros(count, dtype=torch.long)


# Norms of the logit gradient at uniform p for 10, 65 and 100 classes, of published code, to a unit of the last digit.
STARTING_NORMS = {
    "cross_entropy": ({}, (0.95, 0.99, 0.995)),
    "gce": ({}, (0.19, 0.053, 0.040)),
    "sce": ({"alpha": 0.1, "beta": 1.0}, (0.97, 0.24, 0.19)),
    "apl": ({}, (0.92, 0.14, 0.094)),
    "anl": ({}, (0.24, 0.025, 0.015)),
    "aul": ({}, (2.8, 0.46, 0.30)),
    "ce_eps_mae": ({}, (0.96, 0.16, 0.11)),
    "poly": ({}, (1.04, 1.01, 1.005)),
}


@pytest.mark.parametrize("name", STARTING_NORMS)
@pytest.mark.parametrize("column", [0, 1, 2])
def test_starting_gradient(name, column):
    options, norms = STARTING_NORMS[name]
    logits = torch.zeros(1, (10, 65, 100)[column], dtype=torch.float64, requires_grad=True)
    label = torch.tensor([1])  # not the argmax of equals
    LOSSES[name](**options)(logits, label).sum().backward()
    digits = f"{norms[column]:g}".partition(".")[2]
    assert logits.grad.norm().item() == pytest.approx(norms[column], abs=10 ** -len(digits))


def test_focal_factor_for_all_or_by_class():
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    plain = LOSSES["focal"](gamma=2.0)(logits, LABELS)
    p = logits.softmax(1)[range(4), LABELS]
    torch.testing.assert_close(plain, (1 - p) ** 2 * -p.log())
    torch.testing.assert_close(LOSSES["focal"](gamma=2.0, alpha=0.25)(logits, LABELS), 0.25 * plain)
    by_class = LOSSES["focal"](gamma=2.0, alpha=[1.0, 2.0, 3.0])(logits, LABELS)
    torch.testing.assert_close(by_class, torch.tensor([1.0, 3, 2, 3]) * plain)


def test_terms_of_apl_by_hand():
    """NGCE of p = (1/4, 3/4): (1 - 1/4) / (2 - 1) at q = 1, (1 - 1/2) / (2 - 1/2 - sqrt(3)/2) at q = 1/2."""
    logits = logits_with([0.25], 2)
    for q, wanted in ((1.0, 0.75), (0.5, 0.5 / (1.5 - math.sqrt(3) / 2))):
        assert LOSSES["apl"]("ngce", beta=0.0, q=q)(logits, zeros(1)).item() == pytest.approx(wanted)
    assert LOSSES["apl"]("nce", "mae", alpha=0.0, mae_scale=2.0)(logits, zeros(1)).item() == pytest.approx(1.5)


@pytest.mark.parametrize("active", ["nce", "nfl"])
def test_negative_term_of_anl_is_zero_where_all_other_classes_are_below_its_bound(active):
    loss = LOSSES["anl"](active, alpha=0.0, beta=1.0, min_p=0.1)
    assert loss(logits_with([0.95, 0.5]), zeros(2)).tolist() == pytest.approx([0.0, 0.0], abs=1e-12)
    assert loss(logits_with([0.5], 3), zeros(1)).item() > 0.1


def test_sce_with_the_papers_log_zero():
    logits = logits_with([0.3])
    loss = LOSSES["sce"](alpha=0.0, beta=1.0, log_zero=-4.0)
    assert loss(logits, zeros(1)).item() == pytest.approx(4 * 0.7)


@pytest.mark.parametrize("tau", [0.0, 1.0, 1.5])
def test_logit_adjustment_weighs_the_exponentials_by_class_size(tau):
    counts = np.array([100, 10, 1])
    z = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weighted = torch.from_numpy(counts**tau) * z.exp()
    wanted = -(weighted[range(4), LABELS] / weighted.sum(1)).log()
    torch.testing.assert_close(LOSSES["logit_adjustment"](tau, stats=ClassStats(counts))(z, LABELS), wanted)


def test_logit_adjustment_counts_an_empty_class_as_one_sample():
    z = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    empty, one = (LOSSES["logit_adjustment"](stats=ClassStats(np.array([5, n, 4]))) for n in (0, 1))
    assert empty(z, LABELS).tolist() == one(z, LABELS).tolist()


def test_negatives_are_uniform_over_the_other_classes_and_new_in_every_step():
    loss = LOSSES["nlnl"](num_negatives=50, seed=1)
    labels = torch.arange(5).repeat_interleave(40)
    first = loss.draw(labels, 5)
    counts = torch.stack([torch.bincount(first[labels == c].flatten(), minlength=5) for c in range(5)])
    assert counts.diagonal().tolist() == [0] * 5
    others = counts[~torch.eye(5, dtype=torch.bool)].view(5, 4).numpy()
    assert stats.chisquare(others, axis=1).pvalue.min() > 1e-3
    assert torch.equal(loss.draw(labels, 5), first)  # the same step
    loss(torch.zeros(200, 5), labels)
    assert not torch.equal(loss.draw(labels, 5), first)
    assert not torch.equal(LOSSES["nlnl"](num_negatives=50, seed=2).draw(labels, 5), first)


def test_negatives_are_summed_and_weighted_by_class():
    """Uniform p over three classes: every negative costs -log(2/3)."""
    logits = torch.zeros(4, 3)
    unit = -math.log(2 / 3)
    counts = ClassStats(np.array([8, 4, 1]))
    assert LOSSES["nlnl"](num_negatives=5)(logits, LABELS).tolist() == pytest.approx([5 * unit] * 4)
    weighted = create_loss("nlnl", {"num_negatives": 5}, stats=counts, seed=0, num_samples=13)
    assert weighted(logits, LABELS).tolist() == pytest.approx([5 * unit * w for w in (1, 8, 2, 8)])
    unweighted = create_loss("nlnl", {"num_negatives": 5, "weight": None}, stats=counts)
    assert unweighted(logits, LABELS).tolist() == pytest.approx([5 * unit] * 4)


@pytest.mark.parametrize("seed", range(5))
def test_low_weights_solve_their_quadratic_program(seed):
    rng = np.random.default_rng(seed)
    g_squared, lam, n = rng.uniform(0, 2, 12), 0.3, 12
    solution = optimize.minimize(
        lambda w: lam * w @ w - (g_squared + lam) @ w,
        np.ones(n),
        jac=lambda w: 2 * lam * w - (g_squared + lam),
        bounds=[(0, None)] * n,
        constraints={"type": "eq", "fun": lambda w: w.sum() - n, "jac": lambda w: np.ones(n)},
        options={"ftol": 1e-14, "maxiter": 500},
    )
    weights = project_on_simplex(torch.from_numpy(g_squared / (2 * lam)), n)
    np.testing.assert_allclose(weights.numpy(), solution.x, atol=1e-5)
    assert weights.sum().item() == pytest.approx(n)
    assert (weights == 0).any()


def test_low_with_the_authors_scale_is_nearly_cross_entropy():
    """At the batch sizes in use: 128 samples, weights within [0.9997, 1.0004]; without the division many are 0."""
    generator = torch.Generator().manual_seed(0)
    log_p = torch.randn(128, 10, generator=generator, dtype=torch.float64).mul(2).log_softmax(1)
    labels = torch.randint(0, 10, (128,), generator=generator)
    weights = LOSSES["low"]().weights(log_p, labels)
    assert 0.9995 < weights.min() < 1 < weights.max() < 1.0005
    per_sample = LOSSES["low"](grad_scale="per_sample").weights(log_p, labels)
    assert (per_sample == 0).double().mean() > 0.2
    assert per_sample.max() > 3
    assert per_sample.sum().item() == pytest.approx(128)


def test_l1_term_of_anl_is_over_what_is_trained():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 1))
    loss = LOSSES["anl"](delta=0.5)
    sizes = [sum(p.abs().sum().item() for p in layer.parameters()) for layer in model]
    assert loss.regularizer(model).item() == pytest.approx(0.5 * sum(sizes))
    model[0].requires_grad_(False)
    assert loss.regularizer(model).item() == pytest.approx(0.5 * sum(sizes[1:]))
    assert loss.regularizer(model.requires_grad_(False)) == 0.0
    assert LOSSES["focal"]().regularizer(model) == 0.0


def test_truncated_gce_leaves_out_what_was_below_k_when_last_drawn():
    loss = LOSSES["gce"](k=0.5, num_samples=6, start_prune=2, refit_every=2)
    ids = torch.tensor([4, 1, 0])

    def epoch(number, p):
        loss.start_epoch(number, 10)
        return (loss(logits_with(p), zeros(3), ids=ids) != 0).tolist()

    assert epoch(0, [0.4, 0.6, 0.9]) == [True] * 3
    assert epoch(1, [0.6, 0.3, 0.9]) == [True] * 3
    assert epoch(2, [0.1, 0.6, 0.6]) == [True, False, True]  # by epoch 1
    assert epoch(3, [0.6, 0.6, 0.2]) == [True, False, True]
    assert epoch(4, [0.9, 0.9, 0.9]) == [True, True, False]  # by epoch 3
    assert loss.kept[[2, 3, 5]].all()  # never drawn
    value = loss.eval()(logits_with([0.9, 0.9, 0.9]), zeros(3))
    assert value.tolist() == pytest.approx([(0.5**0.7 - 0.9**0.7) / 0.7] * 3)


def test_truncated_gce_says_what_it_needs():
    with pytest.raises(ValueError, match="pass num_samples"):
        LOSSES["gce"](k=0.5)
    loss = LOSSES["gce"](k=0.5, num_samples=4)
    logits = torch.zeros(4, 3)
    with pytest.raises(ValueError, match="needs sample ids: pass ids"):
        loss(logits, LABELS)
    with pytest.raises(ValueError, match="call start_epoch"):
        loss(logits, LABELS, ids=torch.arange(4))
    with pytest.raises(ValueError, match="start_prune=40 is never reached in 30 epochs"):
        loss.start_epoch(0, 30)
    assert LOSSES["gce"](num_samples=4)(logits, LABELS).shape == (4,)


def bimodal(seed, n=4096):
    rng = np.random.default_rng(seed)
    return np.clip(np.where(rng.random(n) < 0.7, rng.exponential(0.3, n), rng.normal(4, 1.3, n)), 1e-7, 16)


@pytest.mark.parametrize("seed", range(4))
def test_mixture_equals_scikit_learns(seed):
    values = bimodal(seed)
    theirs = GaussianMixture(2, max_iter=10, reg_covar=1e-3, random_state=0).fit(values[:, None])
    order = theirs.means_[:, 0].argsort()
    means, variances = fit_two_normals(torch.from_numpy(values))
    np.testing.assert_allclose(means, theirs.means_[order, 0], rtol=1e-3)
    np.testing.assert_allclose(variances, theirs.covariances_[order, 0, 0], rtol=1e-2)


def test_mixture_does_not_depend_on_the_order_and_bears_equal_values():
    values = torch.from_numpy(np.random.default_rng(0).exponential(1, 500))  # one mode
    for seed in range(5):
        shuffled = values[torch.randperm(500, generator=torch.Generator().manual_seed(seed))]
        torch.testing.assert_close(fit_two_normals(shuffled), fit_two_normals(values), rtol=0, atol=0)
    means, variances = fit_two_normals(torch.full((50,), 2.0))
    assert means.tolist() == pytest.approx([2, 2])
    assert variances.tolist() == pytest.approx([1e-3] * 2)


def test_threshold_equals_exact_integrals_and_a_root():
    """To the 1/1024 of ten bisections, and the 1000 points of the integrals."""
    means, variances, target = (0.5, 4.0), (0.2, 2.0), 3.0

    def mean_pull(mean, variance, threshold):
        density = lambda h: stats.norm.pdf(h, mean, variance**0.5)  # noqa: E731
        low, high = -math.log(MAX_P), -math.log(MIN_P)
        kink = -math.log(threshold)
        pull = lambda h: min(math.exp(h), 1 / threshold) * density(h)  # noqa: E731
        return integrate.quad(pull, low, high, points=[mean, kink])[0] / integrate.quad(density, low, high, points=[mean])[0]

    def excess(threshold):
        return mean_pull(means[1], variances[1], threshold) / mean_pull(means[0], variances[0], threshold) - target

    root = optimize.brentq(excess, 1e-3, 0.999)
    found = find_threshold(torch.tensor(means).double(), torch.tensor(variances).double(), target, lambda p: 1 / p)
    assert 0 <= found - root < 1 / 1024 + 1e-3


def feed(loss, h, batch, lr=None):
    for part in torch.as_tensor(h).split(batch):
        if lr is not None:
            loss.set_lr(lr)
        loss(logits_with((-part).exp(), 2), zeros(len(part)))
    return loss


def test_clipping_starts_when_the_queue_is_full_and_follows_the_learning_rate():
    h = bimodal(0)
    assert feed(LOSSES["ce_ogc"](), h[:4095], 128, lr=0.1).threshold == MIN_P
    thresholds = [feed(LOSSES["ce_ogc"](), h, 128, lr).threshold for lr in (0.1, 0.01, 0.001, 0.0001)]
    assert thresholds == sorted(thresholds)
    assert MIN_P < thresholds[0] < thresholds[-1] < 1
    assert feed(LOSSES["ce_ogc"](every=33), h, 128, lr=0.1).threshold == MIN_P  # 32 steps


def test_below_the_threshold_the_loss_is_the_tangent():
    loss = LOSSES["ce_ogc"]().eval()
    loss.threshold = 0.4
    values = loss(logits_with([0.1, 0.4, 0.4001, 0.9]), zeros(4))
    wanted = [-math.log(0.4) - (0.1 - 0.4) / 0.4, -math.log(0.4), -math.log(0.4001), -math.log(0.9)]
    assert values.tolist() == pytest.approx(wanted)


def test_the_queue_holds_the_last_values():
    loss = feed(LOSSES["ce_ogc"](queue_size=10, every=1000), torch.arange(1.0, 14.0), 4)
    assert sorted(loss.queue.round().tolist()) == list(range(4, 14))
    whole = feed(LOSSES["ce_ogc"](queue_size=10, every=1000), torch.arange(1.0, 14.0), 13)
    assert sorted(whole.queue.round().tolist()) == list(range(4, 14))


def test_clipping_without_a_learning_rate_is_refused():
    with pytest.raises(ValueError, match=r"call set_lr\(lr\) before each training step"):
        feed(LOSSES["ce_ogc"](queue_size=64, every=2), bimodal(0, 64), 32)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("focal", {"gamma": -1}, "gamma must be at least 0, got -1"),
        ("focal", {"gama": 1}, "did you mean 'gamma'"),
        ("gce", {"q": 0}, "q must be above 0 and at most 1, got 0"),
        ("gce", {"q": float("nan")}, "q must be above 0 and at most 1, got nan"),
        ("label_smoothing", {"smoothing": 1.1}, "at most 1, got 1.1"),
        ("nlnl", {"num_negatives": 0}, "num_negatives must be at least 1"),
        ("nlnl", {"weight": "inverse"}, "weight must be 'inverse_freq' or None, got 'inverse'"),
        ("apl", {"active": "nec"}, "did you mean 'nce'"),
        ("apl", {"passive": "nce"}, "unknown passive term"),
        ("low", {"lam": 0}, "lam must be above 0"),
        ("low", {"grad_scale": "sample"}, "did you mean 'per_sample'"),
        ("poly", {"epsilon1": -1.5}, "epsilon1 must be at least -1"),
        ("anl", {"active": "ngce"}, "unknown active term"),
        ("aul", {"a": 1.0}, "a must be above 1"),
        ("ce_eps_mae", {"m": 0}, "m must be above 0"),
        ("ce_ogc", {"base": "mae"}, "unknown base of ce_ogc"),
        ("foc", {}, "unknown loss 'foc': did you mean 'focal'"),
    ],
)
def test_options_out_of_range_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        create_loss(name, options, stats=ClassStats(np.array([1, 2])), num_samples=3, seed=0)
