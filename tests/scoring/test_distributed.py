"""Two processes over gloo: ledgers that merge, and scoring of DDP-wrapped, sharded and statistics-sharing models."""

import os
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from ns_data import NSScorer, ScoreLedger, ns_scores


def in_two_processes(check, tmp_path):
    """Run ``check(rank)`` in two processes that know each other; an error or a hang in one fails."""
    mp.start_processes(_process, args=(check, str(tmp_path / "rendezvous")), nprocs=2, start_method="spawn")


def _process(rank, check, rendezvous):
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2, timeout=timedelta(seconds=60))
    check(rank)
    dist.barrier()  # no rank leaves while the other still talks to it
    dist.destroy_process_group()


def enter(ledger, ids, scores, epoch):
    ledger.update(torch.tensor(ids), torch.tensor(scores), torch.tensor(ids) % 3, epoch, losses=torch.tensor(scores) * 10)


def check_merge(rank):
    """Two ranks' entries, merged after each epoch, are those of one ledger that saw them all."""
    rng = np.random.default_rng(0)
    alone, ledger = ScoreLedger(12), ScoreLedger(12)
    ledger.merge()
    for epoch in range(3):
        for _ in range(2):
            ids, scores = rng.permutation(10)[:8].tolist(), rng.random(8, dtype=np.float32).tolist()
            enter(ledger, ids[4 * rank : 4 * rank + 4], scores[4 * rank : 4 * rank + 4], epoch)
            enter(alone, ids, scores, epoch)
        if epoch == 1:  # on from a checkpoint
            ledger.merge()
            state, ledger = ledger.state_dict(), ScoreLedger(12)
            ledger.load_state_dict(state)
        ledger.merge()
    for name, column in alone.state_dict().items():
        if name != "last":  # of an id on both ranks within an epoch, the higher rank's is kept
            torch.testing.assert_close(ledger.state_dict()[name], column, rtol=1e-5, atol=0)
    assert np.isnan(ledger.mean_by_sample()[10:]).all()
    everyone = [torch.empty(12) for _ in range(2)]
    dist.all_gather(everyone, ledger.state_dict()["last"])
    torch.testing.assert_close(everyone[0], everyone[1], equal_nan=True, rtol=0, atol=0)

    both = ScoreLedger(3)
    enter(both, [0, 1 + rank], [0.1 + rank, 0.3], epoch=4)
    both.merge()
    assert both.last_by_sample().tolist() == pytest.approx([1.1, 0.3, 0.3])
    assert both.mean_by_sample()[0] == pytest.approx(0.6)
    enter(both, [0] if rank == 0 else [], [0.5] if rank == 0 else [], epoch=5)
    both.merge()
    assert both.last_by_sample().tolist() == pytest.approx([0.5, 0.3, 0.3])
    assert both.state_dict()["count"].tolist() == [3, 1, 1]


def test_ledgers_of_two_ranks_merge_to_the_one_that_saw_all(tmp_path):
    in_two_processes(check_merge, tmp_path)


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 10))


class SharedNorm(nn.SyncBatchNorm):
    """SyncBatchNorm's protocol on the CPU: whoever normalises by the batch waits for the other ranks."""

    def forward(self, x):
        if self.training:
            assert not self.track_running_stats
            sums = torch.stack([x.sum((0, 2, 3)), x.square().sum((0, 2, 3)), x[:, :, 0, 0].numel() * torch.ones(x.shape[1])])
            dist.all_reduce(sums)
        return super(nn.SyncBatchNorm, self).forward(x) if not self.training else x - (sums[0] / sums[2])[:, None, None]

    def _check_input_dim(self, x):
        pass


def check_wrappers(rank):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

    generator = torch.Generator().manual_seed(rank)
    images, labels = torch.randn(8, 3, 8, 8, generator=generator), torch.randint(10, (8,), generator=generator)
    expected = ns_scores(small_net(), images, labels)

    replicated = nn.parallel.DistributedDataParallel(small_net())
    assert torch.equal(ns_scores(replicated, images, labels), expected)

    sharded = fully_shard(small_net(), mesh=init_device_mesh("cpu", (2,)))
    for model in (sharded, FullyShardedDataParallel(small_net(), device_id=torch.device("cpu"))):
        scorer = NSScorer(model)
        torch.testing.assert_close(scorer(images, labels), expected)
        short = 3 if rank else 8  # rank 1 has no group, and takes part all the same
        scores = scorer(images[:short], labels[:short])
        torch.testing.assert_close(scores, expected if rank == 0 else torch.full((3,), 0.25))
        model(images).sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())

    shared = small_net()
    shared[1] = SharedNorm(8)
    shared.train()
    scorer = NSScorer(shared)
    scorer(images, labels)
    scorer(images[:short], labels[:short])
    assert shared[1].training
    assert shared[1].track_running_stats


@pytest.mark.slow
def test_wrapped_and_sharded_models_and_shared_statistics(tmp_path):
    in_two_processes(check_wrappers, tmp_path)
