"""Lightning: two epochs of ``Trainer.fit`` on two processes, the ids of each rank written down.

Modes: "planned" (our slices, no sampler of Lightning's), "replaced" (Lightning puts its DistributedSampler into ours) and
"outside" (the same, but the loader was made outside a hook, where Lightning forgets labels and layout: it must not train).
"""

import sys

import lightning as L
import torch
from common import LABELS, OPTIONS, Ids, write
from torch.utils.data import DataLoader

from ns_data import GroupingBatchSampler, NSCollator, ShuffleSampler

folder, mode = sys.argv[1], sys.argv[2]


def make_loader(**slice_of_plan):
    sampler = GroupingBatchSampler(ShuffleSampler(LABELS, seed=1), 8, **OPTIONS, **slice_of_plan)
    return DataLoader(Ids(), batch_sampler=sampler, collate_fn=NSCollator("2x2"))


class Data(L.LightningDataModule):
    def train_dataloader(self):
        if mode == "planned":
            return make_loader(rank=self.trainer.global_rank, world_size=self.trainer.world_size)
        return make_loader()


class Model(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(3, 6)
        self.epochs = [[], []]

    def training_step(self, batch, index):
        self.epochs[self.current_epoch].append(batch.ids.tolist())
        return self.net(batch.images).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


trainer = L.Trainer(
    accelerator="cpu",
    devices=2,
    strategy="ddp",
    max_epochs=2,
    use_distributed_sampler=mode != "planned",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
model = Model()
if mode == "outside":
    trainer.fit(model, make_loader())
else:
    trainer.fit(model, datamodule=Data())
write(folder, trainer.global_rank, model.epochs)
