"""Drawing: classes by their probabilities and members of classes, at a cost that depends neither on K nor on N. NumPy only."""

from __future__ import annotations

import numpy as np

from ns_data.stats import members_by_class, place_in_run


class AliasTable:
    """Draws from a fixed distribution over classes by Walker's alias method: one column, one comparison.

    A uniform column k stands for class k below its threshold and for ``alias[k]`` above it.
    """

    def __init__(self, probabilities: np.ndarray) -> None:
        threshold = probabilities * probabilities.size
        alias = np.arange(probabilities.size)
        small, large = np.flatnonzero(threshold < 1).tolist(), np.flatnonzero(threshold >= 1).tolist()
        while small and large:
            needy, donor = small.pop(), large[-1]
            alias[needy] = donor
            threshold[donor] -= 1 - threshold[needy]
            if threshold[donor] < 1:
                small.append(large.pop())
        threshold[small] = 1.0  # what rounding left over
        self.threshold, self.alias = threshold, alias

    def draw(self, size: int, rng: np.random.Generator) -> np.ndarray:
        column = rng.random(size)
        column *= self.threshold.size
        classes = column.astype(np.int64)
        column -= classes
        return np.where(column < self.threshold.take(classes), classes, self.alias.take(classes))


class Members:
    """The samples of each class: those of class k are ``order[first[k] : first[k] + counts[k]]``, 4 bytes a sample."""

    def __init__(self, labels: np.ndarray, counts: np.ndarray) -> None:
        self.counts = counts
        self.order = members_by_class(labels, counts)
        self.first = np.cumsum(counts) - counts

    def draw(self, classes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A uniformly drawn member of each of ``classes``."""
        place = rng.random(classes.size)
        place *= self.counts.take(classes)
        position = place.astype(np.int64)
        position += self.first.take(classes)
        return self.order.take(position).astype(np.int64)  # NumPy shuffles 64-bit windows twice as fast


class Turns:
    """Members of each class in turn: all of them in random order before the first comes again.

    A class is shuffled when it starts over, at its first draw too. This state of an epoch belongs to its iterator.
    """

    def __init__(self, members: Members) -> None:
        self.counts, self.first = members.counts, members.first
        self.order = members.order.copy()
        self.used = members.counts.copy()  # of the present order of each class

    def take(self, classes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The next member of each of ``classes``."""
        drawn = np.bincount(classes, minlength=self.counts.size)
        turn = np.empty(classes.size, np.int64)  # counted from the first member of the present order
        turn[np.argsort(classes, kind="stable")] = place_in_run(drawn) + np.repeat(self.used, drawn)
        # New orders: class k starts over laps[k] times, each a block of counts[k], those of a class in a row.
        laps = np.zeros_like(self.counts)
        np.floor_divide(self.used + drawn - 1, self.counts, out=laps, where=drawn > 0)
        of_block = np.repeat(np.arange(laps.size), laps)
        length = self.counts[of_block]
        block = np.repeat(np.arange(length.size), length)
        start = np.cumsum(length) - length
        shuffled = np.lexsort((rng.random(block.size, dtype=np.float32), block))
        renewed = self.order[shuffled + np.repeat(self.first[of_block] - start, length)]
        begin = np.cumsum(laps * self.counts) - laps * self.counts  # of a class in `renewed`

        later = turn - self.counts[classes]
        ids = self.order[self.first[classes] + np.minimum(turn, self.counts[classes] - 1)]
        again = later >= 0
        ids[again] = renewed[(begin[classes] + later)[again]]

        over = np.flatnonzero(laps)  # their last block is their present order now
        inside = place_in_run(self.counts[over])
        last = begin[over] + (laps[over] - 1) * self.counts[over]
        self.order[np.repeat(self.first[over], self.counts[over]) + inside] = renewed[
            np.repeat(last, self.counts[over]) + inside
        ]
        self.used += drawn - laps * self.counts
        return ids
