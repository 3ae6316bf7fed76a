"""linear_scan: h_t = a_t h_(t-1) + b_t over a whole sequence, in a number of Python steps that grows like its root.

The sequence is cut into about sqrt(L) chunks of about sqrt(L) places. All chunks advance together to find how each maps its
start to its end; the ends are passed on from chunk to chunk; all chunks advance together once more from their true starts.
Every step is one operation on all sequences and channels. Used by ``vmamba``.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


@torch.compiler.disable  # its loop would be unrolled into hundreds of operations a block, and compiled that long
def linear_scan(a_BLC: Tensor, b_BLC: Tensor) -> Tensor:
    """States h of shape (B, L, C) of h_t = a_t h_(t-1) + b_t with h_0 = b_0. Differentiable once, keeping a and h only.

    >>> linear_scan(torch.full((1, 4, 1), 0.5), torch.ones(1, 4, 1)).flatten()
    tensor([1.0000, 1.5000, 1.7500, 1.8750])
    """
    states: Tensor = _LinearScan.apply(a_BLC, b_BLC)
    return states


class _LinearScan(torch.autograd.Function):
    """With g_t the gradient that reaches h_t in all: g_t = grad_t + a_(t+1) g_(t+1), again a scan, from the end.

    Then db_t = g_t and da_t = g_t h_(t-1).
    """

    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        return _scan(a, b, backwards=False)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_h: Tensor) -> tuple[Tensor, Tensor]:
        a, h = ctx.saved_tensors
        grad_b = _scan(F.pad(a[:, 1:], (0, 0, 0, 1)), grad_h, backwards=True)
        grad_a = F.pad(grad_b[:, 1:] * h[:, :-1], (0, 0, 1, 0))
        return grad_a, grad_b


def _scan(a: Tensor, b: Tensor, backwards: bool) -> Tensor:
    B, L, C = b.shape
    length = math.isqrt(L - 1) + 1  # of a chunk: sqrt(L), rounded up
    chunks = -(-L // length)
    if chunks * length > L:  # behind the end: forwards it is cut off, backwards it starts from zero
        a, b = (F.pad(x, (0, 0, 0, chunks * length - L)) for x in (a, b))
    a, b = a.reshape(B, chunks, length, C), b.reshape(B, chunks, length, C)
    places, order = list(range(length)), list(range(chunks))
    if backwards:
        places.reverse()
        order.reverse()
    # A chunk maps its start h to decay * h + end.
    end, decay = b[:, :, places[0]], a[:, :, places[0]]
    for t in places[1:]:
        end = torch.addcmul(b[:, :, t], a[:, :, t], end)
        decay = decay * a[:, :, t]
    start = torch.zeros_like(end)
    for this, following in itertools.pairwise(order):
        start[:, following] = torch.addcmul(end[:, this], decay[:, this], start[:, this])
    h = torch.empty_like(b)
    state = start
    for t in places:
        state = torch.addcmul(b[:, :, t], a[:, :, t], state)
        h[:, :, t] = state
    return h.view(B, chunks * length, C)[:, :L]
