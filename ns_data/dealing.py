"""Dealing: positions in groups of pairwise different classes, exactly, at about the cost of one permutation. NumPy only.

G groups of M different classes are possible if and only if sum_k min(n_k, G) >= M G: a class can give at most one member to
a group, and dealing the classes one after the other round the table shows sufficiency. A table has M rows and a column for
each group, so that rows are compared as whole arrays.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ns_data.stats import count_labels, gather, label_dtype, position_dtype

# A class with more than this share of the groups is laid out as a run before the others are dealt around it.
_LARGE = 0.5
# Tables of up to this many groups are always mixed, which costs little and removes the bias of the repairs.
_SMALL_TABLE = 2048
# Pairs of columns that are mixed at a time: what they need stays in the cache.
_BLOCK = 1 << 14


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


def deal_distinct(labels_W: np.ndarray, group_size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Positions 0..W-1 as ``max_groups`` groups of different classes: (table_GM, leftover), random in every respect.

    One random permutation is cut in M rows, a column a group; the few columns with a repeated class are repaired by random
    swaps. Classes that fill more than half of the groups are laid out first, as runs that meet every column once, and
    random valid swaps then mix the whole table.
    """
    counts = count_labels(labels_W)
    groups = max_groups(counts, group_size)
    order = shuffled_positions(labels_W.size, rng)
    if groups == 0:
        return order[:0].reshape(0, group_size), order
    large = np.flatnonzero(counts > _LARGE * groups)
    order, leftover, num_fixed = _lay_out(order, labels_W, large, groups, group_size, rng)
    cells, classes = order.reshape(group_size, groups), gather(labels_W, order).reshape(group_size, groups)
    repaired = _repair(cells, classes, num_fixed, rng)
    if not repaired:  # tiny or extreme tables: start from an arrangement that always exists
        cells, classes = _deal_round(cells, classes)
    if not (large.size or not repaired or groups <= _SMALL_TABLE):
        return cells.T, leftover
    _mix(cells, classes, 8 * group_size, rng)
    _move_columns(cells, rng.permutation(groups))
    rng.permuted(cells, axis=0, out=cells)  # the place in a group must not tell the class
    return cells.T, leftover


def shuffled_positions(size: int, rng: np.random.Generator) -> np.ndarray:
    """0..size-1 in random order, in 32 bits if they fit."""
    order = np.arange(size, dtype=position_dtype(size))
    rng.shuffle(order)
    return order


def _lay_out(
    order: np.ndarray, labels: np.ndarray, large: np.ndarray, groups: int, group_size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, int]:
    """Choose the positions that take part: (cells in row-major order, leftover, number of leading cells that may not move)."""
    num_cells = groups * group_size
    if not large.size:
        return order[:num_cells], order[num_cells:], 0
    classes = gather(labels, order)
    runs = [order[classes == k] for k in rng.permutation(large)]
    surplus = [run[groups:].copy() for run in runs]
    runs = [run[:groups] for run in runs]
    num_fixed = sum(run.size for run in runs)
    runs.append(order[~np.isin(classes, large)])
    laid_out = order[: num_fixed + runs[-1].size]
    np.concatenate(runs, out=laid_out)
    del classes, runs
    dropped = rng.choice(laid_out.size, laid_out.size - num_cells, replace=False)  # fewer than M
    leftover = np.concatenate([*surplus, laid_out[dropped]])
    num_fixed -= int((dropped < num_fixed).sum())
    return np.delete(laid_out, dropped), leftover, num_fixed


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
    del repeats
    flat_cells, flat_classes = cells.reshape(-1), classes.reshape(-1)
    claimed_by = np.empty(groups, cells.dtype)
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
    for sweep in range(sweeps if half else 0):
        if sweep % 8 == 0:  # new halves now and then; in between a random rotation pairs the columns
            order = rng.permutation(groups)
            _move_columns(cells, order)
            _move_columns(classes, order)
        rotation = int(rng.integers(half))
        for start in range(0, half, _BLOCK):
            left = np.arange(start, min(half, start + _BLOCK))
            right = half + (left + rotation) % half
            row_left, row_right = rng.integers(group_size, size=(2, left.size))
            own, other = classes[row_left, left], classes[row_right, right]
            clash = (classes[:, right] == own).any(0) | (classes[:, start : start + left.size] == other).any(0)
            swap = np.flatnonzero(~clash | (own == other))
            a, b = (row_left[swap], left[swap]), (row_right[swap], right[swap])
            cells[a], cells[b] = cells[b], cells[a]
            classes[a], classes[b] = classes[b], classes[a]


def _move_columns(table: np.ndarray, order: np.ndarray) -> None:
    for row in table:  # one at a time: no second table
        row[:] = row[order]


def deal_fewest_repeats(labels_W: np.ndarray, group_size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, int]:
    """Positions 0..W-1 as G = W // M groups with as few members as possible that meet their own class.

    Returns (table_GM, ungrouped, number of such members). A class of n_k > G members must repeat n_k - G times. Cutting it
    into ceil(n_k / G) parts, all but the last of exactly G members, and dealing the parts as if they were classes attains
    that. The W mod M positions that no group takes come from such classes, where each of them saves a repeat.
    """
    counts = count_labels(labels_W)
    groups, spare = divmod(labels_W.size, group_size)
    if groups == 0 or counts.max() <= groups:
        return *deal_distinct(labels_W, group_size, rng), 0
    excess = np.maximum(counts - groups, 0)
    given_up = rng.multivariate_hypergeometric(excess, min(spare, int(excess.sum())))
    num_parts = counts.size
    parts = labels_W.astype(label_dtype(counts.size + int((counts // groups).sum())))
    ungrouped = []
    for k in np.flatnonzero(excess):
        members = rng.permutation(np.flatnonzero(labels_W == k).astype(position_dtype(labels_W.size)))
        ungrouped.append(members[: given_up[k]])
        members = members[given_up[k] :]
        for start in range(groups, members.size, groups):  # the first part keeps the name of the class
            parts[members[start : start + groups]] = num_parts
            num_parts += 1
    aside = np.concatenate(ungrouped)
    if aside.size:
        parts = np.delete(parts, aside)
    table, leftover = deal_distinct(parts, group_size, rng)
    if aside.size:
        kept = np.delete(np.arange(labels_W.size, dtype=table.dtype), aside)
        table, leftover = gather(kept, table), kept[leftover]
    return table, np.concatenate([aside, leftover]), int((excess - given_up).sum())
