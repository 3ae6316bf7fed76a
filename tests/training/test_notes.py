"""Divergence: what stops a run, and what the sentence says of the checkpoints that are left."""

import math

import pytest
import torch

from ns_data import ClassStats, GroupedBatch, create_model
from ns_data.training.config import Config
from ns_data.training.distributed import World
from ns_data.training.notes import Notes
from ns_data.training.weigher import Weigher

WORLD = World(0, 1, torch.device("cpu"))
BATCH = GroupedBatch(torch.zeros(4, 1), torch.arange(4), torch.arange(4), torch.arange(4)[None], torch.tensor(0))


@pytest.fixture
def notes(tmp_path):
    config = Config(run_dir=str(tmp_path / "run"))
    weigher = Weigher(config, create_model("small_cnn", 10), ClassStats.from_labels([0, 1, 2, 3]), 4, WORLD)
    return Notes(config, weigher, WORLD)


def enter(notes, loss, epoch, number):
    notes.enter(BATCH, torch.ones(4), torch.full((4,), 0.25), torch.tensor([1.0, loss, 1.0, 1.0]), epoch, number)


@pytest.mark.parametrize("read", ["numbers", "state_dict"])
def test_the_first_step_with_a_loss_that_is_not_finite_is_named(notes, read):
    for number, loss in enumerate([1.0, 2.0, math.inf, math.nan]):
        enter(notes, loss, 6, number)
    with pytest.raises(ValueError, match=r"in step 3 of epoch 7: lower optimizer.lr \(now 0.1\) .*no checkpoint was saved"):
        getattr(notes, read)()


def test_weights_that_are_not_finite_are_never_saved(notes):
    enter(notes, 1.0, 0, 0)
    notes.state_dict()
    with torch.no_grad():
        notes.weigher.scorer.model.head.weight[0, 0] = math.nan  # the loss of the next step would be the first to show it
    with pytest.raises(ValueError, match=r"^a weight of head.weight was not a finite number after a step of epoch 1: lower"):
        notes.state_dict()
