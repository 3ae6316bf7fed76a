"""stitch: the images of a group become one picture of the input size.

Scaling each image to its cell first equals stitching first and scaling the large picture, exactly, when the cells divide
the picture (bilinear, no antialiasing: no sample reaches over a cell's edge), and costs a fraction. Other sizes are stitched
first. Source: "Darwinian Optimization: Training Deep Networks with Natural Selection", section 3.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ns_data.layout import Layout


def stitch(images_BCHW: Tensor, layout: Layout | str, groups_GM: Tensor | None = None, *, scale: float = 1.0) -> Tensor:
    """Composites of the groups, shape (G, C, H, W), in the memory format of the images.

    Args:
        images_BCHW: a batch of images of one size, floating point.
        layout: ``Layout`` or "RxC".
        groups_GM: positions of each group's members, in cell order; ``None`` takes consecutive members and leaves the
            last B mod M images out.
        scale: above 0, at most 1: the finished composites are scaled down to this share of their height and width.

    Raises:
        ValueError: for images that are not a floating-point batch, smaller than the layout, or too few for one group.
    """
    layout = Layout.parse(layout)
    check_scale(scale)
    _check_images(images_BCHW)
    return stitch_checked(images_BCHW, layout, check_groups(groups_GM, images_BCHW, layout.group_size), scale)


def stitch_checked(images_BCHW: Tensor, layout: Layout, groups_GM: Tensor, scale: float) -> Tensor:
    """``stitch`` for groups and a scale that were looked at already; a sample may be in several groups."""
    _check_images(images_BCHW)
    H, W = images_BCHW.shape[2:]
    height, width = max(1, round(H * scale)), max(1, round(W * scale))
    if layout.rows > height or layout.cols > width:
        raise ValueError(
            f"images of {height}x{width} pixels are too small for a layout of {layout}: a cell would have no pixel"
        )
    if not _divides(layout, H, W):
        return _resize(_resize(_place(images_BCHW, layout, groups_GM), H, W), height, width)
    cells_BChw = _resize(images_BCHW, H // layout.rows, W // layout.cols)
    if not _divides(layout, height, width):
        return _resize(_place(cells_BChw, layout, groups_GM), height, width)
    return _place(_resize(cells_BChw, height // layout.rows, width // layout.cols), layout, groups_GM)


def check_scale(scale: float) -> None:
    if not 0 < scale <= 1:
        raise ValueError(f"scale must be above 0 and at most 1, got {scale:g}: it is the size of a composite beside an input")


def check_groups(groups_GM: Tensor | None, inputs: Tensor, group_size: int) -> Tensor:
    """``groups_GM`` on the device of ``inputs``, or consecutive groups of its B rows for ``None``.

    Raises ``ValueError`` for groups of another size than the layout's, and on the CPU for positions outside the batch or
    in two groups; on a GPU that look would wait for the device, so that ``NSScorer`` takes it once.
    """
    batch_size = inputs.shape[0]
    if groups_GM is None:
        num_groups = batch_size // group_size
        if num_groups == 0:
            raise ValueError(
                f"{batch_size} images cannot fill one group of {group_size}: use a larger batch, drop_last or a smaller layout"
            )
        return torch.arange(num_groups * group_size, device=inputs.device).view(num_groups, group_size)
    if groups_GM.ndim != 2 or groups_GM.shape[1] != group_size:
        raise ValueError(
            f"groups of shape {tuple(groups_GM.shape)} do not fit a layout of {group_size} members: "
            "the collator and the scorer need the same layout"
        )
    if groups_GM.device.type == "cpu":
        check_positions(groups_GM, batch_size)
    return groups_GM.to(inputs.device, non_blocking=True)


def check_positions(groups_GM: Tensor, batch_size: int) -> None:
    """Refuse a position that is not in the batch, and one that is in two groups or twice in one."""
    if groups_GM.numel() == 0:
        return
    low, high = (int(bound) for bound in groups_GM.aminmax())
    if low < 0 or high >= batch_size:
        raise ValueError(
            f"group index {low if low < 0 else high} is out of range for a batch of {batch_size}: groups list positions in "
            "the batch, not sample ids"
        )
    times = torch.bincount(groups_GM.reshape(-1))
    if int(times.max()) > 1:
        raise ValueError(
            f"position {int(times.argmax())} of the batch is {int(times.max())} times in the groups: a sample competes once"
        )


def _check_images(images_BCHW: Tensor) -> None:
    if images_BCHW.ndim != 4 or not images_BCHW.is_floating_point():
        raise ValueError(
            f"stitch needs a floating-point batch of shape B C H W, got {images_BCHW.dtype} of shape "
            f"{tuple(images_BCHW.shape)}: convert and normalise the images first"
        )


def _divides(layout: Layout, height: int, width: int) -> bool:
    return height % layout.rows == 0 and width % layout.cols == 0


def _resize(images_BCHW: Tensor, height: int, width: int) -> Tensor:
    """Bilinear, corners not aligned, no antialiasing: by torch's own kernel, whose rounding the paper's recipe has too."""
    if images_BCHW.shape[2:] == (height, width):
        return images_BCHW
    return F.interpolate(images_BCHW, size=(height, width), mode="bilinear", align_corners=False)


def _place(cells_BChw: Tensor, layout: Layout, groups_GM: Tensor) -> Tensor:
    """Lay the members of each group out in its grid: (G, C, R h, C w)."""
    G, (C, h, w), (rows, cols) = groups_GM.shape[0], cells_BChw.shape[1:], (layout.rows, layout.cols)
    last = cells_BChw.stride(1) == 1 and C > 1
    composites_GCHW = torch.empty(
        (G, C, rows * h, cols * w),
        dtype=cells_BChw.dtype,
        device=cells_BChw.device,
        memory_format=torch.channels_last if last else torch.contiguous_format,
    )
    by_place = composites_GCHW.view(G, C, rows, h, cols, w).permute(0, 2, 4, 1, 3, 5)  # G row column C h w
    members = cells_BChw.index_select(0, groups_GM.reshape(-1))
    if layout.order == "column":  # member = column * R + row
        by_place.transpose(1, 2).copy_(members.view(G, cols, rows, C, h, w))
    else:  # member = row * C + column
        by_place.copy_(members.view(G, rows, cols, C, h, w))
    return composites_GCHW
