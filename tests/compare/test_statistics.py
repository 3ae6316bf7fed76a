import math
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ns_data.compare.statistics import (
    bootstrap_interval,
    compare_paired,
    holm,
    mean_std,
    sign_flip_p,
    smallest_p,
    smallest_p_in_words,
)

DIFFERENCES = [1.3, 0.4, -0.2, 2.1, 0.9, 1.7]
tenths = st.integers(-30, 30).map(lambda n: n / 10)  # many ties that are exact on paper only


def test_mean_and_sample_deviation():
    summary = mean_std([90.0, 91.0, 95.0])
    assert summary == (92.0, pytest.approx(math.sqrt((4 + 1 + 9) / 2)), 3)
    assert str(summary) == "92.00 ± 2.65 (3)"
    assert summary.std == pytest.approx(stats.tstd([90.0, 91.0, 95.0]))
    assert str(mean_std([90.0])) == "90.00 (1)"
    assert math.isnan(mean_std([90.0]).std)


@given(st.lists(tenths, min_size=1, max_size=9))
def test_p_equals_the_enumeration_of_all_signs(differences):
    """In whole tenths, so that ties are ties."""
    whole = [round(10 * d) for d in differences]
    observed = abs(sum(whole))
    sums = [sum(s * d for s, d in zip(signs, whole, strict=True)) for signs in product([1, -1], repeat=len(whole))]
    assert sign_flip_p(differences) == sum(abs(total) >= observed for total in sums) / len(sums)


@pytest.mark.parametrize("n", [2, 5, 10, 12])
def test_p_equals_scipys_permutation_test(n):
    differences = np.random.default_rng(n).normal(0.5, 1, n)
    theirs = stats.permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip_p(differences) == pytest.approx(theirs.pvalue, abs=1e-12)


def test_p_by_hand():
    assert sign_flip_p([1, 2, 4]) == 2 / 8  # sums of +-7, 5, 3, 1; observed 7
    assert sign_flip_p([-1, 2, 4]) == 4 / 8  # observed 5
    assert sign_flip_p([1, 2, -4]) == 8 / 8  # observed -1
    assert sign_flip_p([3, 2, -1]) == 4 / 8  # sums of +-6, 4, 2, 0; observed 4
    assert sign_flip_p([5.0]) == 1.0
    assert sign_flip_p([0.0, 0.0]) == 1.0


def test_p_of_many_pairs_is_exact_and_close_to_the_t_test():
    differences = np.random.default_rng(0).normal(0.3, 1, 40)
    assert sign_flip_p(differences) == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, rel=0.1)
    assert sign_flip_p(np.arange(1.0, 41)) == 2 / 2**40
    with pytest.raises(ValueError, match="up to 40 pairs, got 41"):
        sign_flip_p(np.ones(41))


@given(st.lists(tenths.filter(bool), min_size=1, max_size=8))
def test_smallest_p_is_that_of_differences_of_one_sign(differences):
    assert sign_flip_p(differences) >= smallest_p(len(differences))
    assert sign_flip_p(np.abs(differences)) == smallest_p(len(differences))


def test_smallest_p_in_words():
    assert smallest_p_in_words(3) == (
        "With 3 paired seeds no p-value can be below 0.25: no difference can reach 0.05, which takes 6 seeds."
    )
    assert smallest_p_in_words(6) == "With 6 paired seeds no p-value can be below 0.031: 0.05 can be reached."
    assert smallest_p_in_words(6, comparisons=8) == (
        "With 6 paired seeds no p-value after correction for 8 comparisons can be below 0.25: "
        "no difference can reach 0.05, which takes 9 seeds."
    )
    assert smallest_p_in_words(1).startswith("With 1 paired seed no p-value can be below 1:")
    assert holm([smallest_p(6)] + [1.0] * 7)[0] == smallest_p(6, comparisons=8)
    with pytest.raises(ValueError, match="at least one pair"):
        smallest_p(0)


