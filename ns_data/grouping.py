"""Grouping: rules that turn ids and their labels into competition groups. NumPy only; a plan calls them.

A rule is ``rule(ids_W, labels_W, group_size, rng, *, stats) -> (table_GM, leftover)``: W ids of a window, in any order and
possibly repeated, become G groups of M = group_size members; what the rule cannot place is left over. The arrangement is
random in itself, so the order of the ids does not matter.

`class_mixed` deals every group M different classes. G groups are possible if and only if sum_k min(n_k, G) >= M G: a class
can give at most one member to a group, and dealing the classes one after the other round the table shows sufficiency.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ns_data.stats import ClassStats, label_dtype

Groups = tuple[np.ndarray, np.ndarray]  # table_GM, leftover
Rule = Callable[..., Groups]

# A class with more than this share of the groups is laid out as a run before the others are dealt around it.
_LARGE = 0.5
# Tables of up to this many groups are always mixed, which costs little and removes the bias of the repairs.
_SMALL_TABLE = 2048


def max_groups(counts: Any, group_size: int) -> int:
    """Largest number of groups of ``group_size`` different classes that ``counts`` (samples per class) allow.

    >>> max_groups([5, 3, 1], 2)
    4
    """
    ordered = np.sort(np.asarray(counts, np.int64))
    cumulative = np.concatenate([[0], np.cumsum(ordered)])
    low, high = 0, int(ordered.sum()) // group_size
    while low < high:  # sum_k min(n_k, G) - m G is concave in G: the feasible G are an interval
        groups = (low + high + 1) // 2
        smaller = int(np.searchsorted(ordered, groups))
        if cumulative[smaller] + (ordered.size - smaller) * groups >= group_size * groups:
            low = groups
        else:
            high = groups - 1
    return low


def random_groups(
    ids_W: np.ndarray, labels_W: np.ndarray, group_size: int, rng: np.random.Generator, *, stats: ClassStats | None = None
) -> Groups:
    """Any samples compete: the paper's grouping. Fewer than ``group_size`` ids are left over."""
    shuffled = rng.permutation(ids_W)
    grouped = shuffled.size // group_size * group_size
    return shuffled[:grouped].reshape(-1, group_size), shuffled[grouped:]


def class_mixed(
    ids_W: np.ndarray, labels_W: np.ndarray, group_size: int, rng: np.random.Generator, *, stats: ClassStats | None = None
) -> Groups:
    """Groups whose members all have different classes, as many as possible (``max_groups``).

    One random permutation is laid out as a table of M rows, a column a group; the few columns with a repeated class are
    repaired by random swaps. Classes that fill more than half of the groups are laid out first, as runs that meet every
    column once, and random valid swaps then mix the whole table.
    """
    counts = np.bincount(labels_W)
    groups = max_groups(counts, group_size)
    order = rng.permutation(_positions(ids_W.size))
    if groups == 0:
        return ids_W[order[:0]].reshape(0, group_size), ids_W[order]
    large = counts > _LARGE * groups
    cells, leftover, num_fixed = _lay_out(order, labels_W, large, groups, group_size, rng)
    cells, classes = cells.reshape(group_size, groups), labels_W[cells].reshape(group_size, groups)
    repaired = _repair(cells, classes, num_fixed, rng)
    if not repaired:  # tiny or extreme tables: start from an arrangement that always exists
        cells, classes = _deal_round(cells, classes)
    if large.any() or not repaired or groups <= _SMALL_TABLE:
        _mix(cells, classes, 8 * group_size, rng)
        cells = cells[:, rng.permutation(groups)]
        table = rng.permuted(cells.T, axis=1)  # the place in the picture must not tell the class
    else:
        table = cells.T
    return ids_W[table], ids_W[leftover]


def _positions(size: int) -> np.ndarray:
    return np.arange(size, dtype=np.int32 if size < 1 << 31 else np.int64)


def _lay_out(
    order: np.ndarray, labels: np.ndarray, large: np.ndarray, groups: int, group_size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, int]:
    """Choose the positions that take part: (cells in row-major order, leftover, number of leading cells that may not move)."""
    num_cells = groups * group_size
    if not large.any():
        return order[:num_cells], order[num_cells:], 0
    is_large = large[labels[order]]
    runs, rest = order[is_large], order[~is_large]
    rank = rng.permutation(large.size)  # the large classes follow one another in random order
    runs = runs[np.argsort(rank.astype(labels.dtype)[labels[runs]], kind="stable")]
    fits = _place_in_run(labels[runs]) < groups
    surplus, runs = runs[~fits], runs[fits]
    candidates = np.concatenate([runs, rest])
    dropped = np.zeros(candidates.size, bool)
    dropped[rng.choice(candidates.size, candidates.size - num_cells, replace=False)] = True
    num_fixed = runs.size - int(dropped[: runs.size].sum())
    return candidates[~dropped], np.concatenate([surplus, candidates[dropped]]), num_fixed


