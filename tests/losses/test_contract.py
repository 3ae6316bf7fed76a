"""What every loss must do, whichever it is: a new one is covered by its entry in LOSSES."""

import inspect

import numpy as np
import pytest
import torch

from ns_data import LOSSES, ClassStats
from ns_data.losses import create_loss

K = 10
STATS = ClassStats(np.array([50, 40, 30, 20, 10, 9, 8, 7, 6, 0]))
FACTS = {"stats": STATS, "num_samples": 100, "seed": 3}
BASE = {name: (name, {}) for name in LOSSES}
VARIANTS = {
    "focal detached, gamma 0.5": ("focal", {"gamma": 0.5, "detach": True}),
    "focal true, gamma 0.5": ("focal", {"gamma": 0.5}),
    "gce unclamped": ("gce", {"min_p": None}),
    "gce truncated": ("gce", {"k": 0.5, "start_prune": 1}),
    "nlnl 7": ("nlnl", {"num_negatives": 7, "weight": None}),
    "sce, first version": ("sce", {"ce_min_p": 1e-7, "rce_min_p": None}),
    "nfl and mae": ("apl", {"active": "nfl", "passive": "mae"}),
    "ngce and mae": ("apl", {"active": "ngce", "passive": "mae"}),
    "low per sample": ("low", {"grad_scale": "per_sample", "lam": 0.5}),
    "anl-fl": ("anl", {"active": "nfl"}),
    "nce and aul": ("aul", {"alpha": 1.0, "beta": 4.0, "a": 6.3, "q": 1.5}),
    "ogc on focal": ("ce_ogc", {"base": "focal"}),
    "ogc on gce": ("ce_ogc", {"base": "gce"}),
}
ALL = {**BASE, **VARIANTS}

# No gradient on samples of another class than their label with logits 100 apart: documented in the losses' files.
NO_PULL_ON_CONFIDENT_MISTAKES = {
    *("gce", "gce unclamped", "gce truncated", "sce, first version", "aul", "ce_eps_mae", "ce_ogc"),
    *("ogc on focal", "ogc on gce", "ngce and mae", "nlnl", "nlnl 7"),
}


def make(case, **facts):
    name, options = ALL[case]
    loss = create_loss(name, options, **{**FACTS, **facts})
    loss.start_epoch(0, 10)
    loss.set_lr(0.1)
    return loss


