"""The weights of a step as settings have them, against weights written out."""

import numpy as np
import pytest
import torch

from ns_data import ClassStats, GroupedBatch, Layout, create_model, ns_scores
from ns_data.training.config import Config, NSConfig
from ns_data.training.distributed import World
from ns_data.training.weigher import Weigher

ALONE = World(0, 1, torch.device("cpu"))
LABELS = torch.tensor([0, 0, 1, 2, 0, 1, 2, 2])


@pytest.fixture
def batch():
    images = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return GroupedBatch(images, LABELS, torch.arange(8), torch.tensor([[0, 2, 4, 6], [7, 5, 3, 1]]), torch.tensor(0))


def weigher(world=ALONE, **ns):
    torch.manual_seed(0)
    model = create_model("small_cnn", 3).train()
    config = Config(epochs=5, seed=3, ns=NSConfig(**ns))
    return Weigher(config, model, ClassStats.from_labels(LABELS), 8, world), model


def weights_of(job, model, batch, epoch=0, number=0):
    scores = job.score(batch.images, batch, epoch)
    return job.weigh(scores, model(batch.images), batch, epoch, number)


def test_weights_are_sigma_plus_rho_times_the_score(batch):
    job, model = weigher(sigma=2.0, rho=-1.5, order="row")
    weights, scores = weights_of(job, model, batch)
    other = weigher()[1]
    expected = ns_scores(other, batch.images, LABELS, layout=Layout(2, 2, "row"), groups_GM=batch.groups)
    torch.testing.assert_close(scores, expected)
    torch.testing.assert_close(weights, 2.0 - 1.5 * expected)
    assert not weights.requires_grad


def test_before_the_start_epoch_nothing_is_scored_and_all_weights_are_one(batch):
    job, model = weigher(sigma=2.0, start_epoch=2)
    for epoch in (0, 1):
        assert job.score(batch.images, batch, epoch) is None
        assert weights_of(job, model, batch, epoch)[0].tolist() == [1.0] * 8
    assert weights_of(job, model, batch, 2)[0].mean().item() == pytest.approx(2.0 - 1 / 4, abs=1e-6)


def test_strength_changes_over_the_epochs(batch):
    job, model = weigher(sigma=3.0, rho=-1.0, sigma_end=1.0, rho_end=0.0)
    means = [weights_of(job, model, batch, epoch)[0].mean().item() for epoch in range(5)]
    assert means == pytest.approx([3 - 0.25, 2.5 - 0.75 / 4, 2 - 0.5 / 4, 1.5 - 0.25 / 4, 1], abs=1e-6)


def test_normalised_weights_have_mean_one(batch):
    job, model = weigher(sigma=2.0, normalize=True)
    weights, scores = weights_of(job, model, batch)
    torch.testing.assert_close(weights, (2.0 - scores) / (2.0 - 1 / 4))


def test_shuffled_scores_follow_from_seed_epoch_step_and_rank_alone(batch):
    def shuffled(epoch=0, number=0, rank=0):
        job, model = weigher(World(rank, 1, torch.device("cpu")), weighting="shuffled")
        torch.manual_seed(np.random.randint(1000))  # the global state has no say
        return weights_of(job, model, batch, epoch, number)[1].tolist()

    first = shuffled()
    assert shuffled() == first
    others = [shuffled(epoch=1), shuffled(number=1), shuffled(rank=1)]
    assert all(sorted(other) == pytest.approx(sorted(first)) and other != first for other in others)
    assert len({tuple(other) for other in others}) == 3


@pytest.mark.parametrize("weighting", ["own", "constant", "inverse_frequency", "none"])
def test_other_weightings_make_no_pass(batch, weighting):
    job, model = weigher(weighting=weighting)
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    assert job.score(batch.images, batch, 0) is None
    assert not calls
    assert job.time.read() == 0


def test_the_step_of_every_goes_on_from_a_checkpoint(batch):
    job, _ = weigher(every=2)
    job.score(batch.images, batch, 0)
    again, other = weigher(every=2)
    again.load_state_dict(job.state_dict())
    calls = []
    other.register_forward_hook(lambda *_: calls.append(1))
    again.score(batch.images, batch, 0)
    assert not calls
    again.score(batch.images, batch, 0)
    assert calls == [1]