def _place_in_run(values: np.ndarray) -> np.ndarray:
    """For values in runs of equal ones: 0, 1, 2... inside every run."""
    starts = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))[: values.size]
    lengths = np.diff(np.concatenate([starts, [values.size]]))
    return np.arange(values.size) - np.repeat(starts, lengths)


def _repair(cells: np.ndarray, classes: np.ndarray, num_fixed: int, rng: np.random.Generator, rounds: int = 200) -> bool:
    """Swap repeated classes out of the columns of (M, G) tables, in place; the first ``num_fixed`` cells stay.

    Each round offers every repeat one random partner; a swap is done if it repeats no class and no other swap of the
    round touches its two columns. True when no repeat is left.
    """
    group_size, groups = classes.shape
    first_row = num_fixed // groups
    repeats = np.zeros(classes.shape, bool)
    for row in range(first_row + 1, group_size):
        for above in range(first_row, row):
            repeats[row] |= classes[above] == classes[row]
    pending = np.flatnonzero(repeats)
    flat_cells, flat_classes = cells.reshape(-1), classes.reshape(-1)
    claimed_by = np.empty(groups, np.int64)
    for _ in range(rounds):
        if pending.size == 0:
            return True
        swap = np.arange(pending.size)
        partner = rng.integers(num_fixed, classes.size, size=pending.size)
        here, there = pending % groups, partner % groups
        claimed_by[here] = swap
        claimed_by[there] = swap
        own, other = flat_classes[pending], flat_classes[partner]
        valid = (claimed_by[here] == swap) & (claimed_by[there] == swap) & (here != there) & (own != other)
        valid &= ~(classes[:, there] == own).any(0) & ~(classes[:, here] == other).any(0)
        a, b = pending[valid], partner[valid]
        flat_cells[a], flat_cells[b] = flat_cells[b], flat_cells[a]
        flat_classes[a], flat_classes[b] = flat_classes[b], flat_classes[a]
        pending = pending[~valid]
        pending = pending[(classes[:, pending % groups] == flat_classes[pending]).sum(0) > 1]
    return pending.size == 0


