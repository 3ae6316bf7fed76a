"""textcnn: one layer of convolutions over word vectors, for texts.

Source: "Convolutional Neural Networks for Sentence Classification", Kim.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TextCNN(nn.Module):
    """Word vectors, convolutions of several widths, ReLU, maximum over the text, dropout, linear head.

    Takes token ids of shape (B, L) of any length; texts shorter than the widest filter are filled up with padding. With
    ``max(widths) - 1`` padding tokens before, between and after joined texts no filter sees two of them, and the logits do
    not depend on the order of the texts.

    Args:
        vocab_size: number of token ids.
        dim: length of a word vector. Vectors are drawn from U(-0.25, 0.25); copy others to ``embedding.weight``.
        filters: filters of each width.
        widths: in words.
        dropout: probability before the head.
        pad_id: the padding token, whose vector is zero and stays so.
    """

    def __init__(
        self,
        num_classes: int,
        vocab_size: int,
        dim: int = 300,
        filters: int = 100,
        widths: Sequence[int] = (3, 4, 5),
        dropout: float = 0.5,
        pad_id: int = 0,
    ) -> None:
        super().__init__()
        self.pad_id = pad_id
        self.max_width = max(widths)
        self.embedding = nn.Embedding(vocab_size, dim, padding_idx=pad_id)
        self.convolutions = nn.ModuleList(nn.Conv1d(dim, filters, width) for width in widths)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(filters * len(widths), num_classes)
        nn.init.uniform_(self.embedding.weight, -0.25, 0.25)
        with torch.no_grad():
            self.embedding.weight[pad_id].zero_()

    def forward(self, tokens_BL: Tensor) -> Tensor:
        missing = self.max_width - tokens_BL.shape[1]
        if missing > 0:
            tokens_BL = F.pad(tokens_BL, (0, missing), value=self.pad_id)
        words_BDL = self.embedding(tokens_BL).transpose(1, 2)
        features = [F.relu(convolution(words_BDL)).amax(dim=2) for convolution in self.convolutions]
        logits_BK: Tensor = self.head(self.dropout(torch.cat(features, dim=1)))
        return logits_BK
