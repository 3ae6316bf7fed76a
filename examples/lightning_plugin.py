"""Natural selection in Lightning, on one process or several.

    python examples/lightning_plugin.py --devices 2

The batch sampler is made inside the ``train_dataloader`` hook, where rank and world size are known, and the trainer is told
not to put a DistributedSampler of its own in its place. Lightning calls ``set_epoch`` on ``batch_sampler.sampler`` by itself,
and ``StatefulDataLoader`` puts the place in the epoch into its checkpoints.
"""

import argparse

import lightning as L
import torch
import torch.nn.functional as F
from digits import long_tailed_digits
from torch import Tensor
from torchdata.stateful_dataloader import StatefulDataLoader

from ns_data import ClassBalancedSampler, GroupedBatch, GroupingBatchSampler, NSCollator, NSScorer, create_model, ns_weights


class NSData(L.LightningDataModule):
    """Batches of competition groups; ``batch_size`` is per process."""

    def __init__(self, batch_size: int = 32) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.dataset, self.labels = long_tailed_digits()

    def train_dataloader(self) -> StatefulDataLoader:
        assert self.trainer is not None
        batches = GroupingBatchSampler(
            ClassBalancedSampler(self.labels),
            self.batch_size,
            labels=self.labels,
            layout="2x2",
            grouping="class_mixed",
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
        )
        return StatefulDataLoader(self.dataset, batch_sampler=batches, collate_fn=NSCollator("2x2"))


class NSClassifier(L.LightningModule):
    """A classifier whose samples compete: the loss of each is weighted by 1 minus its score."""

    def __init__(self) -> None:
        super().__init__()
        self.model = create_model("small_cnn", num_classes=10)
        self.scorer = NSScorer(self.model)

    def training_step(self, batch: GroupedBatch, index: int) -> Tensor:
        weights_B = ns_weights(self.scorer(batch.images, batch.labels, batch.groups), sigma=1.0, rho=-1.0)
        loss = (weights_B * F.cross_entropy(self.model(batch.images), batch.labels, reduction="none")).mean()
        self.log("loss", loss, on_epoch=True, on_step=False, sync_dist=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    trainer = L.Trainer(
        accelerator="cpu",
        devices=options.devices,
        strategy="ddp" if options.devices > 1 else "auto",
        max_epochs=options.epochs,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(NSClassifier(), datamodule=NSData())
    if trainer.is_global_zero:
        print(f"loss {float(trainer.callback_metrics['loss']):.3f} after {trainer.global_step} steps")


if __name__ == "__main__":
    main()
