"""PerSampleLoss: what the training loop may ask of every loss, so that it knows none by name."""

from __future__ import annotations

from torch import Tensor, nn


class PerSampleLoss(nn.Module):
    """``forward(logits_BK, labels_B, *, ids=None) -> loss_B``, in float32 or better. The calls below are for all alike."""

    def forward(self, logits_BK: Tensor, labels_B: Tensor, *, ids: Tensor | None = None) -> Tensor:
        raise TypeError(f"{type(self).__name__} must say how to compute the loss")

    def start_epoch(self, epoch: int, num_epochs: int) -> None:
        """Called before each epoch."""

    def set_lr(self, lr: float) -> None:
        """Called before each step with the learning rate of the first parameter group."""

    def __call__(self, logits_BK: Tensor, labels_B: Tensor, *, ids: Tensor | None = None) -> Tensor:
        loss_B: Tensor = super().__call__(logits_BK, labels_B, ids=ids)
        return loss_B


def at_least_float32(logits: Tensor) -> Tensor:
    """Half-precision logits as float32; others unchanged."""
    return logits.float() if logits.element_size() < 4 else logits