@pytest.mark.parametrize("level", [0.9, 0.95])
def test_interval_equals_scipys_percentile_bootstrap(level):
    """Of other random draws, so up to the error of 100,000 of them."""
    theirs = stats.bootstrap(
        (DIFFERENCES,), np.mean, confidence_level=level, n_resamples=100_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    ours = bootstrap_interval(DIFFERENCES, level=level, resamples=100_000)
    assert ours == pytest.approx(tuple(theirs), abs=0.02)
    assert ours[0] < np.mean(DIFFERENCES) < ours[1]


def test_interval_of_two_values_by_enumeration():
    """Means 0, 1/2, 1/2, 1 with probability 1/4 each: beyond the quarters lie the values themselves."""
    assert bootstrap_interval([0.0, 1.0], level=0.6) == (0.0, 1.0)
    assert bootstrap_interval([0.0, 1.0], level=0.4) == (0.5, 0.5)


def test_interval_is_a_function_of_its_seed():
    assert bootstrap_interval(DIFFERENCES) == bootstrap_interval(DIFFERENCES)
    assert bootstrap_interval(DIFFERENCES) != bootstrap_interval(DIFFERENCES, rng_seed=1)
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    bootstrap_interval(DIFFERENCES)
    assert np.array_equal(np.random.get_state()[1], before)
    assert all(math.isnan(end) for end in bootstrap_interval([1.0]))
    with pytest.raises(ValueError, match="between 0 and 1, got 95"):
        bootstrap_interval(DIFFERENCES, level=95)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]).tolist() == [0.03, 0.06, 0.06]
    assert holm([0.5, 0.25, 0.25]).tolist() == [0.75, 0.75, 0.75]
    assert holm([0.9, 0.8]).tolist() == [1.0, 1.0]
    with_gap = holm([0.02, math.nan, 0.01]).tolist()
    assert with_gap[0] == with_gap[2] == 0.02
    assert math.isnan(with_gap[1])
    assert holm([]).size == 0
    with pytest.raises(ValueError, match=r"between 0 and 1, got 1\.5"):
        holm([0.1, 1.5])


@given(st.lists(st.integers(0, 100).map(lambda n: n / 100), min_size=1, max_size=6))
def test_holm_is_the_closed_test_of_bonferroni(p_values):
    """The adjusted p of a hypothesis: the largest Bonferroni p of all sets of hypotheses that hold it."""
    everything = range(len(p_values))
    wanted = [
        max(
            min(1, len(chosen) * min(p_values[j] for j in chosen))
            for size in range(1, len(p_values) + 1)
            for chosen in combinations(everything, size)
            if i in chosen
        )
        for i in everything
    ]
    assert holm(p_values).tolist() == pytest.approx(wanted)


def test_pairs_are_made_by_seed_and_the_rest_is_named():
    ours, theirs = {2024: 91.0, 2025: 92.5, 2026: 90.0, 7: 50.0}, {2026: 89.0, 2025: 92.0, 2024: 88.0, 8: 10.0}
    paired = compare_paired(ours, theirs)
    assert paired.seeds == [2024, 2025, 2026]
    assert paired.unpaired == [7, 8]
    assert paired.differences.tolist() == [3.0, 0.5, 1.0]
    assert paired.mean == 1.5
    assert paired.p == 0.25
    assert (paired.low, paired.high) == bootstrap_interval([3.0, 0.5, 1.0])
    assert compare_paired(theirs, ours).mean == -1.5
    with pytest.raises(ValueError, match=r"no seed is in both methods \(\[1\] and \[2\]\)"):
        compare_paired({1: 2.0}, {2: 2.0})


def test_values_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match="a run's value is nan"):
        compare_paired({1: math.nan}, {1: 2.0})
    with pytest.raises(ValueError, match="at least one value"):
        mean_std([])
    with pytest.raises(ValueError, match="a run's value is inf"):
        sign_flip_p([1.0, math.inf])
