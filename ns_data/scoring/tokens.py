"""JoinTokens: the texts of a group become one token sequence, as ``compose`` of an ``NSScorer``.

There is no resize for text. The image analogue, each sample shrunk to 1/m of the input, cuts each text to its share of the
sequence (fit="share"); the other reading joins first and cuts the end off (fit="tail"), where a long first text crowds the
others out. Source: "Darwinian Optimization: Training Deep Networks with Natural Selection", appendix H, which leaves it open.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

FITS = ("share", "tail")


class JoinTokens:
    """``compose(tokens_BL, groups_GM) -> composites_GL``: [start] a [separator] b [separator] ... and padding.

    Args:
        length: tokens of a composite, all included; ``None`` takes the width of the batch, as with images.
        fit: "share": a text is cut to (L - start - m separators) // m tokens; "tail": texts are joined until L is full.
        pad: id of the padding.
        start: ids before the first text, such as BERT's [CLS].
        separator: ids after every text, such as BERT's [SEP]. A convolutional net wants ``start`` and ``separator`` of
            ``(pad,) * (widest kernel - 1)``, with a zero embedding: no filter then sees two texts at once.

    Ids of ``start`` and ``separator`` that the texts bring along are taken out first. A mapping in the manner of Hugging
    Face comes back as one: ``input_ids`` joined, ``attention_mask`` made new, ``token_type_ids`` zero. ``report()`` counts the
    texts that were cut and those of which nothing is left.

    >>> JoinTokens(length=8, separator=(9,))(torch.tensor([[1, 2, 3], [4, 0, 0]]), torch.tensor([[0, 1]]))
    tensor([[1, 2, 3, 9, 4, 9, 0, 0]])
    """

    def __init__(
        self,
        length: int | None = None,
        *,
        fit: str = "share",
        pad: int = 0,
        start: tuple[int, ...] = (),
        separator: tuple[int, ...] = (),
    ) -> None:
        if fit not in FITS:
            raise ValueError(f"fit must be 'share' or 'tail', got {fit!r}")
        self.length, self.fit, self.pad = length, fit, pad
        self.start, self.separator = tuple(start), tuple(separator)
        self._cut: Tensor | int = 0
        self._empty: Tensor | int = 0

    def __call__(self, inputs: Any, groups_GM: Tensor) -> Any:
        if not isinstance(inputs, Mapping):
            return self._join(inputs, None, groups_GM)[0]
        known = ("input_ids", "attention_mask", "token_type_ids")
        for name in inputs:
            if name not in known:
                raise ValueError(f"cannot join input {name!r}: known are {', '.join(known)}; write a compose for others")
        tokens_GL, used_G = self._join(inputs["input_ids"], inputs.get("attention_mask"), groups_GM)
        place_L = torch.arange(tokens_GL.shape[1], device=tokens_GL.device)
        made = {
            "input_ids": tokens_GL,
            "attention_mask": (place_L < used_G[:, None]).long(),
            "token_type_ids": torch.zeros_like(tokens_GL),
        }
        return {name: made[name] for name in inputs}

    def budget(self, length: int, group_size: int) -> int:
        """Tokens left for texts in a composite of ``length``."""
        return length - len(self.start) - group_size * len(self.separator)

    def _join(self, tokens_BL: Tensor, mask_BL: Tensor | None, groups_GM: Tensor) -> tuple[Tensor, Tensor]:
        """Composites (G, L) and how many of their places are used (G)."""
        if tokens_BL.ndim != 2 or tokens_BL.is_floating_point():
            raise ValueError(f"token ids of shape B L are needed, got {tokens_BL.dtype} of shape {tuple(tokens_BL.shape)}")
        (G, M), device = groups_GM.shape, tokens_BL.device
        length = tokens_BL.shape[1] if self.length is None else self.length
        budget = self.budget(length, M)
        if budget < M:
            raise ValueError(
                f"length {length} has no token for each of {M} texts beside {length - budget} special ones: "
                "use a longer sequence or smaller groups"
            )
        special = torch.tensor(sorted({self.pad, *self.start, *self.separator}), device=device)
        content_BL = ~torch.isin(tokens_BL, special)
        if mask_BL is not None:
            content_BL &= mask_BL.bool()
        size_GM = content_BL.sum(1)[groups_GM]
        if self.fit == "share":
            taken_GM = size_GM.clamp(max=budget // M)
        else:
            before_GM = size_GM.cumsum(1) - size_GM
            taken_GM = (budget - before_GM).clamp(min=0).minimum(size_GM)
        self._cut = self._cut + (taken_GM < size_GM).sum()
        self._empty = self._empty + (taken_GM == 0).sum()

        q = len(self.separator)
        end_GM = len(self.start) + (taken_GM + q).cumsum(1) - q  # where each text's separator begins
        rank_GML = (content_BL.cumsum(1) - 1)[groups_GM]
        column_GML = (end_GM - taken_GM)[:, :, None] + rank_GML
        kept_GML = content_BL[groups_GM] & (rank_GML < taken_GM[:, :, None])
        column_GML = column_GML.masked_fill(~kept_GML, length)  # the rest goes to a column that is cut off
        joined = torch.full((G, length + 1), self.pad, dtype=tokens_BL.dtype, device=device)
        joined.scatter_(1, column_GML.reshape(G, -1), tokens_BL[groups_GM].reshape(G, -1))
        if self.start:
            joined[:, : len(self.start)] = torch.tensor(self.start, dtype=tokens_BL.dtype, device=device)
        if q:
            places = (end_GM[:, :, None] + torch.arange(q, device=device)).reshape(G, -1)
            separators = torch.tensor(self.separator, dtype=tokens_BL.dtype, device=device).repeat(M)
            joined.scatter_(1, places, separators.expand(G, -1))
        return joined[:, :length], end_GM[:, -1] + q

    def report(self) -> dict[str, int]:
        """Counts since the last report: texts that were cut, texts of which nothing is left. Synchronises."""
        counts = {"cut_texts": int(self._cut), "empty_texts": int(self._empty)}
        self._cut, self._empty = 0, 0
        return counts
