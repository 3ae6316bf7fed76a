"""The options of NSScorer: what each changes, and that none of them leaves a trace in the model."""

import copy

import pytest
import torch
from torch import nn

from ns_data import NSScorer, ScoreLedger, group_softmax, ns_scores, stitch
from ns_data.scoring.modes import scoring_mode
from tests.scoring.test_scorer import IMAGES, LABELS, SmallNet, snapshot

EAGER = {"backend": "eager"}
OPTIONS = {
    "exact": {},
    "running": {"batch_norm": "running"},
    "bfloat16": {"dtype": torch.bfloat16},
    "channels_last": {"channels_last": True},
    "compile": {"compile": EAGER},
    "every": {"every": 2},
    "scale": {"scale": 0.5},
    "placements": {"placements": 4},
    "compose": {"compose": lambda images, groups: stitch(images, "2x2", groups)},
}
IDS = torch.arange(16)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return SmallNet()


class Wrapping(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net


def make(net, options, device="cpu"):
    ledger = ScoreLedger(16, device=device) if "every" in options else None
    return NSScorer(net, ledger=ledger, **options)


def score(scorer):
    return scorer(IMAGES, LABELS, ids_B=IDS)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("training", [True, False])
def test_no_option_leaves_a_trace(net, name, training):
    net.train(training)
    state, modes, rng = snapshot(net)
    scorer = make(net, OPTIONS[name])
    for _ in range(3):
        scores = score(scorer)
        torch.testing.assert_close(scores.view(4, 4).sum(1), torch.ones(4))
    new_state, new_modes, new_rng = snapshot(net)
    assert all(torch.equal(state[key], new_state[key]) for key in state)
    assert modes == new_modes
    assert torch.equal(rng, new_rng)
    assert not scores.requires_grad
    assert scores.dtype == torch.float32
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize("name", OPTIONS)
def test_gradients_are_those_of_constant_weights(net, name):
    """The weighted loss's gradient, taken through the scores and by hand from detached weights, is the same to the bit."""
    net.eval()  # no dropout between the two
    images = IMAGES.clone().requires_grad_()
    scores = make(net, OPTIONS[name])(images, LABELS, ids_B=IDS)
    loss = nn.functional.cross_entropy(net(images), LABELS, reduction="none")
    wanted = [images, *net.parameters()]
    through = torch.autograd.grad(((1.5 - scores) * loss).mean(), wanted, retain_graph=True)
    constants = torch.tensor([1.5 - s for s in scores.tolist()])
    by_hand = torch.autograd.grad((constants * loss).mean(), wanted)
    assert all(torch.equal(a, b) for a, b in zip(through, by_hand, strict=True))


def test_autocast_dtype_is_the_scorers_or_the_loops(net):
    class Recording(Wrapping):
        def forward(self, x):
            seen.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)
            return self.net(x)

    seen = []
    score(NSScorer(Recording(net)))
    score(NSScorer(Recording(net), dtype=torch.float16))
    with torch.autocast("cpu", torch.bfloat16):
        score(NSScorer(Recording(net)))
        score(NSScorer(Recording(net), dtype=torch.float16))
        exact = score(NSScorer(Recording(net), dtype=torch.float32))
    assert seen == [None, torch.float16, torch.bfloat16, torch.float16, None]
    assert torch.equal(exact, ns_scores(net, IMAGES, LABELS))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), scoring_mode(net, "batch"):
        logits = net(stitch(IMAGES, "2x2"))
    assert torch.equal(score(NSScorer(net, dtype=torch.bfloat16)), group_softmax(logits, LABELS.view(4, 4)).reshape(-1))


def test_half_precision_that_overflows_is_neutral_and_named():
    class Large(nn.Module):
        def forward(self, x):
            logits = torch.zeros(x.shape[0], 10)
            logits[3] = 1e5
            return logits.half()

    scorer = NSScorer(Large(), dtype=torch.float16)
    scores = score(scorer)
    assert scores[12:].tolist() == [0.25] * 4
    with pytest.warns(UserWarning, match=r"1 groups .* step 0, group 3: .* overflowed: score with dtype=torch.float32"):
        assert scorer.report()["invalid_groups"] == 1


def test_composites_keep_the_memory_format_of_the_images_or_get_the_one_asked_for(net):
    seen = []

    class Recording(Wrapping):
        def forward(self, x):
            seen.append(x.is_contiguous(memory_format=torch.channels_last))
            return self.net(x)

    expected = ns_scores(net, IMAGES, LABELS)
    for images, option in [(IMAGES, False), (IMAGES, True), (IMAGES.contiguous(memory_format=torch.channels_last), False)]:
        torch.testing.assert_close(NSScorer(Recording(net), channels_last=option)(images, LABELS), expected)
    assert seen == [False, True, True]


