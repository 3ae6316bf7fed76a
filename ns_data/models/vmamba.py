"""vmamba_t: VMamba-T, a network of state-space blocks that read an image in four directions; in plain PyTorch.

It is the variant "s1l8" of 30.2 million parameters: one state a channel, no gate, depths 2, 2, 8, 2. Parameters have the
names of the official checkpoints, which load strictly. Inside, images lie channels last (B, H, W, D), so that every
normalisation and projection is a plain one. Source: "VMamba: Visual State Space Model", Liu, Tian, Zhao, Yu, Xie, Wang, Ye,
Jiao and Liu.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ns_data.models.scan import linear_scan

DIRECTIONS = 4


class VMamba(nn.Module):
    """VMamba for images of any size.

    Linear layers from N(0, 0.02^2) with zero bias, convolutions as torch does, the state space as ``SS2D`` says.

    Args:
        dim: channels of the first stage, doubled from stage to stage.
        depths: blocks of each stage; a stage after the first begins by halving the image.
        drop_path: probability that the last block's branches are left out of a sample; it grows linearly from 0.
    """

    def __init__(self, num_classes: int, dim: int = 96, depths: Sequence[int] = (2, 2, 8, 2), drop_path: float = 0.2) -> None:
        super().__init__()
        total = sum(depths)
        rates = [drop_path * index / max(total - 1, 1) for index in range(total)]
        self.patch_embed = _patch_embed(dim)
        self.layers = nn.ModuleList()
        for stage, depth in enumerate(depths):
            width = dim * 2**stage
            blocks = nn.Sequential(*(Block(width, rates.pop(0)) for _ in range(depth)))
            last = stage == len(depths) - 1
            downsample = nn.Identity() if last else _downsample(width)
            self.layers.append(nn.Sequential(OrderedDict(blocks=blocks, downsample=downsample)))
        self.classifier = nn.Sequential(
            OrderedDict(norm=nn.LayerNorm(width), pool=MeanOverPlaces(), head=nn.Linear(width, num_classes))
        )
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        self.register_load_state_dict_pre_hook(_flatten_1x1_convolutions)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        x_BHWD = self.patch_embed(images_BCHW)
        for layer in self.layers:
            x_BHWD = layer(x_BHWD)
        logits_BK: Tensor = self.classifier(x_BHWD)
        return logits_BK


class Block(nn.Module):
    """x + SS2D(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, dim: int, drop_path: float) -> None:
        from torchvision.ops import StochasticDepth  # only here: torchvision takes its time

        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.op = SS2D(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(OrderedDict(fc1=nn.Linear(dim, 4 * dim), act=nn.GELU(), fc2=nn.Linear(4 * dim, dim)))
        self.drop_path = StochasticDepth(drop_path, "row")

    def forward(self, x_BHWD: Tensor) -> Tensor:
        x_BHWD = x_BHWD + self.drop_path(self.op(self.norm(x_BHWD)))
        x_BHWD = x_BHWD + self.drop_path(self.mlp(self.norm2(x_BHWD)))
        return x_BHWD


class SS2D(nn.Module):
    """The selective state space over an image: project, mix 3x3 neighbours, scan in four directions, sum, project.

    In each direction and channel, with u the input along the scan and dt, B, C made from it at every place,

        h_t = exp(dt_t A) h_(t-1) + dt_t B_t u_t,      y_t = C_t h_t + D u_t,      A = -exp(A_logs),

    computed in float32 or better under every precision. The projection to dt has rank ceil(dim / 16). At the start A = -1,
    D = 1, and the bias puts dt between 0.001 and 0.1, log-uniformly.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.rank = math.ceil(dim / 16)
        self.in_proj = nn.Linear(dim, dim, bias=False)
        self.conv2d = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)
        self.x_proj_weight = nn.Parameter(_uniform((DIRECTIONS, self.rank + 2, dim), dim**-0.5))
        self.dt_projs_weight = nn.Parameter(_uniform((DIRECTIONS, dim, self.rank), self.rank**-0.5))
        self.dt_projs_bias = nn.Parameter(_inverse_softplus(_log_uniform((DIRECTIONS, dim), 0.001, 0.1)))
        self.A_logs = nn.Parameter(torch.zeros(DIRECTIONS * dim, 1))
        self.Ds = nn.Parameter(torch.ones(DIRECTIONS * dim))
        self.out_norm = nn.LayerNorm(dim)
        self.out_proj = nn.Linear(dim, dim, bias=False)

    def forward(self, x_BHWD: Tensor) -> Tensor:
        x_BDHW = self.conv2d(self.in_proj(x_BHWD).permute(0, 3, 1, 2))
        x_BHWD = F.silu(x_BDHW.permute(0, 2, 3, 1))
        y_BHWD = self._scan(x_BHWD).to(x_BHWD.dtype)
        out_BHWD: Tensor = self.out_proj(self.out_norm(y_BHWD))
        return out_BHWD

    def _scan(self, x_BHWD: Tensor) -> Tensor:
        B, H, W, D = x_BHWD.shape
        K, L = DIRECTIONS, H * W
        u_KND = cross_scan(x_BHWD).view(K, B * L, D)
        projected = torch.bmm(u_KND, self.x_proj_weight.transpose(1, 2))
        dt_KNR, b_KN1, c_KN1 = projected.split([self.rank, 1, 1], dim=2)
        dt_KND = torch.bmm(dt_KNR, self.dt_projs_weight.transpose(1, 2))

        precision = torch.promote_types(x_BHWD.dtype, torch.float32)
        u_KND, b_KN1, c_KN1, dt_KND = (x.to(precision) for x in (u_KND, b_KN1, c_KN1, dt_KND))
        dt_KND = F.softplus(dt_KND + self.dt_projs_bias[:, None])
        decay_KND = torch.exp(dt_KND * -torch.exp(self.A_logs.view(K, 1, D).to(precision)))
        h_KND = linear_scan(
            decay_KND.view(K * B, L, D),
            (dt_KND * b_KN1 * u_KND).view(K * B, L, D),
        ).reshape(K, B * L, D)
        y_KND = torch.addcmul(h_KND * c_KN1, u_KND, self.Ds.view(K, 1, D))
        return cross_merge(y_KND.view(K, B, L, D), H, W)


def cross_scan(x_BHWD: Tensor) -> Tensor:
    """The places of an image in four orders, shape (4, B, L, D): row by row, column by column, and both from the end."""
    rows_BLD = x_BHWD.flatten(1, 2)
    columns_BLD = x_BHWD.transpose(1, 2).flatten(1, 2)
    return torch.stack([rows_BLD, columns_BLD, rows_BLD.flip(1), columns_BLD.flip(1)])


def cross_merge(y_KBLD: Tensor, height: int, width: int) -> Tensor:
    """The sum of the four directions at every place, shape (B, H, W, D)."""
    rows_BLD = y_KBLD[0] + y_KBLD[2].flip(1)
    columns_BLD = y_KBLD[1] + y_KBLD[3].flip(1)
    return rows_BLD.unflatten(1, (height, width)) + columns_BLD.unflatten(1, (width, height)).transpose(1, 2)


class ChannelsLast(nn.Module):
    """(B, D, H, W) as (B, H, W, D)."""

    def forward(self, x_BDHW: Tensor) -> Tensor:
        return x_BDHW.permute(0, 2, 3, 1)


class ChannelsFirst(nn.Module):
    """(B, H, W, D) as (B, D, H, W)."""

    def forward(self, x_BHWD: Tensor) -> Tensor:
        return x_BHWD.permute(0, 3, 1, 2)


class MeanOverPlaces(nn.Module):
    """(B, H, W, D) to (B, D)."""

    def forward(self, x_BHWD: Tensor) -> Tensor:
        return x_BHWD.mean(dim=(1, 2))


def _patch_embed(dim: int) -> nn.Sequential:
    """Images (B, 3, H, W) to (B, H/4, W/4, dim)."""
    half = nn.Conv2d(3, dim // 2, 3, stride=2, padding=1)
    quarter = nn.Conv2d(dim // 2, dim, 3, stride=2, padding=1)
    return nn.Sequential(
        *(half, ChannelsLast(), nn.LayerNorm(dim // 2), ChannelsFirst(), nn.GELU()),
        *(quarter, ChannelsLast(), nn.LayerNorm(dim)),
    )


def _downsample(dim: int) -> nn.Sequential:
    """(B, H, W, dim) to (B, H/2, W/2, 2 dim)."""
    halve = nn.Conv2d(dim, 2 * dim, 3, stride=2, padding=1)
    return nn.Sequential(ChannelsFirst(), halve, ChannelsLast(), nn.LayerNorm(2 * dim))


def _uniform(shape: tuple[int, ...], bound: float) -> Tensor:
    return torch.empty(shape).uniform_(-bound, bound)


def _log_uniform(shape: tuple[int, ...], low: float, high: float) -> Tensor:
    return torch.empty(shape).uniform_(math.log(low), math.log(high)).exp()


def _inverse_softplus(x: Tensor) -> Tensor:
    return x + torch.log(-torch.expm1(-x))


def _flatten_1x1_convolutions(module: nn.Module, state: dict[str, Any], prefix: str, *args: Any) -> None:
    """Checkpoints may hold the linear layers as 1x1 convolutions, (out, in, 1, 1)."""
    for key, own in module.state_dict(prefix=prefix).items():
        if key in state and own.ndim == 2 and state[key].ndim == 4:
            state[key] = state[key].flatten(1)
