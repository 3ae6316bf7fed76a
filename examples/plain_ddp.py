"""Natural selection in a plain PyTorch loop, on one process or under DDP.

    python examples/plain_ddp.py
    torchrun --nproc_per_node 2 examples/plain_ddp.py

Every rank gets its slice of the same global batches. The last one may give the ranks unequal numbers of samples, so the loss
of a step is the world size times the local sum over the global count: then DDP's mean over ranks is the mean over samples.
"""

import os

import torch
import torch.distributed as dist
import torch.nn.functional as F
from digits import long_tailed_digits
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from ns_data import ClassBalancedSampler, GroupingBatchSampler, NSCollator, NSScorer, create_model, ns_weights

EPOCHS, GLOBAL_BATCH = 5, 64


def main() -> None:
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world_size > 1:
        dist.init_process_group("gloo")
    torch.manual_seed(0)
    dataset, labels = long_tailed_digits()
    batches = GroupingBatchSampler(
        ClassBalancedSampler(labels),
        GLOBAL_BATCH // world_size,
        labels=labels,
        layout="2x2",
        grouping="class_mixed",
        rank=rank,
        world_size=world_size,
    )
    loader = DataLoader(dataset, batch_sampler=batches, collate_fn=NSCollator("2x2"))
    model: torch.nn.Module = create_model("small_cnn", num_classes=10)
    scorer = NSScorer(model)  # scores the bare model, not the DDP wrapper
    if world_size > 1:
        model = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(EPOCHS):
        batches.set_epoch(epoch)
        total = 0.0
        for batch in loader:
            weights_B = ns_weights(scorer(batch.images, batch.labels, batch.groups), sigma=1.0, rho=-1.0)
            loss_B = F.cross_entropy(model(batch.images), batch.labels, reduction="none")
            count = torch.tensor(float(len(loss_B)))
            if world_size > 1:
                dist.all_reduce(count)
            loss = world_size * (weights_B * loss_B).sum() / count
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        if rank == 0:
            print(f"epoch {epoch}  loss {total / len(loader):.3f}  share of the data seen {batches.report.share_seen:.2f}")
    if world_size > 1:
        dist.barrier()  # nobody leaves while another still talks to it
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