def test_a_compiled_pass_equals_the_plain_one(net):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    expected = ns_scores(net, IMAGES, LABELS)
    scorer = NSScorer(net, compile={"backend": backend})
    for _ in range(2):
        torch.testing.assert_close(score(scorer), expected)
    assert len(graphs) == 1
    net.train()
    net(IMAGES)  # its own pass is another graph
    torch.testing.assert_close(score(scorer), expected)
    net.compile(backend="eager")  # in place
    torch.testing.assert_close(ns_scores(net, IMAGES, LABELS), expected)


def test_a_lone_composite_is_neutral_in_a_compiled_pass():
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))
    scorer = NSScorer(model, compile=EAGER)
    assert scorer(IMAGES[:4], LABELS[:4]).tolist() == [0.25] * 4
    assert scorer.report()["lone_composites"] == 1


@pytest.mark.slow
def test_a_pass_compiled_to_code_equals_the_plain_one(net):
    torch.testing.assert_close(score(NSScorer(net, compile=True)), ns_scores(net, IMAGES, LABELS), atol=1e-5, rtol=1e-4)


def test_every_scores_each_kth_step_and_lets_the_last_scores_compete_between():
    class Ranked(nn.Module):
        """The logit of a class is its number, so that scores are known by hand."""

        passes = 0

        def forward(self, x):
            self.passes += 1
            return torch.arange(10.0).expand(x.shape[0], 10)

    model, ledger = Ranked(), ScoreLedger(30)
    scorer = NSScorer(model, layout="1x2", every=2, ledger=ledger)
    scorer.start_epoch(5)
    images, labels = IMAGES[:4], torch.tensor([0, 1, 2, 4])
    first = scorer(images, labels, ids_B=torch.tensor([20, 21, 22, 23]))
    low, high = [1 / (1 + torch.e**d) for d in (1, 2)]
    assert first.tolist() == pytest.approx([low, 1 - low, high, 1 - high])
    assert ledger.state_dict()["epoch"][20:24].tolist() == [5] * 4
    second = scorer(images, labels, ids_B=torch.tensor([20, 22, 21, 7]))  # ids 20 and 22 meet; 7 was never scored
    assert second.tolist() == pytest.approx(
        [low / (low + high), high / (low + high), (1 - low) / (1.5 - low), 0.5 / (1.5 - low)]
    )
    assert model.passes == 1
    assert ledger.mean_by_sample()[7] != ledger.mean_by_sample()[7], "reused scores are not entered"
    assert ledger.state_dict()["count"].sum() == 4
    assert scorer.report()["unscored"] == 1
    resumed = NSScorer(model, layout="1x2", every=2, ledger=ledger)
    resumed.load_state_dict({**scorer.state_dict(), "step": 3})
    resumed(images, labels, ids_B=torch.tensor([20, 21, 22, 23]))
    assert model.passes == 1
    resumed(images, labels, ids_B=torch.tensor([20, 21, 22, 23]))
    assert model.passes == 2
    assert scorer.state_dict() == {"step": 2}


def test_the_ledger_gets_grouped_and_valid_scores_only(net):
    class Poisoned(nn.Module):
        def forward(self, x):
            return net(x).index_fill(0, torch.tensor([1]), float("nan"))

    ledger = ScoreLedger(100)
    scorer = NSScorer(Poisoned(), ledger=ledger)
    scores = scorer(IMAGES[:14], LABELS[:14], ids_B=IDS[:14] + 50)
    seen = [50, 51, 52, 53, 58, 59, 60, 61]
    assert ledger.state_dict()["count"].nonzero()[:, 0].tolist() == seen
    torch.testing.assert_close(torch.tensor(ledger.last_by_sample()[seen]), scores[torch.tensor(seen) - 50])
    assert ledger.labels()[seen].tolist() == LABELS[torch.tensor(seen) - 50].tolist()


def test_scale_scores_smaller_composites(net):
    composites = stitch(IMAGES, "2x2")
    assert stitch(IMAGES, "2x2", scale=0.5).shape == (4, 3, 8, 8)
    small = nn.functional.interpolate(composites, size=(8, 8), mode="bilinear")
    torch.testing.assert_close(stitch(IMAGES, "2x2", scale=0.5), small)
    torch.testing.assert_close(stitch(IMAGES, "2x2", scale=0.7)[0, 0].mean(), composites[0, 0].mean(), atol=0.1, rtol=0)
    with torch.no_grad(), scoring_mode(net, "batch"):
        expected = group_softmax(net(small), LABELS.view(4, 4)).reshape(-1)
    torch.testing.assert_close(score(NSScorer(net, scale=0.5)), expected)
    assert not torch.allclose(expected, ns_scores(net, IMAGES, LABELS), atol=1e-3)


