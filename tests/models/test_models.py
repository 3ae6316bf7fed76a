"""Every network: parameter counts, cost and initialisation of the reference, and what any training loop relies on."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ns_data import MODELS, NSScorer, create_model

# name: parameters for 10 and for 100 classes, number of tensors, 10^9 multiply-adds of one 32x32 image
CIFAR = {
    "alexnet_cifar": (2_472_266, 2_495_396, 12, 0.015),
    "vgg19_bn_cifar": (20_040_522, 20_086_692, 66, 0.398),
    "resnet110_cifar": (1_730_714, 1_736_564, 335, 0.253),
    "resnext29_cifar": (34_426_698, 34_518_948, 95, 5.387),
    "wrn28_10_cifar": (36_479_194, 36_536_884, 80, 5.243),
    "resnet32_cifar": (464_154, 470_004, 95, 0.069),
}
IMAGENET = {
    "alexnet": {1000: 61_100_840, 2: 57_012_034, 8: 57_036_616},
    "vgg16": {1000: 138_357_544, 2: 134_268_738, 8: 134_293_320},
    "resnet18": {1000: 11_689_512},
    "resnet50": {1000: 25_557_032, 2: 23_512_130, 8: 23_524_424, 65: 23_641_217},
    "densenet121": {1000: 7_978_856, 2: 6_955_906, 8: 6_962_056},
    "vit_b_16": {1000: 86_567_656, 2: 85_800_194, 8: 85_804_808},
    "swin_t": {1000: 28_288_354, 2: 27_520_892, 8: 27_525_506},
    "vmamba_t": {1000: 30_249_064},
}
# Options that make the large networks small and leave every kind of layer in them. A new network needs none.
SMALL = {
    "resnet110_cifar": {"depth": 8},
    "resnet32_cifar": {"depth": 8},
    "resnext29_cifar": {"depth": 11, "cardinality": 2, "base_width": 4},
    "wrn28_10_cifar": {"depth": 10, "widen": 1},
    "vmamba_t": {"depths": (1, 2), "dim": 16},
    "textcnn": {"vocab_size": 50, "dim": 8, "filters": 4},
}


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def on_meta(name, num_classes, **options):
    with torch.device("meta"):
        return create_model(name, num_classes, **options)


def seeded(name, num_classes=10, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return create_model(name, num_classes, **options)


def inputs(name, size=32):
    generator = torch.Generator().manual_seed(1)
    if name == "textcnn":
        return torch.randint(1, 50, (4, 12), generator=generator)
    return torch.randn(4, 3, size, size, generator=generator)


@pytest.mark.parametrize("name", CIFAR)
def test_cifar_networks_have_the_reference_counts_and_cost(name):
    ten, hundred, tensors, giga_macs = CIFAR[name]
    model = on_meta(name, 10).eval()
    assert (count(model), count(on_meta(name, 100)), len(list(model.parameters()))) == (ten, hundred, tensors)
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        model(torch.empty(1, 3, 32, 32, device="meta"))
    assert round(flops.get_total_flops() / 2e9, 3) == giga_macs


@pytest.mark.parametrize("name", IMAGENET)
def test_imagenet_networks_have_the_reference_counts(name):
    for num_classes, parameters in IMAGENET[name].items():
        assert count(on_meta(name, num_classes)) == parameters


@pytest.mark.parametrize(("num_classes", "parameters"), [(2, 360_902), (4, 361_504)])
def test_textcnn_has_the_reference_count(num_classes, parameters):
    assert count(on_meta("textcnn", num_classes, vocab_size=1000)) == parameters + 300 * 1000


def test_the_documentation_has_every_network_with_its_counts():
    text = (Path(__file__).parent.parent.parent / "docs" / "models.md").read_text()
    rows = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `")}
    for name in [*(MODELS.keys() - {"textcnn"}), *IMAGENET]:
        counts = IMAGENET[name].values() if name in IMAGENET else [count(on_meta(name, 10)), count(on_meta(name, 100))]
        assert all(f" {number:,} " in rows[name] for number in counts), name


def deviation(weight, std):
    """Distance of a sample's standard deviation from ``std``, in standard errors."""
    return abs(float(weight.double().pow(2).mean().sqrt()) / std - 1) * math.sqrt(2 * weight.numel())


def fan_out(layer):
    return math.sqrt(2 / (layer.kernel_size[0] * layer.kernel_size[1] * layer.out_channels))


@pytest.mark.parametrize("name", ["vgg19_bn_cifar", "resnet110_cifar", "resnext29_cifar", "wrn28_10_cifar"])
def test_convolutions_start_from_the_fan_out_law(name):
    model = seeded(name)
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    assert all(deviation(layer.weight.detach(), fan_out(layer)) < 5 for layer in layers)
    assert all(layer.bias is None or not layer.bias.any() for layer in layers)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert (layer.weight == 1).all()
            assert not layer.bias.any()


def test_long_tailed_resnet_starts_from_the_fan_in_law():
    for layer in seeded("resnet32_cifar").modules():
        if isinstance(layer, nn.Conv2d):
            fan_in = layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1]
            assert deviation(layer.weight.detach(), math.sqrt(2 / fan_in)) < 5
        elif isinstance(layer, nn.Linear):
            assert deviation(layer.weight.detach(), math.sqrt(2 / layer.in_features)) < 5


