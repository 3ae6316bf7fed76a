"""Natural selection with Hugging Face accelerate, on one process or several.

    python examples/accelerate_plugin.py
    torchrun --nproc_per_node 2 examples/accelerate_plugin.py

``prepare`` deals whole batches to the processes, so the batch sampler keeps ``world_size=1`` and makes the same batches on all
of them. ``drop_last=True``, because accelerate would fill up a short last batch with samples from the epoch's start. A state
saved by accelerate replays the epoch up to its place, which the plan makes exact.
"""

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from digits import long_tailed_digits
from torch.utils.data import DataLoader

from ns_data import ClassBalancedSampler, GroupingBatchSampler, NSCollator, NSScorer, create_model, ns_weights


def main() -> None:
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True)
    dataset, labels = long_tailed_digits()
    batches = GroupingBatchSampler(
        ClassBalancedSampler(labels), 32, drop_last=True, labels=labels, layout="2x2", grouping="class_mixed"
    )
    loader = DataLoader(dataset, batch_sampler=batches, collate_fn=NSCollator("2x2"))
    model = create_model("small_cnn", num_classes=10)
    scorer = NSScorer(model)
    model, loader, optimizer = accelerator.prepare(model, loader, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    for epoch in range(3):
        loader.set_epoch(epoch)  # accelerate passes it on to batches.sampler
        losses = []
        for batch in loader:
            weights_B = ns_weights(scorer(batch.images, batch.labels, batch.groups), sigma=1.0, rho=-1.0)
            loss = (weights_B * F.cross_entropy(model(batch.images), batch.labels, reduction="none")).mean()
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            losses.append(accelerator.gather(loss.detach()).mean())
        accelerator.print(f"epoch {epoch}  loss {torch.stack(losses).mean():.3f}  steps {len(losses)}")


if __name__ == "__main__":
    main()
