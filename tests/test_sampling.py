import numpy as np
import pytest
from scipy.stats import chisquare

from ns_data import (
    ClassBalancedSampler,
    EffectiveNumberSampler,
    PowerSampler,
    ProgressivelyBalancedSampler,
    ShuffleSampler,
    SquareRootSampler,
)
from ns_data.choose import construct
from ns_data.sampling import SAMPLINGS, ClassLawSampler

COUNTS = np.array([4000, 1500, 0, 400, 60, 5])
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(6), COUNTS))
PRESENT = COUNTS > 0


def cbs():
    return PRESENT / PRESENT.sum()


def srs():
    return np.sqrt(COUNTS) / np.sqrt(COUNTS).sum()


def power(q):
    weights = np.array([n**q if n else 0 for n in COUNTS.tolist()])
    return weights / weights.sum()


def effective(beta):
    weights = np.array([n / sum(beta**j for j in range(n)) if n else 0 for n in COUNTS.tolist()])  # E_n as its geometric sum
    return weights / weights.sum()


def pbs(t):
    return (1 - t) * COUNTS / COUNTS.sum() + t * cbs()


@pytest.mark.parametrize(
    ("sampler", "epoch", "law"),
    [
        (ClassBalancedSampler(LABELS, num_samples=100_000), 3, cbs()),
        (SquareRootSampler(LABELS, num_samples=100_000), 0, srs()),
        (PowerSampler(LABELS, q=0.25, num_samples=100_000), 0, power(0.25)),
        (PowerSampler(LABELS, q=-0.5, num_samples=100_000), 0, power(-0.5)),
        (PowerSampler(LABELS, q=1, num_samples=100_000), 0, COUNTS / COUNTS.sum()),
        (EffectiveNumberSampler(LABELS, beta=0.999, num_samples=100_000), 0, effective(0.999)),
        (EffectiveNumberSampler(LABELS, beta=0, num_samples=100_000), 0, COUNTS / COUNTS.sum()),
        (ProgressivelyBalancedSampler(LABELS, num_epochs=5, num_samples=100_000), 0, pbs(0)),
        (ProgressivelyBalancedSampler(LABELS, num_epochs=5, num_samples=100_000), 2, pbs(0.5)),
        (ProgressivelyBalancedSampler(LABELS, num_epochs=5, num_samples=100_000), 4, pbs(1)),
        (ProgressivelyBalancedSampler(LABELS, num_epochs=5, num_samples=100_000), 9, pbs(1)),
        (ProgressivelyBalancedSampler(LABELS, num_epochs=1, num_samples=100_000), 0, pbs(0)),
        (ProgressivelyBalancedSampler(LABELS, num_epochs=4, num_samples=100_000, schedule="epoch_of_total"), 3, pbs(0.75)),
    ],
    ids=[
        "cbs",
        "srs",
        "power",
        "power-below-0",
        "power-1",
        "effective",
        "effective-0",
        "pbs-first",
        "pbs-middle",
        "pbs-last",
        "pbs-beyond",
        "pbs-one-epoch",
        "pbs-t/T",
    ],
)
def test_draws_follow_the_class_law_and_are_uniform_inside_classes(sampler, epoch, law):
    ids = sampler.epoch_ids(epoch)
    assert ids.shape == (100_000,)
    drawn = np.bincount(LABELS[ids], minlength=6)
    assert drawn[2] == 0
    assert chisquare(drawn[PRESENT], law[PRESENT] * ids.size).pvalue > 1e-3
    np.testing.assert_allclose(sampler.class_probabilities(epoch), law)
    for k in np.flatnonzero(PRESENT):
        members = np.bincount(ids[LABELS[ids] == k], minlength=LABELS.size)[k == LABELS]
        assert chisquare(members).pvalue > 1e-4


def test_pbs_by_step_moves_inside_an_epoch():
    sampler = ProgressivelyBalancedSampler(LABELS, num_epochs=1, num_samples=200_000, schedule="step")
    thirds = np.array_split(LABELS[sampler.epoch_ids(0)], 4)
    for quarter, t in zip(thirds, (0.125, 0.375, 0.625, 0.875), strict=True):
        assert np.mean(quarter == 5) == pytest.approx(pbs(t)[5], rel=0.05)