def _deal_round(cells: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sort the table by class and deal it row by row: no column repeats a class, since none has more than G members."""
    order = np.argsort(classes.reshape(-1), kind="stable")
    return cells.reshape(-1)[order].reshape(cells.shape), classes.reshape(-1)[order].reshape(classes.shape)


def _mix(cells: np.ndarray, classes: np.ndarray, sweeps: int, rng: np.random.Generator) -> None:
    """Random valid swaps between random pairs of columns, in place: a symmetric chain, so uniform is stationary."""
    group_size, groups = classes.shape
    half = groups // 2
    if half == 0:
        return
    left = np.arange(half)
    for sweep in range(sweeps):
        if sweep % 8 == 0:  # new halves now and then; in between a random rotation pairs the columns
            order = rng.permutation(groups)
            classes[:], cells[:] = classes[:, order], cells[:, order]
        right = half + (left + int(rng.integers(half))) % half
        row_left, row_right = rng.integers(group_size, size=(2, half))
        own, other = classes[row_left, left], classes[row_right, right]
        clash = (classes[:, right] == own).any(0) | (classes[:, :half] == other).any(0)
        swap = np.flatnonzero(~clash | (own == other))
        a, b = (row_left[swap], left[swap]), (row_right[swap], right[swap])
        cells[a], cells[b] = cells[b], cells[a]
        classes[a], classes[b] = classes[b], classes[a]


def same_class(
    ids_W: np.ndarray, labels_W: np.ndarray, group_size: int, rng: np.random.Generator, *, stats: ClassStats | None = None
) -> Groups:
    """Groups of one class each, where every score is 1/M. Of each class, n_k mod M random members are left over."""
    order = rng.permutation(_positions(ids_W.size))
    order = order[np.argsort(labels_W[order], kind="stable")]
    classes = labels_W[order]
    usable = np.bincount(classes) // group_size * group_size
    grouped = _place_in_run(classes) < usable[classes]
    table = order[grouped].reshape(-1, group_size)
    return ids_W[rng.permutation(table)], ids_W[order[~grouped]]


def head_tail(
    ids_W: np.ndarray, labels_W: np.ndarray, group_size: int, rng: np.random.Generator, *, stats: ClassStats
) -> Groups:
    """Frequent classes against rare ones: half of each group from the more frequent half of the classes (by ``stats``).

    With an odd M the frequent half has one cell more. What one half has too many of is left over.
    """
    order = rng.permutation(_positions(ids_W.size))
    frequent = stats.frequent_half[labels_W[order]]
    head, tail = order[frequent], order[~frequent]
    tail_cells = group_size // 2
    head_cells = group_size - tail_cells
    groups = min(head.size // head_cells, tail.size // tail_cells) if tail_cells else 0
    table = np.concatenate(
        [head[: groups * head_cells].reshape(groups, head_cells), tail[: groups * tail_cells].reshape(groups, tail_cells)],
        axis=1,
    )
    leftover = np.concatenate([head[groups * head_cells :], tail[groups * tail_cells :]])
    return ids_W[rng.permuted(table, axis=1)], ids_W[leftover]


GROUPINGS: dict[str, Rule] = {
    "random": random_groups,
    "class_mixed": class_mixed,
    "same_class": same_class,
    "head_tail": head_tail,
}


class Deal(NamedTuple):
    """The groups of one window and what became of the rest."""

    table_GM: np.ndarray
    ungrouped: np.ndarray  # fewer than M ids that take part without a group
    dropped: int  # ids left out
    relaxed: int  # ids that sit in a group against the rule


def deal(
    rule: Rule,
    surplus: str,
    ids_W: np.ndarray,
    labels_W: np.ndarray,
    group_size: int,
    rng: np.random.Generator,
    stats: ClassStats,
) -> Deal:
    """Apply ``rule`` and settle what it leaves over: dropped, or relaxed into groups that break the rule.

    ``class_mixed`` relaxes with the fewest possible repeats of a class inside groups; other rules deal their leftover
    into random groups. Fewer than M ids stay ungrouped.
    """
    if rule is class_mixed and surplus == "relax":
        return _fewest_repeats(ids_W, labels_W, group_size, rng)
    table, leftover = rule(ids_W, labels_W, group_size, rng, stats=stats)
    if table.shape[1:] != (group_size,) or table.size + leftover.size != ids_W.size:
        raise ValueError(
            f"the grouping rule returned a table of shape {table.shape} and {leftover.size} ids left over for "
            f"{ids_W.size} ids in groups of {group_size}: every id must be in one of the two"
        )
    if surplus == "drop":
        return Deal(table, leftover[:0], dropped=leftover.size, relaxed=0)
    if leftover.size < group_size:
        return Deal(table, leftover, dropped=0, relaxed=0)
    mixed, ungrouped = random_groups(leftover, labels_W[:0], group_size, rng)
    table = rng.permutation(np.concatenate([table, mixed]))
    return Deal(table, ungrouped, dropped=0, relaxed=mixed.size)


def _fewest_repeats(ids_W: np.ndarray, labels_W: np.ndarray, group_size: int, rng: np.random.Generator) -> Deal:
    """All of the window in G = W // M groups, with as few members as possible that meet their own class.

    A class of n_k > G members must repeat n_k - G times. Cutting it into ceil(n_k / G) parts, all but the last of
    exactly G members, and dealing the parts as if they were classes attains that. The W mod M ids that no group takes
    come from such classes, where each of them saves a repeat.
    """
    groups = ids_W.size // group_size
    if groups == 0 or np.bincount(labels_W).max() <= groups:
        return Deal(*class_mixed(ids_W, labels_W, group_size, rng), dropped=0, relaxed=0)
    order = rng.permutation(_positions(ids_W.size))
    order = order[np.argsort(labels_W[order], kind="stable")]
    excess = _place_in_run(labels_W[order]) >= groups  # members beyond the first G of their class
    spare = ids_W.size - groups * group_size
    given_up = np.concatenate([rng.permutation(np.flatnonzero(excess))[:spare], np.flatnonzero(~excess)])[:spare]
    ungrouped, order = ids_W[order[given_up]], np.delete(order, given_up)
    classes = labels_W[order]
    part = _place_in_run(classes) // groups
    repeats = int((part > 0).sum())
    starts = np.concatenate([[False], (classes[1:] != classes[:-1]) | (part[1:] != part[:-1])])
    parts = np.cumsum(starts)
    table, leftover = class_mixed(order, parts.astype(label_dtype(int(parts[-1]))), group_size, rng)
    assert leftover.size == 0, "no part is larger than the number of groups, so all of them fit"
    return Deal(ids_W[table], ungrouped, dropped=0, relaxed=repeats)
