"""Plain DDP: two epochs of global batches of 16, the ids of each rank written down and the gradients compared."""

import os
import sys

import torch
import torch.distributed as dist
from common import LABELS, OPTIONS, Ids, write
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from ns_data import GroupingBatchSampler, NSCollator, ShuffleSampler

rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
dist.init_process_group("gloo")
sampler = GroupingBatchSampler(ShuffleSampler(LABELS, seed=1), 16 // world, rank=rank, world_size=world, **OPTIONS)
loader = DataLoader(Ids(), batch_sampler=sampler, collate_fn=NSCollator("2x2"), num_workers=1)
model = DistributedDataParallel(torch.nn.Linear(3, 6))
epochs = []
for epoch in range(2):
    sampler.set_epoch(epoch)
    epochs.append([])
    for batch in loader:  # unequal numbers of batches would hang here
        model(batch.images).sum().backward()
        epochs[-1].append(batch.ids.tolist())
write(sys.argv[1], rank, epochs)
dist.barrier()
dist.destroy_process_group()
