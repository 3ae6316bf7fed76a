import copy

import pytest
import torch
import torchvision
from torch import nn

from ns_data import Layout, NSScorer, group_softmax, ns_scores, own_scores
from ns_data.scoring.scorer import bare_module
from ns_data.scoring.stitch import stitch

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randn(16, 3, 16, 16, generator=GENERATOR)
LABELS = torch.randint(10, (16,), generator=GENERATOR)


def papers_scores(probabilities_GK, labels_GM):
    """The paper's formula in its own terms: each member's class probability over the sum of the group's. For tests only."""
    return torch.stack(
        [
            torch.stack([row[label] for label in labels]) / sum(row[label] for label in labels)
            for row, labels in zip(probabilities_GK, labels_GM, strict=True)
        ]
    )


class SmallNet(nn.Module):
    """BatchNorm, dropout and drop path in one small network."""

    def __init__(self, num_classes=10):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.drop_path = torchvision.ops.StochasticDepth(0.5, "row")
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(8, num_classes))

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.drop_path(self.block(x)))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return SmallNet()


@pytest.mark.parametrize("scale", [1, 10])
def test_softmax_over_own_logits_equals_the_papers_formula(scale):
    logits = scale * torch.randn(50, 10, generator=GENERATOR)
    labels = torch.randint(10, (50, 4), generator=GENERATOR)
    expected = papers_scores(torch.softmax(logits.double(), 1), labels)
    torch.testing.assert_close(group_softmax(logits, labels).double(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_scores_sum_to_one_and_stay_finite_where_the_paper_divides_zero_by_zero(dtype, scale):
    logits = (scale * torch.randn(200, 10, generator=GENERATOR)).to(dtype)
    labels = torch.randint(10, (200, 4), generator=GENERATOR)
    scores = group_softmax(logits, labels)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.sum(1), torch.ones(200))
    if scale == 300:
        assert papers_scores(torch.softmax(logits, 1), labels).isnan().any()


def test_scores_of_a_batch_in_the_papers_terms(net):
    composites = stitch(IMAGES, "2x2")
    with torch.no_grad():
        net.eval()
        probabilities = torch.softmax(net(composites), 1)
    expected = papers_scores(probabilities, LABELS.view(4, 4)).reshape(-1)
    torch.testing.assert_close(ns_scores(net, IMAGES, LABELS, batch_norm="running"), expected)


def test_batch_mode_uses_batch_statistics_without_dropout(net):
    reference = copy.deepcopy(net).train()
    for module in reference.modules():
        if isinstance(module, (nn.Dropout, torchvision.ops.StochasticDepth)):
            module.eval()
    with torch.no_grad():
        expected = group_softmax(reference(stitch(IMAGES, "2x2")), LABELS.view(4, 4)).reshape(-1)
    torch.testing.assert_close(ns_scores(net, IMAGES, LABELS), expected)
    assert not torch.allclose(ns_scores(net, IMAGES, LABELS, batch_norm="running"), expected, atol=1e-3)


def test_groups_and_neutral_scores(net):
    groups = torch.tensor([[3, 1, 0, 7], [2, 9, 5, 11]])
    scores = ns_scores(net, IMAGES, LABELS, groups_GM=groups)
    torch.testing.assert_close(scores[groups].sum(1), torch.ones(2))
    outside = sorted(set(range(16)) - set(groups.reshape(-1).tolist()))
    assert (scores[outside] == 0.25).all()
    permuted = ns_scores(net, IMAGES[groups.reshape(-1)], LABELS[groups.reshape(-1)])
    torch.testing.assert_close(scores[groups.reshape(-1)], permuted)


def snapshot(net):
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    return state, [module.training for module in net.modules()], torch.get_rng_state()


@pytest.mark.parametrize("mode", ["batch", "running"])
@pytest.mark.parametrize("training", [True, False])
def test_scoring_leaves_no_trace(net, mode, training):
    net.train(training)
    net.block.eval()  # a frozen part
    state, modes, rng = snapshot(net)
    scores = ns_scores(net, IMAGES, LABELS, batch_norm=mode)
    new_state, new_modes, new_rng = snapshot(net)
    assert all(torch.equal(state[name], new_state[name]) for name in state)
    assert modes == new_modes
    assert torch.equal(rng, new_rng)
    assert not scores.requires_grad
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(m.track_running_stats for m in net.modules() if isinstance(m, nn.BatchNorm2d))


def test_modes_are_restored_after_an_error(net):
    net.train()
    with pytest.raises(RuntimeError):
        ns_scores(net, IMAGES[:, :1], LABELS)
    assert net.training
    assert net.stem[1].track_running_stats


def test_paper_mode_is_the_listing_to_the_letter(net):
    """Train mode: running statistics move and dropout draws, exactly as a plain forward of the composites does."""
    net.train()
    reference = copy.deepcopy(net)
    torch.manual_seed(5)
    with torch.no_grad():
        expected = group_softmax(reference(stitch(IMAGES, "2x2")), LABELS.view(4, 4)).reshape(-1)
    torch.manual_seed(5)
    assert torch.equal(ns_scores(net, IMAGES, LABELS, batch_norm="paper"), expected)
    assert torch.equal(net.stem[1].running_mean, reference.stem[1].running_mean)
    assert net.stem[1].num_batches_tracked == 1


def train(net, scorer, steps=4, autocast=False):
    torch.manual_seed(7)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            scores = scorer(IMAGES, LABELS) if scorer else None
            loss = nn.functional.cross_entropy(net(IMAGES), LABELS, reduction="none")
        weights = torch.ones(16) if scores is None else torch.ones_like(scores)
        optimizer.zero_grad()
        (weights * loss).mean().backward()
        optimizer.step()
    return net


@pytest.mark.parametrize("autocast", [False, True])
def test_weights_of_one_train_bit_equal_to_the_baseline(net, autocast):
    baseline = train(copy.deepcopy(net), None, autocast=autocast)
    scored = train(net, NSScorer(net), autocast=autocast)
    assert all(torch.equal(a, b) for a, b in zip(baseline.state_dict().values(), scored.state_dict().values(), strict=True))
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_nan_logits_are_neutral_and_counted(net):
    class Poisoned(nn.Module):
        def forward(self, x):
            logits = torch.zeros(x.shape[0], 10)
            logits[1] = float("nan")
            logits[2] = float("inf")
            logits[3, LABELS[12]] = -float("inf")
            return logits

    scorer = NSScorer(Poisoned())
    for _ in range(2):
        scores = scorer(IMAGES, LABELS)
        assert (scores[4:] == 0.25).all()
        assert scores.isfinite().all()
    with pytest.warns(UserWarning, match="6 groups had logits that are not finite, first in step 0, group 1: neutral scores$"):
        assert scorer.report() == {"invalid_groups": 6, "ungrouped": 0, "lone_composites": 0}
    assert scorer.report()["invalid_groups"] == 0


def test_a_short_last_batch_is_neutral_and_counted_but_a_first_one_is_refused(net):
    scorer = NSScorer(net)
    with pytest.raises(ValueError, match="3 images cannot fill one group of 4"):
        scorer(IMAGES[:3], LABELS[:3])
    scorer(IMAGES, LABELS)
    assert scorer(IMAGES[:3], LABELS[:3]).tolist() == [0.25] * 3
    scores = scorer(IMAGES[:14], LABELS[:14])
    assert scores[12:].tolist() == [0.25] * 2
    assert scorer.report()["ungrouped"] == 5


def test_a_lone_composite_that_batch_norm_cannot_normalise_is_neutral_and_counted():
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))
    scorer = NSScorer(model)
    assert scorer(IMAGES[:4], LABELS[:4]).tolist() == [0.25] * 4
    assert scorer.report()["lone_composites"] == 1
    assert not (scorer(IMAGES[:8], LABELS[:8]) == 0.25).all()