def ordinary(batch=12, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(batch, K, generator=generator, dtype=torch.float64)
    return logits.to(dtype), torch.randint(0, K - 1, (batch,), generator=generator), torch.arange(batch)


def extreme(dtype):
    """Right and wrong by a gap of 100 and of 200, all equal at 0, 100 and -100."""
    logits = torch.zeros(7, K, dtype=dtype)
    logits[0, 3] = logits[1, 4] = 100
    logits[2], logits[2, 3], logits[3], logits[3, 4] = -100, 100, -100, 100
    logits[5], logits[6] = 100, -100
    return logits, torch.full((7,), 3), torch.arange(7)


def gradient(loss_B, logits):
    return torch.autograd.grad(loss_B.sum(), logits)[0]


@pytest.mark.parametrize("case", ALL)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_finite_at_extreme_logits_in_every_precision(case, dtype):
    logits, labels, ids = extreme(dtype)
    logits.requires_grad_()
    loss_B = make(case)(logits, labels, ids=ids)
    assert loss_B.shape == (7,)
    assert loss_B.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert loss_B.isfinite().all()
    assert gradient(loss_B, logits).isfinite().all()


@pytest.mark.parametrize("case", ALL)
def test_half_precision_is_computed_in_float32(case):
    half, labels, ids = ordinary(dtype=torch.float16)
    torch.testing.assert_close(make(case)(half, labels, ids=ids), make(case)(half.float(), labels, ids=ids), rtol=0, atol=0)


@pytest.mark.parametrize("case", ALL)
def test_autocast_changes_nothing(case):
    logits, labels, ids = ordinary(40)
    plain, cast = with_small_queue(case), with_small_queue(case)
    for loss in (plain, cast):
        loss.start_epoch(0, 10)
        loss.set_lr(0.01)
    for _ in range(4):
        wanted = plain(logits, labels, ids=ids)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(cast(logits, labels, ids=ids), wanted, rtol=0, atol=0)
    assert str(cast.state_dict()) == str(plain.state_dict())


@pytest.mark.parametrize("case", ALL)
def test_float32_is_close_to_float64(case):
    logits, labels, ids = ordinary(dtype=torch.float64)
    wanted = make(case)(logits, labels, ids=ids)
    torch.testing.assert_close(make(case)(logits.float(), labels, ids=ids).double(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", ALL)
def test_gradients_flow(case):
    """They push ordinary samples to their label, and confident mistakes too, unless the loss is documented not to."""
    logits, labels, ids = ordinary(64, torch.float64)
    logits.requires_grad_()
    loss = make(case)
    slope_BK = gradient(loss(logits, labels, ids=ids), logits)
    pushed = (slope_BK.gather(1, labels[:, None]) < 0)[:, 0]
    pushed |= logits.softmax(1).gather(1, labels[:, None])[:, 0] > 0.9  # label smoothing holds them back from there
    assert pushed.all() or (case == "low per sample" and 16 < pushed.sum() < 64)  # which leaves part of a batch out
    torch.testing.assert_close(slope_BK.sum(1), torch.zeros(64, dtype=torch.float64), rtol=0, atol=1e-9)  # a shift is free

    logits, labels, ids = extreme(torch.float32)
    logits.requires_grad_()
    slope_BK = gradient(make(case)(logits, labels, ids=ids), logits)
    assert (slope_BK[[1, 3]].abs().sum(1) > 1e-7).all() == (case not in NO_PULL_ON_CONFIDENT_MISTAKES)
    assert (slope_BK[[4, 5, 6]].abs().sum(1) > 0).any()


# They have a factor without gradient by definition; the expected values hold the gradient of what is left.
PARTLY_DETACHED = ("focal detached, gamma 0.5", "nfl and mae", "anl-fl", "low", "low per sample")


@pytest.mark.parametrize("case", [case for case in ALL if case not in PARTLY_DETACHED])
def test_gradient_equals_finite_differences(case):
    logits, labels, ids = ordinary(6, torch.float64)
    loss = make(case).eval()
    assert torch.autograd.gradcheck(lambda z: loss(z, labels, ids=ids), logits.requires_grad_(), atol=1e-6)


@pytest.mark.parametrize("case", ALL)
def test_a_permuted_batch_gives_permuted_losses(case):
    logits, labels, ids = ordinary()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    loss, permuted = make(case), make(case)
    if ALL[case][0] == "nlnl":  # its random negatives belong to the place in the batch
        negatives = loss.draw(labels, K)
        permuted.draw = lambda labels_B, num_classes: negatives[order]
    wanted = loss(logits, labels, ids=ids)[order]
    torch.testing.assert_close(permuted(logits[order], labels[order], ids=ids[order]), wanted)


@pytest.mark.parametrize("case", ALL)
def test_a_sample_does_not_depend_on_the_others(case):
    logits, labels, ids = ordinary()
    together = make(case)(logits, labels, ids=ids)
    halves = torch.cat([make(case)(logits[part], labels[part], ids=ids[part]) for part in (slice(0, 1), slice(1, 12))])
    if ALL[case][0] == "low":
        assert not torch.allclose(together, halves)
    else:
        same = slice(0, 1) if ALL[case][0] == "nlnl" else slice(None)
        torch.testing.assert_close(together[same], halves[same])


@pytest.mark.parametrize("case", ALL)
def test_global_random_state_is_neither_used_nor_changed(case):
    logits, labels, ids = ordinary()
    values = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        np.random.seed(seed)
        before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
        loss = make(case)
        values.append(torch.stack([loss(logits, labels, ids=ids) for _ in range(3)]))
        assert torch.equal(torch.random.get_rng_state(), before[0])
        assert np.array_equal(np.random.get_state()[1], before[1])
    torch.testing.assert_close(values[0], values[1], rtol=0, atol=0)


def with_small_queue(case):
    name, options = ALL[case]
    return create_loss(name, {**options, **({"queue_size": 30, "every": 4} if name == "ce_ogc" else {})}, **FACTS)


def run(loss, steps, first=0):
    """Training steps over two epochs of ten batches each; the losses of every batch."""
    losses = []
    for step in range(first, first + steps):
        if step % 10 == 0 or step == first:
            loss.start_epoch(step // 10, 10)
        loss.set_lr(0.01)
        logits, labels, _ = ordinary(12, seed=step % 10)
        losses.append(loss(logits, labels, ids=(torch.arange(12) + 12 * (step % 10)) % 100))
    return torch.stack(losses)


@pytest.mark.parametrize("case", ALL)
@pytest.mark.parametrize("stop", [3, 9, 10, 13])
def test_a_restored_loss_goes_on_as_if_never_stopped(case, stop, tmp_path):
    whole, begun, resumed = (with_small_queue(case) for _ in range(3))
    wanted = run(whole, 20)
    run(begun, stop)
    torch.save(begun.state_dict(), tmp_path / "state.pt")
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    torch.testing.assert_close(run(resumed, 20 - stop, first=stop), wanted[stop:], rtol=0, atol=0)
    assert str(resumed.state_dict()) == str(whole.state_dict())


@pytest.mark.parametrize("case", ALL)
def test_evaluation_changes_no_state(case):
    loss = with_small_queue(case)
    run(loss, 5)
    before = str(loss.state_dict())
    loss.eval()
    logits, labels, _ = ordinary(50)
    with torch.no_grad():
        assert loss(logits, labels).isfinite().all()
    assert str(loss.state_dict()) == before


@pytest.mark.parametrize("name", LOSSES)
def test_defaults_and_calls_for_all_alike(name):
    if name == "logit_adjustment":
        with pytest.raises(ValueError, match="needs the class counts"):
            LOSSES[name]()
        loss = LOSSES[name](stats=STATS)
    else:
        loss = LOSSES[name]()
    logits, labels, _ = ordinary()
    loss.start_epoch(0, 10)
    loss.set_lr(0.1)
    assert loss(logits, labels).shape == labels.shape
    assert loss.regularizer(torch.nn.Linear(2, 2)) >= 0
    assert not list(loss.parameters())
    assert inspect.getmodule(LOSSES[name]).__doc__.count("CIFAR") >= (name != "cross_entropy")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("case", ALL)
def test_the_same_on_a_gpu(case):
    logits, labels, ids = ordinary(64)
    on_gpu = make(case).cuda()(logits.cuda(), labels.cuda(), ids=ids.cuda())
    torch.testing.assert_close(on_gpu.cpu(), make(case)(logits, labels, ids=ids), rtol=1e-4, atol=1e-5)
