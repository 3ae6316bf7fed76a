"""Natural selection in the Hugging Face Trainer: a loader of groups and a loss of one's own.

    python examples/huggingface_trainer.py

The Trainer expects batches as dicts with the model's argument names, so the collator's result is put in one. It resumes in the
middle of an epoch by making the batches anew and passing over those already seen, which the plan makes exact.
"""

import tempfile
from typing import Any

import torch
import torch.nn.functional as F
from digits import long_tailed_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from ns_data import ClassBalancedSampler, GroupingBatchSampler, NSCollator, NSScorer, create_model, ns_weights


class Classifier(nn.Module):
    """Images to logits, by the keyword arguments that the Trainer passes."""

    def __init__(self) -> None:
        super().__init__()
        self.net = create_model("small_cnn", num_classes=10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images)
        return logits


class NSTrainer(Trainer):
    """A Trainer whose training samples compete in groups of 2x2."""

    def __init__(self, *args: Any, labels: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.labels = labels
        self.scorer = NSScorer(self.model.net)

    def get_train_dataloader(self) -> DataLoader:
        batches = GroupingBatchSampler(
            ClassBalancedSampler(self.labels, seed=self.args.seed),
            self.args.train_batch_size,
            self.args.dataloader_drop_last,
            labels=self.labels,
            layout="2x2",
            grouping="class_mixed",
        )
        join = NSCollator("2x2")
        loader = DataLoader(
            self.train_dataset,
            batch_sampler=batches,
            collate_fn=lambda samples: dict(zip(("images", "labels", "ids", "groups", "skipped"), join(samples), strict=True)),
        )
        return self.accelerator.prepare(loader)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **_: Any) -> Any:
        images_BCHW, labels_B = inputs["images"], inputs["labels"]
        weights_B = ns_weights(self.scorer(images_BCHW, labels_B, inputs["groups"]), sigma=1.0, rho=-1.0)
        logits_BK = model(images_BCHW)
        loss = (weights_B * F.cross_entropy(logits_BK, labels_B, reduction="none")).mean()
        return (loss, {"logits": logits_BK}) if return_outputs else loss


def main() -> None:
    torch.manual_seed(0)
    dataset, labels = long_tailed_digits()
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder, num_train_epochs=3, per_device_train_batch_size=32, learning_rate=3e-3, use_cpu=True, report_to="none",
            save_strategy="no", logging_strategy="epoch", remove_unused_columns=False, disable_tqdm=True,
        )  # fmt: skip
        result = NSTrainer(Classifier(), settings, train_dataset=dataset, labels=labels).train()
    print(f"loss {result.training_loss:.3f} after {result.global_step} steps")


if __name__ == "__main__":
    main()