def test_wrappers_are_taken_off(net):
    wrapped = nn.DataParallel(torch.compile(net))
    assert bare_module(wrapped) is net
    assert torch.equal(NSScorer(wrapped)(IMAGES, LABELS), ns_scores(net, IMAGES, LABELS))


def test_logits_are_taken_out_of_other_outputs(net):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return {"logits": self.net(x)}

    wrapped = Wrapped()
    with pytest.raises(ValueError, match="returned dict, not a tensor of logits: pass logits="):
        ns_scores(wrapped, IMAGES, LABELS)
    scores = NSScorer(wrapped, logits=lambda output: output["logits"])(IMAGES, LABELS)
    torch.testing.assert_close(scores, ns_scores(net, IMAGES, LABELS))


def test_the_layout_reaches_the_composites(net):
    by_column = NSScorer(net, layout="2x2")(IMAGES, LABELS)
    by_row = NSScorer(net, layout=Layout(2, 2, "row"))(IMAGES, LABELS)
    swapped = [i + (0, 1, -1, 0)[i % 4] for i in range(16)]  # members 1 and 2 of each group trade places
    torch.testing.assert_close(by_row, NSScorer(net)(IMAGES[swapped], LABELS[swapped])[swapped])
    assert not torch.allclose(by_column, by_row)


