"""Grouping rules against enumeration and counting arguments, never against their own code."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from ns_data import GROUPINGS, ClassStats, max_groups, rivals
from ns_data.grouping import class_mixed, deal, head_tail, random_groups, same_class

counts_strategy = st.one_of(
    st.lists(st.integers(0, 30), min_size=1, max_size=12),
    st.lists(st.integers(1, 4), min_size=2, max_size=40),
    st.tuples(st.integers(50, 400), st.lists(st.integers(1, 9), min_size=1, max_size=8)).map(lambda t: [t[0], *t[1]]),
).filter(lambda counts: sum(counts) > 0)


def labels_of(counts):
    return np.repeat(np.arange(len(counts)), counts).astype(np.int16)


def repeats(labels_GM):
    """Members that meet their own class in their group, beyond the first of it."""
    return sum(len(row) - len(set(row)) for row in labels_GM.tolist())


def feasible(counts, group_size, groups):
    """Whether greedy dealing of ``groups`` groups from the largest remaining classes succeeds (it is optimal)."""
    left = sorted(counts, reverse=True)
    for _ in range(groups):
        left.sort(reverse=True)
        if len(left) < group_size or left[group_size - 1] == 0:
            return False
        for k in range(group_size):
            left[k] -= 1
    return True


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(1, 5))
def test_max_groups_equals_greedy_dealing(counts, group_size):
    groups = max_groups(counts, group_size)
    assert feasible(counts, group_size, groups)
    assert not feasible(counts, group_size, groups + 1)


@settings(max_examples=200, deadline=None)
@given(counts_strategy, st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_class_mixed_reaches_the_bound_with_different_classes(counts, group_size, seed):
    labels = labels_of(counts)
    ids = np.random.default_rng(seed).permutation(labels.size) + 1000
    table, leftover = class_mixed(ids, labels[ids - 1000], group_size, np.random.default_rng(seed))
    assert table.shape == (max_groups(counts, group_size), group_size)
    assert repeats(labels[table - 1000]) == 0
    assert sorted([*table.reshape(-1).tolist(), *leftover.tolist()]) == sorted(ids.tolist())


@settings(max_examples=200, deadline=None)
@given(counts_strategy, st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_relaxed_class_mixed_groups_everybody_with_the_fewest_repeats(counts, group_size, seed):
    labels = labels_of(counts)
    groups, spare = divmod(labels.size, group_size)
    dealt = deal(
        class_mixed,
        "relax",
        np.arange(labels.size),
        labels,
        group_size,
        np.random.default_rng(seed),
        ClassStats(np.array(counts)),
    )
    assert dealt.table_GM.shape == (groups, group_size)
    assert dealt.dropped == 0
    assert sorted([*dealt.table_GM.reshape(-1).tolist(), *dealt.left.tolist()]) == list(range(labels.size))
    # A class meets itself n_k - G times at least; each ungrouped sample can save one repeat.
    least = max(0, sum(max(0, n - groups) for n in counts) - spare) if groups else 0
    assert repeats(labels[dealt.table_GM]) == dealt.relaxed == least


def arrangements(labels, group_size):
    """All ways to divide positions in groups of different classes, by enumeration."""
    found = set()

    def extend(left, groups):
        if not left:
            found.add(frozenset(groups))
            return
        for others in combinations(left[1:], group_size - 1):
            group = (left[0], *others)
            if len({int(labels[i]) for i in group}) == group_size:
                extend([i for i in left if i not in group], [*groups, frozenset(group)])

    extend(list(range(len(labels))), [])
    return found


@pytest.mark.parametrize(
    ("counts", "group_size"), [([3, 2, 2, 1], 2), ([4, 2, 1, 1], 2), ([3, 2, 1, 1, 1, 1], 3), ([2] * 4, 4)]
)
def test_class_mixed_is_uniform_over_all_arrangements(counts, group_size):
    labels = labels_of(counts)
    possible = arrangements(labels, group_size)
    rng = np.random.default_rng(0)
    draws = 100 * len(possible)
    seen = Counter()
    for _ in range(draws):
        table, _ = class_mixed(np.arange(labels.size), labels, group_size, rng)
        seen[frozenset(frozenset(row) for row in table.tolist())] += 1
    assert seen.keys() <= possible
    assert chisquare([seen[arrangement] for arrangement in possible]).pvalue > 1e-3


def test_the_place_in_the_group_does_not_tell_the_class():
    labels = labels_of([40, 20, 20, 10, 10])
    rng = np.random.default_rng(0)
    places = np.zeros((4, 5))
    for _ in range(400):
        table, _ = class_mixed(np.arange(labels.size), labels, 4, rng)
        for place in range(4):
            places[place] += np.bincount(labels[table[:, place]], minlength=5)
    for of_class in places.T:
        assert chisquare(of_class).pvalue > 1e-4


@given(st.integers(1, 60), st.integers(1, 8), st.integers(0, 99))
def test_random_groups_hold_everybody_but_the_remainder(size, group_size, seed):
    table, leftover = random_groups(np.arange(size), np.zeros(size, int), group_size, np.random.default_rng(seed))
    assert leftover.size == size % group_size
    assert sorted([*table.reshape(-1), *leftover]) == list(range(size))


@given(counts_strategy, st.integers(1, 6), st.integers(0, 99))
def test_same_class_leaves_the_remainder_of_each_class(counts, group_size, seed):
    labels = labels_of(counts)
    table, leftover = same_class(np.arange(labels.size), labels, group_size, np.random.default_rng(seed))
    assert all(len(set(row)) == 1 for row in labels[table].tolist())
    assert Counter(labels[leftover].tolist()) == Counter({k: n % group_size for k, n in enumerate(counts) if n % group_size})
    assert sorted([*table.reshape(-1), *leftover]) == list(range(labels.size))


@given(counts_strategy, st.integers(2, 5), st.integers(0, 99))
def test_head_tail_takes_half_from_each_half(counts, group_size, seed):
    labels = labels_of(counts)
    stats = ClassStats(np.array(counts))
    table, leftover = head_tail(np.arange(labels.size), labels, group_size, np.random.default_rng(seed), stats=stats)
    by_size = sorted(range(len(counts)), key=lambda k: -counts[k])
    head = set(by_size[: (len(counts) + 1) // 2])
    in_head = [sum(label in head for label in row) for row in labels[table].tolist()]
    assert all(n == group_size - group_size // 2 for n in in_head)
    num_head = sum(counts[k] for k in head)
    assert len(table) == min(num_head // (group_size - group_size // 2), (labels.size - num_head) // (group_size // 2))
    assert sorted([*table.reshape(-1), *leftover]) == list(range(labels.size))


@pytest.mark.parametrize("name", GROUPINGS)
@pytest.mark.parametrize("surplus", ["relax", "drop"])
def test_every_rule_accounts_for_every_id(name, surplus):
    labels = labels_of([50, 20, 9, 4])
    stats = ClassStats.from_labels(labels)
    dealt = deal(GROUPINGS[name], surplus, np.arange(83), labels, 4, np.random.default_rng(1), stats)
    assert dealt.table_GM.size + dealt.left.size + dealt.dropped == 83
    assert dealt.left.size < 4
    if surplus == "relax":
        assert dealt.dropped == 0
        assert len(dealt.table_GM) == 83 // 4


def test_a_rule_that_loses_ids_is_refused():
    def forgetful(ids, labels, group_size, rng, *, stats):
        return ids[:4].reshape(1, 4), ids[5:]

    with pytest.raises(ValueError, match="every id must be in one of the two"):
        deal(forgetful, "relax", np.arange(8), np.zeros(8, int), 4, np.random.default_rng(0), ClassStats(np.array([8])))


def test_an_early_window_carries_what_fits_later_and_relaxes_what_never_will():
    def dealt(counts, last):
        labels, stats = labels_of(counts), ClassStats(np.array(counts))
        return deal(class_mixed, "relax", np.arange(labels.size), labels, 2, np.random.default_rng(0), stats, last)

    early = dealt([12, 10], last=False)  # two of the first class are over
    assert (early.relaxed, early.left.size, len(early.table_GM)) == (0, 2, 10)
    assert dealt([12, 10], last=True).relaxed == 1
    steep = dealt([40, 4], last=False)  # a surplus that would grow from window to window
    assert (steep.relaxed, steep.left.size) == (18, 0)


STRENGTH = np.random.default_rng(5).permutation(60).astype(float)


def test_strict_rivals_are_neighbours_in_strength():
    ids = np.random.default_rng(1).permutation(60)
    table, leftover = rivals(STRENGTH)(ids, np.zeros(60, int), 4, np.random.default_rng(0), stats=ClassStats(np.array([60])))
    assert leftover.size == 0
    assert sorted(sorted(STRENGTH[row]) for row in table) == [list(range(k, k + 4)) for k in range(0, 60, 4)]
    assert not np.array_equal(STRENGTH[table[:, 0]] % 4, np.zeros(15))  # the place does not tell the rank


def spread_of_rivals(temperature, draws=40):
    rng, stats = np.random.default_rng(0), ClassStats(np.array([60]))
    tables = [rivals(STRENGTH, temperature)(np.arange(60), np.zeros(60, int), 4, rng, stats=stats)[0] for _ in range(draws)]
    return np.mean([np.ptp(STRENGTH[table], axis=1).mean() for table in tables])


def test_temperature_goes_from_strict_to_random():
    spreads = [spread_of_rivals(t) for t in (0.0, 0.05, 0.3, np.inf)]
    assert spreads[0] == 3
    assert spreads[0] < spreads[1] < spreads[2] < spreads[3]
    # The mean range of 4 of 60 ranks drawn without replacement is (60 + 1) * 3 / 5.
    assert spreads[-1] == pytest.approx(36.6, rel=0.05)


def test_rivals_at_infinite_temperature_meet_everybody_equally():
    rng, stats = np.random.default_rng(3), ClassStats(np.array([6]))
    rule = rivals(np.arange(6.0), np.inf)
    seen = Counter(frozenset(map(frozenset, rule(np.arange(6), np.zeros(6, int), 2, rng, stats=stats)[0].tolist()))
                   for _ in range(3000))  # fmt: skip
    assert len(seen) == 15
    assert chisquare(list(seen.values())).pvalue > 1e-3


def test_unknown_strengths_and_ties_are_dealt_at_random():
    rng, stats = np.random.default_rng(0), ClassStats(np.array([8]))
    strength = np.array([1.0, 1.0, 1.0, 1.0, 5.0, 5.0, np.nan, np.nan])
    pairs = Counter()
    for _ in range(600):
        table, _ = rivals(strength)(np.arange(8), np.zeros(8, int), 2, rng, stats=stats)
        pairs.update(frozenset(row) for row in table.tolist())
    assert all(pairs[frozenset(pair)] > 0 for pair in [(0, 1), (0, 2), (0, 3), (4, 5), (6, 0), (6, 4), (6, 7)])
    assert pairs[frozenset((0, 4))] < pairs[frozenset((4, 5))]


def test_rivals_without_an_array_are_of_classes_of_similar_size():
    labels = labels_of([40, 20, 10, 10])
    table, _ = rivals()(np.arange(80), labels, 4, np.random.default_rng(0), stats=ClassStats.from_labels(labels))
    assert Counter(tuple(sorted(set(row))) for row in (labels[table] // 2).tolist()) == {(0,): 15, (1,): 5}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rivals([1.0], temperature=-1), "temperature must be 0"),
        (lambda: rivals([1.0], temperature=float("nan")), "temperature must be 0"),
        (lambda: rivals([["a"]]), "one number a sample"),
        (
            lambda: rivals([1.0, 2.0])(np.arange(3), np.zeros(3, int), 2, np.random.default_rng(0), stats=ClassStats([3])),
            "got 2 for 3 samples",
        ),
    ],
)
def test_strengths_that_are_none_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
