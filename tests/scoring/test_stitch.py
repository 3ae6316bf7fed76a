import pytest
import torch
import torch.nn.functional as F

from ns_data import Layout, stitch

LAYOUTS = ["1x2", "2x1", "2x2", "2x4", "4x2", "4x4", "3x3"]


def by_hand(images, layout, groups):
    """Paste full-size images into a large picture one by one, then scale it: a plain reference."""
    H, W = images.shape[2:]
    pictures = torch.zeros(len(groups), images.shape[1], layout.rows * H, layout.cols * W, dtype=images.dtype)
    for g, members in enumerate(groups):
        for i, member in enumerate(members):
            row, col = (i % layout.rows, i // layout.rows) if layout.order == "column" else divmod(i, layout.cols)
            pictures[g, :, row * H : (row + 1) * H, col * W : (col + 1) * W] = images[member]
    return F.interpolate(pictures, size=(H, W), mode="bilinear", align_corners=False)


def papers_recipe(images):
    """2x2 as described in the paper's appendix: pairs joined along the height, the two columns along the width."""
    first, second, third, fourth = images.view(-1, 4, *images.shape[1:]).unbind(1)
    left, right = torch.cat([first, second], dim=2), torch.cat([third, fourth], dim=2)
    return F.interpolate(torch.cat([left, right], dim=3), scale_factor=0.5, mode="bilinear", align_corners=False)


def test_equals_a_hand_made_picture():
    images = torch.arange(1.0, 5).view(4, 1, 1, 1).expand(4, 1, 4, 4)
    expected = torch.tensor([[1.0, 1, 3, 3], [1, 1, 3, 3], [2, 2, 4, 4], [2, 2, 4, 4]])
    assert torch.equal(stitch(images, "2x2")[0, 0], expected)
    in_rows = torch.tensor([[1.0, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]])
    assert torch.equal(stitch(images, Layout(2, 2, "row"))[0, 0], in_rows)


@pytest.mark.parametrize("size", [(32, 32), (24, 48), (224, 224)])
def test_equals_the_papers_recipe_exactly(size):
    images = torch.randn(8, 3, *size, generator=torch.Generator().manual_seed(0))
    assert torch.equal(stitch(images, "2x2"), papers_recipe(images))


@pytest.mark.parametrize("text", LAYOUTS)
@pytest.mark.parametrize("order", ["column", "row"])
@pytest.mark.parametrize("size", [(24, 24), (12, 24), (32, 32), (17, 23), (9, 10)])
def test_every_layout_equals_pasting_then_scaling_exactly(text, order, size):
    layout = Layout.parse(text, order)
    m = layout.group_size
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2 * m + 1, 2, *size, generator=generator)
    groups = torch.randperm(2 * m + 1, generator=generator)[: 2 * m].view(2, m)
    composites = stitch(images, layout, groups)
    assert composites.shape == (2, 2, *size)
    assert torch.equal(composites, by_hand(images, layout, groups.tolist()))


@pytest.mark.parametrize("text", ["2x2", "2x4", "3x3"])
@pytest.mark.parametrize("order", ["column", "row"])
def test_channels_last_images_make_equal_channels_last_composites(text, order):
    images = torch.randn(18, 3, 24, 24)
    layout = Layout.parse(text, order)
    composites = stitch(images.contiguous(memory_format=torch.channels_last), layout)
    assert composites.is_contiguous(memory_format=torch.channels_last)
    assert stitch(images, layout).is_contiguous()
    torch.testing.assert_close(composites, stitch(images, layout), rtol=1e-6, atol=1e-6)


def test_consecutive_members_by_default_and_the_remainder_is_left_out():
    images = torch.randn(11, 1, 8, 8)
    assert torch.equal(stitch(images, "2x2"), stitch(images, "2x2", torch.arange(8).view(2, 4)))


def test_one_cell_is_the_image_itself():
    images = torch.randn(3, 1, 5, 7)
    assert torch.equal(stitch(images, "1x1"), images)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_keeps_the_dtype(dtype):
    images = torch.randn(4, 1, 8, 8).to(dtype)
    assert stitch(images, "2x2").dtype == dtype


@pytest.mark.parametrize(
    ("images", "groups", "message"),
    [
        (torch.zeros(4, 3, 8, 8, dtype=torch.uint8), None, "floating-point batch .* torch.uint8"),
        (torch.zeros(3, 8, 8), None, "floating-point batch of shape B C H W"),
        (torch.zeros(3, 1, 8, 8), None, "3 images cannot fill one group of 4"),
        (torch.zeros(4, 1, 1, 8), None, "too small for a layout of 2x2"),
        (torch.zeros(4, 1, 8, 8), torch.zeros(2, 2, dtype=torch.long), "need the same layout"),
    ],
)
def test_bad_input_is_refused(images, groups, message):
    with pytest.raises(ValueError, match=message):
        stitch(images, "2x2", groups)