def test_a_model_that_cannot_take_smaller_composites_is_named():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 10))
    with pytest.raises(ValueError, match=r"does not take composites of 8x8 pixels .*: use scale=1"):
        score(NSScorer(model, scale=0.5))


@pytest.mark.parametrize("r", [2, 3, 4])
def test_placements_are_the_mean_over_rolled_groups(net, r):
    groups = torch.randperm(16, generator=torch.Generator().manual_seed(1)).view(4, 4)
    one_by_one = [ns_scores(net, IMAGES, LABELS, groups_GM=groups.roll(i * 4 // r, 1), batch_norm="running") for i in range(r)]
    scorer = NSScorer(net, placements=r, batch_norm="running")
    torch.testing.assert_close(scorer(IMAGES, LABELS, groups), torch.stack(one_by_one).mean(0))
    if r == 4:  # all of them: where a member stands in its group no longer matters
        torch.testing.assert_close(scorer(IMAGES, LABELS, groups.roll(1, 1)), scorer(IMAGES, LABELS, groups))


def test_compose_makes_the_models_arguments(net):
    class Two(Wrapping):
        def forward(self, left, right):
            return self.net(torch.cat([left, right], 3))

    def halves(images, groups):
        composites = stitch(images, "2x2", groups)
        return composites[..., :8], composites[..., 8:]

    expected = ns_scores(net, IMAGES, LABELS)
    assert torch.equal(NSScorer(Two(net), compose=halves)(IMAGES, LABELS), expected)
    named = NSScorer(Two(net), compose=lambda images, groups: dict(zip(("left", "right"), halves(images, groups), strict=True)))
    assert torch.equal(named(IMAGES, LABELS), expected)


def test_a_frozen_batch_norm_stays_on_its_running_statistics(net):
    net.train()
    frozen = net.stem[1].eval()
    frozen.running_mean += 3
    reference = copy.deepcopy(net)
    reference.head[2].eval()
    reference.drop_path.eval()
    with torch.no_grad():
        expected = group_softmax(reference(stitch(IMAGES, "2x2")), LABELS.view(4, 4)).reshape(-1)
    torch.testing.assert_close(ns_scores(net, IMAGES, LABELS), expected)
    assert not frozen.training
    frozen.train()
    assert not torch.allclose(ns_scores(net, IMAGES, LABELS), expected, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0, "ledger": ScoreLedger(1)}, "every must be at least 1, got 0"),
        ({"every": 3}, "every=3 takes the scores between two passes from a ledger"),
        ({"placements": 5}, "1 to 4 cyclic placements, got 5"),
        ({"placements": 0}, "placements, got 0"),
        ({"scale": 0.0}, "scale must be above 0 and at most 1, got 0"),
        ({"scale": 2.0}, "scale must be above 0 and at most 1, got 2"),
        ({"scale": 0.5, "compose": stitch}, "with compose= they have no effect"),
    ],
)
def test_options_that_make_no_sense_are_refused(net, options, message):
    with pytest.raises(ValueError, match=message):
        NSScorer(net, **options)


def test_a_ledger_needs_ids(net):
    with pytest.raises(ValueError, match="pass ids_B, 16 of them"):
        NSScorer(net, ledger=ScoreLedger(16))(IMAGES, LABELS)


def test_a_scale_that_leaves_a_cell_without_pixels_is_refused(net):
    with pytest.raises(ValueError, match="2x2 pixels are too small for a layout of 4x4"):
        NSScorer(net, layout="4x4", scale=0.125)(IMAGES, LABELS)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_on_a_gpu_agrees_with_the_cpu(net, name):
    expected = score(make(copy.deepcopy(net), OPTIONS[name]))
    scorer = make(net.cuda(), OPTIONS[name], "cuda")
    images, labels, ids = IMAGES.cuda(), LABELS.cuda(), IDS.cuda()
    scores = scorer(images, labels, torch.arange(16).view(4, 4), ids)
    torch.testing.assert_close(scores.cpu(), expected, atol=2e-2 if name == "bfloat16" else 1e-3, rtol=0)
    torch.cuda.set_sync_debug_mode("error")  # from the second batch on, nothing waits for the device
    try:
        scorer(images, labels, ids_B=ids)
    finally:
        torch.cuda.set_sync_debug_mode("default")