def test_shuffle_sampler_yields_everybody_once_in_an_order_of_its_own_each_epoch():
    sampler = ShuffleSampler(LABELS, seed=1)
    orders = [tuple(sampler.epoch_ids(epoch)) for epoch in (0, 1)] + [tuple(ShuffleSampler(LABELS, seed=2).epoch_ids(0))]
    assert len(set(orders)) == 3
    assert all(sorted(order) == list(range(LABELS.size)) for order in orders)


@pytest.mark.parametrize("name", SAMPLINGS)
def test_every_sampler_is_a_function_of_seed_and_epoch(name):
    def make(seed=0):
        return construct(SAMPLINGS, name, "sampling", {"labels": LABELS, "num_epochs": 3, "seed": seed})

    sampler = make()
    assert len(sampler) == LABELS.size
    first = sampler.epoch_ids(1)
    sampler.epoch_ids(2)
    np.testing.assert_array_equal(first, make().epoch_ids(1))
    sampler.set_epoch(1)
    assert list(sampler) == first.tolist()
    assert not np.array_equal(first, sampler.epoch_ids(2))
    assert not np.array_equal(first, make(seed=1).epoch_ids(1))


def test_draws_beyond_two_to_the_24():
    labels = np.zeros((1 << 24) + 100, np.int16)
    labels[-50:] = 1
    ids = ClassBalancedSampler(labels, num_samples=2000).epoch_ids(0)
    assert np.mean(ids >= (1 << 24) + 50) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ShuffleSampler([]), "0 samples"),
        (lambda: ClassBalancedSampler([0, 1], num_samples=0), "num_samples must be at least 1, got 0"),
        (lambda: ProgressivelyBalancedSampler([0, 1], num_epochs=0), "num_epochs must be at least 1, got 0"),
        (lambda: ProgressivelyBalancedSampler([0, 1], num_epochs=2, schedule="epochs"), "did you mean 'epoch'"),
        (lambda: SquareRootSampler([0.5, 1.5]), "integer class ids"),
        (lambda: PowerSampler([0, 1], q=float("inf")), "finite number, got inf"),
        (lambda: EffectiveNumberSampler([0, 1], beta=1.0), r"\[0, 1\), got 1.0"),
        (lambda: ClassLawSampler([0, 1], np.zeros_like), "not all zero"),
        (lambda: ClassLawSampler([0, 1], lambda counts: counts * np.nan), "finite numbers"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "sampler",
    [
        ClassBalancedSampler(LABELS, num_samples=40_000, cycle=True),
        PowerSampler(LABELS, q=0.5, num_samples=40_000, cycle=True),
        ProgressivelyBalancedSampler(LABELS, num_epochs=3, num_samples=40_000, cycle=True),
    ],
)
def test_cycles_take_every_member_before_the_first_comes_again(sampler):
    ids = sampler.epoch_ids(1)
    drawn = np.bincount(LABELS[ids], minlength=6)
    assert chisquare(drawn[PRESENT], sampler.class_probabilities(1)[PRESENT] * ids.size).pvalue > 1e-3
    for k in np.flatnonzero(PRESENT):
        of_class = ids[LABELS[ids] == k]
        for start in range(0, of_class.size, COUNTS[k]):
            cycle = of_class[start : start + COUNTS[k]]
            assert len(set(cycle.tolist())) == cycle.size
    rare = ids[LABELS[ids] == 5]
    assert len({tuple(rare[start : start + 5]) for start in range(0, rare.size - 5, 5)}) > 60  # of 120 orders


def test_orders_inside_cycles_are_uniform():
    labels = np.repeat([0, 1], [3, 4])
    ids = ClassBalancedSampler(labels, num_samples=60_000, cycle=True).epoch_ids(0)
    of_class = ids[labels[ids] == 0]
    orders = of_class[: of_class.size // 3 * 3].reshape(-1, 3)
    _, seen = np.unique(orders @ [9, 3, 1], return_counts=True)
    assert seen.size == 6
    assert chisquare(seen).pvalue > 1e-3


@pytest.mark.parametrize("q", [0, 0.5, 1])
def test_the_share_seen_is_as_expected(q):
    sampler = PowerSampler(LABELS, q=q)
    measured = np.mean([len(set(sampler.epoch_ids(epoch).tolist())) for epoch in range(20)]) / LABELS.size
    assert sampler.expected_share_seen() == pytest.approx(measured, rel=0.02)


def test_no_power_overflows():
    assert PowerSampler([0] * 1000 + [1], q=-400).class_probabilities().tolist() == [0, 1]
