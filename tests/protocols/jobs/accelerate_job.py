"""accelerate: two epochs through ``prepare``, the ids of each rank written down."""

import sys

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from common import LABELS, OPTIONS, Ids, write
from torch.utils.data import DataLoader

from ns_data import GroupingBatchSampler, NSCollator, ShuffleSampler

folder, split = sys.argv[1], sys.argv[2] == "split"
accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(split_batches=split))
sampler = GroupingBatchSampler(ShuffleSampler(LABELS, seed=1), 16, True, **OPTIONS)
loader = DataLoader(Ids(), batch_sampler=sampler, collate_fn=NSCollator("2x2"))
model, loader = accelerator.prepare(torch.nn.Linear(3, 6), loader)
epochs = []
for epoch in range(2):
    loader.set_epoch(epoch)
    epochs.append([])
    for batch in loader:
        accelerator.backward(model(batch.images).sum())
        epochs[-1].append(batch.ids.tolist())
write(folder, accelerator.process_index, epochs)
accelerator.end_training()
