import pytest
import torch
from torch import nn

from ns_data import WEIGHTINGS, group_softmax, ns_scores, own_scores
from tests.scoring.test_scorer import IMAGES, LABELS, papers_scores
from tests.scoring.test_weighting import step

GENERATOR = torch.Generator().manual_seed(3)
LOGITS = torch.randn(20, 10, generator=GENERATOR)
LABELS_GM = torch.randint(10, (20, 4), generator=GENERATOR)


def one_hot(labels, classes=10):
    return nn.functional.one_hot(labels, classes).float()


class Pooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3 * 16, 10)

    def forward(self, x):
        return self.head(nn.functional.adaptive_avg_pool2d(x, 4).flatten(1))


@pytest.mark.parametrize("scale", [1, 300])
def test_one_hot_targets_score_as_hard_labels_bit_for_bit(scale):
    logits = scale * LOGITS
    assert torch.equal(group_softmax(logits, one_hot(LABELS_GM)), group_softmax(logits, LABELS_GM))
    net = Pooled()
    assert torch.equal(ns_scores(net, IMAGES, one_hot(LABELS)), ns_scores(net, IMAGES, LABELS))
    batch, labels = scale * torch.randn(8, 10, generator=GENERATOR), LABELS[:8]
    assert torch.equal(own_scores(batch, one_hot(labels)), own_scores(batch, labels))


def test_soft_targets_in_the_papers_terms():
    """The probability of a member's target is that of its classes, weighted by their share; then q / sum q as before."""
    smooth = 0.9 * one_hot(LABELS_GM) + 0.01
    q = (torch.softmax(LOGITS.double(), 1)[:, None] * smooth).sum(2)
    torch.testing.assert_close(group_softmax(LOGITS, smooth).double(), q / q.sum(1, keepdim=True), atol=1e-6, rtol=0)
    mixed = torch.zeros(2, 1, 4)
    mixed[0, 0, 1], mixed[0, 0, 3] = 0.3, 0.7
    mixed[1, 0, 2] = 1
    by_hand = papers_scores(torch.tensor([[0.3 * 0.2 + 0.7 * 0.4, 0.3]]), torch.tensor([[0, 1]]))
    logits = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log()
    torch.testing.assert_close(group_softmax(logits, mixed.view(1, 2, 4)), by_hand)


def test_a_class_without_share_says_nothing():
    logits, targets = LOGITS.clone(), one_hot(LABELS_GM % 9)
    expected = group_softmax(logits, targets)
    for value in (float("nan"), float("inf"), -float("inf")):
        logits[:, 9] = value
        assert torch.equal(group_softmax(logits, targets), expected)


def test_no_gradient_flows_into_soft_targets():
    targets = (0.9 * one_hot(LABELS) + 0.01).requires_grad_()
    assert not ns_scores(Pooled(), IMAGES, targets).requires_grad


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_weightings_take_one_hot_targets(name):
    labels = torch.tensor([0, 0, 3, 1, 0, 1, 3, 0])
    logits = torch.randn(8, 4, generator=GENERATOR)
    expected = WEIGHTINGS[name].weigh(step(labels_B=labels, logits_BK=logits))
    found = WEIGHTINGS[name].weigh(step(labels_B=one_hot(labels, 4), logits_BK=logits))
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.ones(16, 10, dtype=torch.long), r"int64 and shape \(16, 10\) are multi-label targets"),
        (torch.ones(16, 10, dtype=torch.bool), "multi-label"),
        (one_hot(LABELS) + one_hot((LABELS + 1) % 10), r"sample 0 sum to 2, not 1.* multi-label"),
        (one_hot(LABELS) * 2 - 0.1, "negative share"),
        (one_hot(LABELS) * float("nan"), "sum to nan"),
        (one_hot(LABELS, 12), "soft targets over 12 classes do not fit a model of 10 classes"),
        (torch.ones(16), "labels must be 16 class ids, one an image, got torch.float32"),
        (torch.ones(16, dtype=torch.bool), "labels must be 16 class ids"),
        (torch.ones(4, 10), r"labels must be 16 class ids, one an image, got torch.float32 of \(4, 10\)"),
    ],
)
def test_bad_targets_are_refused(targets, message):
    with pytest.raises(ValueError, match=message):
        ns_scores(Pooled(), IMAGES, targets)
