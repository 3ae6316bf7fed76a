"""GroupStage: competition groups inside somebody's WebDataset pipeline, from a bounded buffer. Approximate by nature.

    stage = GroupStage("2x2", seed=0)
    dataset = wds.WebDataset(urls, shardshuffle=100).decode("pil").to_tuple("jpg", "cls").map_tuple(transform, int)
    loader = wds.WebLoader(dataset.compose(stage).batched(64, collation_fn=NSCollator("2x2")), batch_size=None, num_workers=4)

The stage re-orders samples so that every M in a row are a group. Unlike a plan it promises neither the same batches for
another number of workers nor a resume nor the same number of batches on every rank.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from ns_data.layout import Layout


class GroupStage:
    """A picklable stage for ``webdataset.WebDataset(...).compose(stage)``: class-mixed groups, M samples in a row each.

    Args:
        layout: "RxC"; a group has M = R * C members with different labels, as far as the buffer allows.
        buffer: samples that wait at a time. It must hold many classes: shuffle shards when they are written.
        label: position or key of the label in a sample, or a function of it.
        seed: of the draws; every worker and pass has a stream of its own.

    ``relaxed`` counts the samples that had to join a group with their own class; there is a warning at the first. Fewer than
    M samples come last, without a group.
    """

    def __init__(
        self, layout: Layout | str, *, buffer: int = 1024, label: int | str | Callable[[Any], int] = 1, seed: int = 0
    ) -> None:
        self.group_size = Layout.parse(layout).group_size
        if buffer < self.group_size:
            raise ValueError(f"a buffer of {buffer} samples cannot hold a group of {self.group_size}")
        self.buffer, self.label, self.seed = buffer, label, seed
        self.passes = self.relaxed = 0

    def __call__(self, samples: Iterable[Any]) -> Iterator[Any]:
        rng = np.random.default_rng([self.seed, _worker(), self.passes])
        self.passes += 1
        waiting: dict[int, list[Any]] = {}
        count = 0
        for sample in samples:
            waiting.setdefault(self._label_of(sample), []).append(sample)
            count += 1
            if count >= self.buffer:
                yield from self._group(waiting, count, rng)
                count -= self.group_size
        while count >= self.group_size:
            yield from self._group(waiting, count, rng)
            count -= self.group_size
        for rest in waiting.values():
            yield from rest

    def _label_of(self, sample: Any) -> int:
        return int(self.label(sample) if callable(self.label) else sample[self.label])

    def _group(self, waiting: dict[int, list[Any]], count: int, rng: np.random.Generator) -> list[Any]:
        """Take M samples out: classes drawn by how many wait, those first that would not fit in what remains."""
        classes = np.fromiter(waiting, np.int64, len(waiting))
        sizes = np.array([len(waiting[k]) for k in classes.tolist()])
        m = self.group_size
        # With a random key of this form the largest keys are a draw without replacement by size (Efraimidis and Spirakis).
        keys = np.log(rng.random(sizes.size)) / sizes
        keys[sizes > (count - m) / m] += np.inf
        chosen = classes[np.argsort(-keys, kind="stable")[:m]].tolist()
        group = [self._take(waiting, k, rng) for k in chosen]
        while len(group) < m:  # fewer classes than members
            if not self.relaxed:
                warnings.warn(
                    f"{len(chosen)} classes wait in a buffer of {count} samples, too few for groups of {m}: some repeat a "
                    "class; use a larger buffer, or shards that were shuffled when they were written",
                    stacklevel=3,
                )
            self.relaxed += 1
            group.append(self._take(waiting, max(waiting, key=lambda k: len(waiting[k])), rng))
        return [group[place] for place in rng.permutation(m).tolist()]

    @staticmethod
    def _take(waiting: dict[int, list[Any]], label: int, rng: np.random.Generator) -> Any:
        rows = waiting[label]
        place = int(rng.integers(len(rows)))
        rows[place], rows[-1] = rows[-1], rows[place]
        sample = rows.pop()
        if not rows:
            del waiting[label]
        return sample


def _worker() -> int:
    from torch.utils.data import get_worker_info

    info = get_worker_info()
    return 0 if info is None else info.id