@pytest.mark.parametrize(
    ("name", "std", "bias_is_zero"),
    [
        ("vgg19_bn_cifar", 0.01, True),
        ("resnext29_cifar", math.sqrt(2 / 1024), True),
        ("wrn28_10_cifar", 1 / math.sqrt(3 * 640), True),
        ("resnet110_cifar", 1 / math.sqrt(3 * 64), False),
        ("alexnet_cifar", 1 / math.sqrt(3 * 256), False),
    ],
)
def test_heads_start_as_the_reference_says(name, std, bias_is_zero):
    """torch's default is uniform in +- 1 / sqrt(fan_in): a standard deviation of 1 / sqrt(3 fan_in)."""
    head = seeded(name, 100).head
    assert deviation(head.weight.detach(), std) < 5
    assert bool(head.bias.any()) is not bias_is_zero


@pytest.mark.parametrize("name", MODELS)
def test_a_step_reaches_every_parameter(name):
    model = seeded(name, 7, **SMALL.get(name, {}))
    logits_BK = model(inputs(name))
    assert logits_BK.shape == (4, 7)
    assert logits_BK.dtype == torch.float32
    nn.functional.cross_entropy(logits_BK, torch.tensor([0, 3, 6, 2])).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name


@pytest.mark.parametrize("name", MODELS)
def test_evaluation_treats_every_sample_by_itself(name):
    model = seeded(name, 7, **SMALL.get(name, {})).eval()
    batch = inputs(name)
    with torch.no_grad():
        together, alone = model(batch), torch.cat([model(sample[None]) for sample in batch])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4 * float(together.abs().max()))


@pytest.mark.parametrize("name", MODELS)
def test_the_same_seed_makes_the_same_network(name):
    states = [seeded(name, 3, **SMALL.get(name, {})).state_dict() for _ in range(2)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("name", [name for name in MODELS if name != "textcnn"])
def test_networks_can_be_scored(name):
    """Composites pass through in training mode without touching state or random numbers."""
    model = seeded(name, 7, **SMALL.get(name, {})).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    random = torch.random.get_rng_state()
    scores_B = NSScorer(model)(torch.cat([inputs(name)] * 2), torch.arange(8) % 7)
    assert scores_B.view(2, 4).sum(dim=1).tolist() == pytest.approx([1, 1], abs=1e-5)
    assert torch.equal(random, torch.random.get_rng_state())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_option_a_takes_every_second_pixel_and_pads_channels_on_both_sides():
    shortcut = seeded("resnet32_cifar", depth=8).stages[1][0].shortcut
    x = torch.arange(16 * 4 * 4.0).view(1, 16, 4, 4)
    out = shortcut(x)
    assert out.shape == (1, 32, 2, 2)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert not out[:, :8].any()
    assert not out[:, 24:].any()


def test_wide_blocks_drop_between_their_convolutions_in_training_only():
    model = seeded("wrn28_10_cifar", **SMALL["wrn28_10_cifar"])
    assert [layer.p for layer in model.modules() if isinstance(layer, nn.Dropout)] == [0.3] * 3
    block, x = model.blocks[0], inputs("wrn28_10_cifar").repeat(1, 6, 1, 1)[:, :16]
    out = block(x)
    assert not torch.equal(out, block(x))
    block.eval()
    assert torch.equal(block(x), block(x))


def test_wide_blocks_take_their_shortcut_after_the_shared_normalisation():
    first, second = seeded("wrn28_10_cifar", depth=16, widen=1).eval().blocks[2:4]
    with torch.no_grad():
        first.bn1.bias.fill_(-0.1)
        second.bn1.bias.fill_(-0.1)
    x = inputs("wrn28_10_cifar").repeat(1, 6, 1, 1)[:, :16]
    active = nn.functional.relu(first.bn1(x))
    y = first.conv2(nn.functional.relu(first.bn2(first.conv1(active)))) + first.shortcut(active)
    torch.testing.assert_close(first(x), y)
    branch = second.conv2(nn.functional.relu(second.bn2(second.conv1(nn.functional.relu(second.bn1(y))))))
    torch.testing.assert_close(second(y), branch + y)


def test_alexnet_has_the_geometry_of_its_family():
    layers = [layer for layer in on_meta("alexnet_cifar", 10).features if isinstance(layer, nn.Conv2d)]
    geometry = [(layer.kernel_size[0], layer.stride[0], layer.padding[0]) for layer in layers]
    assert geometry == [(11, 4, 5), (5, 1, 2), (3, 1, 1), (3, 1, 1), (3, 1, 1)]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet110_cifar", {"depth": 109}, r"6 n \+ 2.*got 109"),
        ("resnext29_cifar", {"depth": 30}, r"9 n \+ 2.*got 30"),
        ("wrn28_10_cifar", {"depth": 29}, r"6 n \+ 4.*got 29"),
        ("resnet32_cfar", {}, "did you mean 'resnet32_cifar'"),
        ("fasterrcnn_resnet50_fpn", {}, "unknown model 'fasterrcnn_resnet50_fpn'"),
        ("resnet32_cifar", {"widen": 2}, "unknown option of model 'resnet32_cifar' 'widen'"),
        ("resnet18", {"widen": 2}, "'resnet18' does not take these options.*widen"),
        ("textcnn", {}, "'textcnn' needs the option 'vocab_size'"),
        ("small_cnn", {"num_classes": 0}, "num_classes must be a whole number from 1 on, got 0"),
        ("small_cnn", {"num_classes": 10.0}, "num_classes must be a whole number from 1 on, got 10.0"),
    ],
)
def test_what_cannot_be_made_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        create_model(name, **{"num_classes": 10, **options})