def test_own_scores_are_the_group_softmax_of_each_images_log_probability():
    logits = torch.randn(10, 7, generator=GENERATOR)
    labels = torch.randint(7, (10,), generator=GENERATOR)
    q = torch.softmax(logits, 1)[torch.arange(10), labels]
    expected = torch.cat([q[:4] / q[:4].sum(), q[4:8] / q[4:8].sum(), torch.full((2,), 0.25)])
    torch.testing.assert_close(own_scores(logits, labels), expected)
    groups = torch.tensor([[0, 9], [5, 2]])
    scores = own_scores(logits.requires_grad_(), labels, layout="1x2", groups_GM=groups)
    assert not scores.requires_grad
    torch.testing.assert_close(scores[[0, 9]], q[[0, 9]] / q[[0, 9]].sum())
    assert scores[1] == 0.5
    logits = logits.detach().clone()
    logits[0] = float("nan")
    assert own_scores(logits, labels)[:4].tolist() == [0.25] * 4


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (LABELS + 5, {}, "label 1[0-4] is out of range for a model of 10 classes"),
        (LABELS - 5, {}, "label -[1-5] is out of range"),
        (LABELS[:8], {}, "labels must be 16 class ids"),
        (LABELS, {"batch_norm": "eval"}, "batch_norm must be one of batch, running, paper, got 'eval'"),
        (LABELS, {"layout": "1x2", "groups_GM": torch.zeros(2, 4, dtype=torch.long)}, "need the same layout"),
        (LABELS, {"groups_GM": torch.tensor([[0, 1, 2, 16]])}, "group index 16 is out of range for a batch of 16"),
        (LABELS, {"groups_GM": torch.tensor([[0, -1, 2, 3]])}, "group index -1 is out of range"),
        (LABELS, {"groups_GM": torch.tensor([[0, 1, 2, 3], [4, 5, 6, 2]])}, "position 2 of the batch is 2 times in the groups"),
    ],
)
def test_bad_input_is_refused(net, labels, options, message):
    with pytest.raises(ValueError, match=message):
        ns_scores(net, IMAGES, labels, **options)


def test_a_model_without_a_class_dimension_is_refused():
    with pytest.raises(ValueError, match=r"logits of shape \(4, 3, 16, 16\) for 4 composites"):
        ns_scores(nn.Identity(), IMAGES, LABELS)


def test_every_group_size_sums_to_one(net):
    for layout in ("1x2", "2x1", "2x4", "4x4", "1x1"):
        m = Layout.parse(layout).group_size
        scores = ns_scores(net, IMAGES, LABELS, layout=layout)
        torch.testing.assert_close(scores.view(-1, m).sum(1), torch.ones(16 // m))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_scores_on_a_gpu_equal_those_on_the_cpu(net):
    expected = ns_scores(net.double(), IMAGES.double(), LABELS)
    scores = ns_scores(net.cuda(), IMAGES.double().cuda(), LABELS.cuda())
    torch.testing.assert_close(scores.cpu(), expected, atol=1e-5, rtol=0)
