"""Weigher: the weights of a step's losses, as the settings under ``ns`` have them: one pass over composites before the training
pass, whose activations would add to its memory, and the weights after it, since ``own`` looks at the training logits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ns_data.choose import choose
from ns_data.collate import GroupedBatch
from ns_data.layout import Layout
from ns_data.scoring.ledger import ScoreLedger
from ns_data.scoring.scorer import Compose, NSScorer
from ns_data.scoring.weighting import WEIGHTINGS, Step, Strength, mean_weight
from ns_data.stats import ClassStats
from ns_data.training.distributed import World
from ns_data.training.stopwatch import Stopwatch


class Weigher:
    """Scores, ledger and strength of a run; ``config`` has ``ns``, ``epochs`` and ``seed``, as ``Config``.

    Random draws follow from (seed, epoch, number of the step, rank).
    """

    def __init__(
        self,
        config: Any,
        model: nn.Module,
        stats: ClassStats,
        num_samples: int,
        world: World,
        compose: Compose | None = None,
    ) -> None:
        self.config, self.ns, self.stats, self.world = config, config.ns, stats, world
        ns = config.ns
        self.layout = Layout.parse(ns.layout, ns.order)
        self.weighting = choose(WEIGHTINGS, ns.weighting, "weighting")
        self.strength = Strength(ns.sigma, ns.rho, ns.start_epoch, ns.sigma_end, ns.rho_end)
        self.ledger = ScoreLedger(num_samples, device=world.device)
        options = {"batch_norm": ns.batch_norm, "scale": ns.scale, "placements": ns.placements, "every": ns.every}
        ledger = self.ledger if ns.every > 1 else None
        self.scorer = NSScorer(model, layout=self.layout, ledger=ledger, compose=compose, **options)
        self.time = Stopwatch(world.device)

    def score(self, inputs: Any, batch: GroupedBatch, epoch: int) -> Tensor | None:
        """Scores (B,) by the pass over composites; ``None`` if the weighting of this epoch does without."""
        if epoch < self.ns.start_epoch or not self.weighting.composites:
            return None
        with self.time():
            return self.scorer(inputs, batch.labels, batch.groups, batch.ids)

    def weigh(
        self, scores_B: Tensor | None, logits_BK: Tensor, batch: GroupedBatch, epoch: int, number: int
    ) -> tuple[Tensor, Tensor]:
        """(weights_B, scores_B) of a batch, the ``number``-th of its epoch, after its training pass."""
        weighting = self.weighting if epoch >= self.ns.start_epoch else WEIGHTINGS["none"]
        sigma, rho = self.strength.at(epoch, self.config.epochs)
        seed = np.random.SeedSequence([self.config.seed, epoch, number, self.world.rank]).generate_state(1)
        generator = torch.Generator().manual_seed(int(seed[0]))
        logits_BK = logits_BK.detach()
        step = Step(scores_B, logits_BK, batch.labels, batch.groups, self.layout, sigma, rho, self.stats, generator)
        weights_B, scores_B = weighting.weigh(step)
        if self.ns.normalize:
            weights_B = weights_B / mean_weight(sigma, rho, self.layout.group_size)
        return weights_B, scores_B

    def state_dict(self) -> dict[str, Any]:
        """The scorer's; the ledger's is long, and read and merged with the notes."""
        return self.scorer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scorer.load_state_dict(state)
