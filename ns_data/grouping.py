"""Grouping: rules that turn ids and their labels into competition groups. NumPy only; a plan calls them.

A rule is ``rule(ids_W, labels_W, group_size, rng, *, stats) -> (table_GM, leftover)``: W ids of a window, in any order and
possibly repeated, become G groups of M = group_size members; what the rule cannot place is left over. The arrangement is
random in itself, so the order of the ids does not matter.

`random` is the paper's grouping ("Darwinian Optimization: Training Deep Networks with Natural Selection"). The others go
beyond it; `rivals` in particular has no counterpart there: whoever is close in strength competes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ns_data.dealing import deal_distinct, deal_fewest_repeats, max_groups, shuffled_positions
from ns_data.stats import ClassStats, count_labels, gather, members_by_class, place_in_run

__all__ = ["GROUPINGS", "deal", "max_groups", "rivals"]

Groups = tuple[np.ndarray, np.ndarray]  # table_GM, leftover
Rule = Callable[..., Groups]


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
    """Groups whose members all have different classes, as many as possible (``max_groups``)."""
    table, leftover = deal_distinct(labels_W, group_size, rng)
    return gather(ids_W, table), gather(ids_W, leftover)


def same_class(
    ids_W: np.ndarray, labels_W: np.ndarray, group_size: int, rng: np.random.Generator, *, stats: ClassStats | None = None
) -> Groups:
    """Groups of one class each, where every score is 1/M. Of each class, n_k mod M random members are left over."""
    order = shuffled_positions(ids_W.size, rng)
    classes = gather(labels_W, order)
    counts = count_labels(classes)
    order = gather(order, members_by_class(classes, counts))
    rest = counts % group_size  # the last ones of each class
    left = np.repeat(np.cumsum(counts) - rest, rest) + place_in_run(rest)
    table = np.delete(order, left).reshape(-1, group_size)
    rng.shuffle(table)
    return gather(ids_W, table), ids_W[order[left]]


def head_tail(
    ids_W: np.ndarray, labels_W: np.ndarray, group_size: int, rng: np.random.Generator, *, stats: ClassStats
) -> Groups:
    """Frequent classes against rare ones: half of each group from the more frequent half of the classes (by ``stats``).

    With an odd M the frequent half has one cell more. What one half has too many of is left over.
    """
    order = shuffled_positions(ids_W.size, rng)
    frequent = gather(stats.frequent_half, gather(labels_W, order))
    head, tail = order[frequent], order[~frequent]
    tail_cells = group_size // 2
    head_cells = group_size - tail_cells
    groups = min(head.size // head_cells, tail.size // tail_cells) if tail_cells else 0
    table = np.concatenate(
        [head[: groups * head_cells].reshape(groups, head_cells), tail[: groups * tail_cells].reshape(groups, tail_cells)],
        axis=1,
    )
    leftover = np.concatenate([head[groups * head_cells :], tail[groups * tail_cells :]])
    return gather(ids_W, rng.permuted(table, axis=1, out=table)), gather(ids_W, leftover)


@dataclass(frozen=True, eq=False)
class Rivals:
    """The rule that ``rivals`` makes."""

    strength: np.ndarray | None
    temperature: float

    def __call__(
        self, ids_W: np.ndarray, labels_W: np.ndarray, group_size: int, rng: np.random.Generator, *, stats: ClassStats
    ) -> Groups:
        if self.strength is None:
            strength = stats.counts[labels_W].astype(np.float64)
        elif self.strength.size == stats.total:
            strength = self.strength[ids_W].astype(np.float64)
        else:
            raise ValueError(f"rivals needs one strength a sample: got {self.strength.size} for {stats.total} samples")
        order = shuffled_positions(ids_W.size, rng)
        strength = strength[order]
        known = np.flatnonzero(~np.isnan(strength))
        rank = rng.random(ids_W.size)  # of the unknown: anywhere
        rank[known[np.argsort(strength[known], kind="stable")]] = (np.arange(known.size) + 0.5) / max(1, known.size)
        if np.isfinite(self.temperature):
            rank += self.temperature * rng.standard_normal(ids_W.size)
            order = order[np.argsort(rank)]
        excluded = rng.choice(ids_W.size, ids_W.size % group_size, replace=False)
        table = np.delete(order, excluded).reshape(-1, group_size)
        return ids_W[rng.permuted(rng.permutation(table), axis=1)], ids_W[order[excluded]]

    @property
    def name(self) -> str:
        """What identifies the rule in the state of a run: another array or temperature is another setting."""
        if self.strength is None:
            return f"rivals(temperature={self.temperature:g})"
        digest = hashlib.sha256(np.ascontiguousarray(self.strength).data).hexdigest()[:16]
        return f"rivals({digest}, temperature={self.temperature:g})"


def rivals(strength: Any = None, temperature: float = 0.0) -> Rivals:
    """A rule by which neighbours in strength compete: close scores make every duel a contest. An extension of the paper.

    ``strength`` holds a number for each sample of the data set, such as a mean score, loss or margin; only its order
    matters. NaN is an unknown strength and takes part at a random rank. Without an array the size of a sample's class
    stands for it, so that classes of similar size compete. The array is read when a window is dealt: values written into
    it between epochs count from the next epoch on, and a state names the values that it was made with.

    ``temperature`` is the standard deviation of the noise on a sample's rank, as a share of the window: 0 makes groups of
    direct neighbours (ties at random), 0.1 mixes a tenth of the window, ``inf`` is `random`.

    Raises ``ValueError`` if ``strength`` is not one number a sample or ``temperature`` is negative.
    """
    if not temperature >= 0:
        raise ValueError(f"temperature must be 0 (strict) or more, inf for random, got {temperature}")
    if strength is None:
        return Rivals(None, float(temperature))
    strength = np.asarray(strength.detach().cpu() if hasattr(strength, "detach") else strength)
    if strength.ndim != 1 or strength.dtype.kind not in "iuf":
        raise ValueError(f"strength must be one number a sample, got shape {strength.shape} of {strength.dtype}")
    return Rivals(strength, float(temperature))


GROUPINGS: dict[str, Rule] = {
    "random": random_groups,
    "class_mixed": class_mixed,
    "same_class": same_class,
    "head_tail": head_tail,
    "rivals": rivals(),
}


class Deal(NamedTuple):
    """The groups of one window and what became of the rest."""

    table_GM: np.ndarray
    left: np.ndarray  # ids without a group: fewer than M of the last window, of others they are carried to the next
    dropped: int  # ids left out
    relaxed: int  # ids that sit in a group against the rule


# Ids that a rule may carry from window to window until they find a group that suits it.
_CARRIED = 1 << 16


def deal(
    rule: Rule,
    surplus: str,
    ids_W: np.ndarray,
    labels_W: np.ndarray,
    group_size: int,
    rng: np.random.Generator,
    stats: ClassStats,
    last: bool = True,
) -> Deal:
    """Apply ``rule`` to a window and settle what it leaves over: dropped, carried or relaxed into groups that break it.

    ``class_mixed`` relaxes with the fewest possible repeats of a class inside groups; other rules deal their leftover
    into random groups. Only the ``last`` window of an epoch must settle all; earlier ones relax what is too much to carry.
    """
    if rule is class_mixed and surplus == "relax":
        spare = ids_W.size - max_groups(count_labels(labels_W), group_size) * group_size
        if last or spare > ids_W.size // 4:  # a surplus of the law itself would only grow
            table, left, repeats = deal_fewest_repeats(labels_W, group_size, rng)
            return Deal(gather(ids_W, table), gather(ids_W, left), dropped=0, relaxed=repeats)
    table, left = rule(ids_W, labels_W, group_size, rng, stats=stats)
    if table.shape[1:] != (group_size,) or table.size + left.size != ids_W.size:
        raise ValueError(
            f"the grouping rule returned a table of shape {table.shape} and {left.size} ids left over for "
            f"{ids_W.size} ids in groups of {group_size}: every id must be in one of the two"
        )
    if surplus == "drop":
        return Deal(table, left[:0], dropped=left.size, relaxed=0)
    if left.size < group_size or (not last and left.size <= _CARRIED):
        return Deal(table, left, dropped=0, relaxed=0)
    mixed, left = random_groups(left, labels_W[:0], group_size, rng)
    table = rng.permutation(np.concatenate([table, mixed]))
    return Deal(table, left, dropped=0, relaxed=mixed.size)
