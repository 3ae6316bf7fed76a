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


def stitch(images_BCHW: Tensor, layout: Layout | str, groups_GM: Tensor | None = None) -> Tensor:
    """Composites of the groups, shape (G, C, H, W).

    Args:
        images_BCHW: a batch of images of one size, floating point.
        layout: ``Layout`` or "RxC".
        groups_GM: positions of each group's members, in cell order; ``None`` takes consecutive members and leaves the
            last B mod M images out.

    Raises:
        ValueError: for images that are not a floating-point batch, smaller than the layout, or too few for one group.
    """
    layout = Layout.parse(layout)
    if images_BCHW.ndim != 4 or not images_BCHW.is_floating_point():
        raise ValueError(
            f"stitch needs a floating-point batch of shape B C H W, got {images_BCHW.dtype} of shape "
            f"{tuple(images_BCHW.shape)}: convert and normalise the images first"
        )
    H, W = images_BCHW.shape[2:]
    if layout.rows > H or layout.cols > W:
        raise ValueError(f"images of {H}x{W} pixels are too small for a layout of {layout}: a cell would have no pixel")
    groups_GM = check_groups(groups_GM, images_BCHW, layout.group_size)
    if H % layout.rows == 0 and W % layout.cols == 0:
        cells_BChw = _resize(images_BCHW, H // layout.rows, W // layout.cols)
        return _place(cells_BChw, layout, groups_GM)
    return _resize(_place(images_BCHW, layout, groups_GM), H, W)


def check_groups(groups_GM: Tensor | None, images: Tensor, group_size: int) -> Tensor:
    """``groups_GM``, or consecutive groups for ``None``; refuses groups of another size than the layout's."""
    if groups_GM is None:
        num_groups = images.shape[0] // group_size
        if num_groups == 0:
            raise ValueError(
                f"{images.shape[0]} images cannot fill one group of {group_size}: use a larger batch, drop_last or a "
                "smaller layout"
            )
        return torch.arange(num_groups * group_size, device=images.device).view(num_groups, group_size)
    if groups_GM.ndim != 2 or groups_GM.shape[1] != group_size:
        raise ValueError(
            f"groups of shape {tuple(groups_GM.shape)} do not fit a layout of {group_size} members: "
            "the collator and the scorer need the same layout"
        )
    return groups_GM


def _resize(images_BCHW: Tensor, height: int, width: int) -> Tensor:
    if images_BCHW.shape[2:] == (height, width):
        return images_BCHW
    return F.interpolate(images_BCHW, size=(height, width), mode="bilinear", align_corners=False)


def _place(cells_BChw: Tensor, layout: Layout, groups_GM: Tensor) -> Tensor:
    """Lay the members of each group out in its grid: (G, C, R h, C w)."""
    C, h, w = cells_BChw.shape[1:]
    cells = cells_BChw[groups_GM.reshape(-1)]
    if layout.order == "column":  # member = column * R + row
        cells = cells.view(-1, layout.cols, layout.rows, C, h, w).permute(0, 3, 2, 4, 1, 5)
    else:  # member = row * C + column
        cells = cells.view(-1, layout.rows, layout.cols, C, h, w).permute(0, 3, 1, 4, 2, 5)
    return cells.reshape(-1, C, layout.rows * h, layout.cols * w)
