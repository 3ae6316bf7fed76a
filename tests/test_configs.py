"""Every file in configs/: a dry run on small data in the formats that users have, two steps, and what its header claims."""

import contextlib
import io
import math
import re
from pathlib import Path

import pytest
import torch
import torchvision
import yaml

import train
from ns_data import create_model
from ns_data.shards.sources import convert
from ns_data.training.config import load_config
from ns_data.training.data import open_data
from ns_data.training.loaders import make_batches, make_loaders
from tests.standins import EMOTIONS, cifar_folder, class_folders, emoset, image_list, imagenet_tars

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"
ELSEWHERE = ("compare", "text", "sfda")  # tested beside what reads them: tests/compare, tests/examples
FILES = [path for path in sorted(CONFIGS.rglob("*.yaml")) if path.parent.name not in ELSEWHERE]
NAMES = [path.relative_to(CONFIGS).with_suffix("").as_posix() for path in FILES]

# What makes a network small enough for two steps on a CPU, where its full size is not.
SMALL = {
    "resnet110_cifar": {"depth": 8},
    "resnext29_cifar": {"depth": 11, "cardinality": 2, "base_width": 8},
    "wrn28_10_cifar": {"depth": 10, "widen": 1},
    "vmamba_t": {"dim": 16, "depths": [1, 1]},
}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with data/ as the configs expect it: every set in its users' format, small."""
    folder = tmp_path_factory.mktemp("workplace")
    data = folder / "data"
    cifar_folder(data, "cifar10", train=2000)
    cifar_folder(data, "cifar100", train=2000)
    imagenet_tars(folder / "downloads", per_class=8, val=6, size=(40, 30))
    convert("imagenet", data / "imagenet", {"path": folder / "downloads", "progress": False})
    class_folders(data / "FI", sorted(EMOTIONS))
    class_folders(data / "my_pictures", ["calm", "loud", "sad"])
    for name in ("Flickr", "Instagram"):
        class_folders(data / name, ["negative", "positive"])
    for name in ("twitter1", "twitter2"):
        (data / name).mkdir()
        image_list(data / name / "list.txt")
    emoset(data / "EmoSet-118K")
    return folder


@contextlib.contextmanager
def inside(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield


def needed(path):
    """Words that a config cannot do without, as its header says."""
    return ["data.options.path=data/my_pictures"] if path.stem == "finetune" else []


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_a_dry_run_of_the_config_as_it_is(workplace, path):
    out = io.StringIO()
    with inside(workplace), contextlib.redirect_stdout(out):
        train.main([str(path), "--dry-run", *needed(path)])
        config = load_config(path, needed(path))
    text = out.getvalue()
    assert re.search(r"^an epoch +[1-9]\d* steps", text, re.MULTILINE)
    assert f"training           {config.epochs} epochs" in text
    assert (workplace / f"{config.run_dir}-dry-run.png").stat().st_size > 0


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_two_steps_of_the_config(workplace, path):
    """The recipe's own optimiser, schedule, augmentation and data; a smaller network, image and batch where need be."""
    words = [*needed(path), "batch_size=8", "device=cpu", "data.workers=0"]
    config = load_config(path, words)
    small = path.parent.name not in ("standins", "configs")
    if small and config.model.name in SMALL:
        config.model.options |= SMALL[config.model.name]
    if config.model.name == "resnet50":
        config.model.name = "resnet18"
    config.model.options.pop("weights", None)  # of ImageNet: not here
    if config.data.image_size == 224:
        config.data.image_size, config.data.eval_resize = 32, 36
    with inside(workplace):
        world = train.World(0, 1, torch.device("cpu"))
        data = open_data(config.data, config.seed, world)
        batches = make_batches(config, data, world)
        training = train.Training(config, data, world)
        loader, test_loader = make_loaders(config, data, batches, world)
        batches.set_epoch(0)
        before = {name: p.detach().clone() for name, p in training.model.named_parameters()}
        for number, batch in zip(range(2), loader, strict=False):
            training.step(batch, 0, number, number / len(batches), len(batch.labels))
        images, *_ = next(iter(test_loader))
    numbers = training.notes.numbers()
    assert number == 1
    assert math.isfinite(numbers["loss"])
    sigma, rho, m = config.ns.sigma, config.ns.rho, training.weigher.layout.group_size
    expected = 1 if config.ns.weighting == "none" else sigma + rho / m
    assert numbers["mean_weight"] == pytest.approx(expected, abs=1e-4)
    assert images.shape[1:] == (3, config.data.image_size, config.data.image_size)
    changed = [name for name, p in training.model.named_parameters() if not torch.equal(p, before[name])]
    assert len(changed) > 0.5 * len(before)


GMACS = {  # of a forward pass: docs/models.md, and 4.089 of torchvision's ResNet-50
    **{"resnet18": 1.814, "swin_t": 4.491, "vmamba_t": 4.876, "resnet50": 4.089},
    **{"alexnet_cifar": 0.015, "vgg19_bn_cifar": 0.398, "resnet110_cifar": 0.253, "resnext29_cifar": 5.387},
    **{"wrn28_10_cifar": 5.243, "resnet32_cifar": 0.069},
}
SAMPLES = {
    **{"imagenet": 1_281_167, "cifar": 50_000, "cifar10_lt": 12_406, "cifar100_lt": 10_847, "emoset": 94_481},
    **{"finetune": 900_000, "fi": 0.9 * 21_829, "flickr": 0.9 * 42_848, "instagram": 0.9 * 60_729},
}


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_the_header_says_command_cost_and_what_is_open(path):
    text = path.read_text()
    head = text[: text.index("\n", text.rindex("\n# ") + 1)]
    config = load_config(path)
    assert f"train.py {path.relative_to(ROOT)}" in head.replace("train.py       ", f"train.py {path.relative_to(ROOT)}")
    if path.parent.name in ("standins", "configs"):
        return
    assert "Cost: " in head
    assert "the paper leaves open" in head or "Open in the paper" in head or yaml.safe_load(text)["base"] == "finetune.yaml"
    hours = re.search(r"about ([\d.]+) GPU-hours", head)
    if hours:
        samples = SAMPLES.get(path.stem) or SAMPLES[path.parent.name]
        m = 2 if config.ns.layout == "1x2" else 4
        seconds = config.epochs * samples * GMACS[config.model.name] * 1e9 * 2 * (3 + 1 / m) / 30e12
        assert float(hours.group(1)) == pytest.approx(seconds / 3600, rel=0.06, abs=0.005)


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_a_config_holds_only_what_differs_from_its_base(path):
    content = yaml.safe_load(path.read_text())
    if "base" not in content:
        return
    base = _flat(_merged(path.parent / content.pop("base")))
    same = [key for key, value in _flat(content).items() if key in base and base[key] == value]
    assert not same, f"{path.name} repeats {same}"


def _merged(path):
    content = yaml.safe_load(path.read_text())
    below = _flat(_merged(path.parent / content.pop("base"))) if "base" in content else {}
    return below | _flat(content)


def _flat(content, prefix=""):
    flat = {}
    for key, value in content.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


# The paper's settings, by config: epochs, batch, optimiser, rate, and the rate's factor at some epochs.
STEPS = {
    "imagenet/resnet18": (90, 256, "sgd", 0.1, {0: 1, 30: 1, 31: 0.1, 61: 0.01}),
    "imagenet/swin_t": (90, 1024, "adamw", 0.001, {2.5: 0.5, 5: 1, 47.5: 0.5, 90: 0}),
    "imagenet/vmamba_t": (90, 1024, "adamw", 0.001, {2.5: 0.5, 5: 1, 47.5: 0.5, 90: 0}),
    "cifar/alexnet_cifar10": (164, 128, "sgd", 0.1, {80: 1, 81: 0.1, 122: 0.01}),
    "cifar/vgg19_cifar100": (164, 128, "sgd", 0.1, {80: 1, 81: 0.1, 122: 0.01}),
    "cifar/resnet110_cifar100": (164, 128, "sgd", 0.1, {80: 1, 81: 0.1, 122: 0.01}),
    "cifar/resnext29_cifar100": (300, 128, "sgd", 0.1, {149: 1, 150: 0.1, 225: 0.01}),
    "cifar/wrn28_10_cifar100": (200, 128, "sgd", 0.1, {59: 1, 60: 0.2, 120: 0.04, 160: 0.008}),
    "cifar_lt/cifar100_lt": (240, 128, "sgd", 0.1, {99: 1, 100: 0.1, 160: 0.01, 200: 1e-4}),
    "emotion/emoset": (10, 64, "sgd", 0.001, {0: 1, 5: 0.5**0.9, 10: 0}),
}


@pytest.mark.parametrize("name", STEPS)
def test_recipes_are_the_papers(name):
    config = load_config(CONFIGS / f"{name}.yaml")
    epochs, batch_size, optimizer, lr, factors = STEPS[name]
    assert (config.epochs, config.batch_size, config.optimizer.name, config.optimizer.lr) == (epochs, batch_size, optimizer, lr)
    schedule = train.create_schedule(config.schedule.name, config.epochs, config.schedule.options)
    assert [schedule(epoch) for epoch in factors] == pytest.approx(list(factors.values()), abs=1e-3)
    train.create_optimizer(optimizer, create_model("small_cnn", 2), lr, config.optimizer.options)


MEAN_WEIGHTS = {  # sigma + rho / m
    **{"imagenet/resnet18": 2.25, "imagenet/swin_t": 2.25, "imagenet/vmamba_t": 2.25},
    **{f"cifar/{net}_cifar10": 0.95 for net in ("alexnet", "vgg19", "resnet110", "resnext29", "wrn28_10")},
    **{f"cifar/{net}_cifar100": 1.05 for net in ("alexnet", "vgg19", "resnet110", "resnext29", "wrn28_10")},
    **{"emotion/twitter1": 2.0, "emotion/twitter2": 2.0, "emotion/flickr": 1.75, "emotion/instagram": 1.75},
    **{"emotion/fi": 2.25, "emotion/emoset": 2.25, "cifar_lt/cifar10_lt": 2.0, "cifar_lt/cifar100_lt": 1.25},
}


def test_every_cell_of_the_papers_tables_has_a_config_with_its_weights():
    assert {name for name in NAMES if "/" in name and not name.startswith("standins")} == {*MEAN_WEIGHTS, "emotion/finetune"}
    for name, mean in MEAN_WEIGHTS.items():
        ns = load_config(CONFIGS / f"{name}.yaml").ns
        rows, columns = map(int, ns.layout.split("x"))
        assert ns.weighting == "ns"
        assert ns.sigma + ns.rho / (rows * columns) == pytest.approx(mean), name


FINETUNE = ["device=cpu", "data.workers=0", "epochs=1", "batch_size=12", "data.image_size=32", "data.eval_resize=null"]


def test_fine_tuning_starts_from_a_local_file_of_torchvisions_with_a_head_for_the_sets_own_classes(workplace):
    """A state dict of 1000 classes in torchvision's form, a rate of 0, and what train.py saves after an epoch."""
    torch.manual_seed(5)
    pretrained = torchvision.models.get_model("resnet18").state_dict()
    torch.save(pretrained, workplace / "resnet18-local.pth")
    words = ["model.name=resnet18", "model.options.weights=resnet18-local.pth", "optimizer.lr=0", "run_dir=runs/finetuned"]
    with inside(workplace), contextlib.redirect_stdout(io.StringIO()):
        train.main([str(CONFIGS / "emotion" / "emoset.yaml"), *FINETUNE, *words])
        saved = torch.load("runs/finetuned/last.pt", weights_only=True)["training"]["model"]
        before = {name: value for name, value in saved.items() if "running" not in name and "batches" not in name}
        again = create_model("resnet18", 3, weights="runs/finetuned/last.pt")
        with pytest.raises(ValueError, match=r"no weights at 'nowhere.pth': give a local"):
            train.main([str(CONFIGS / "emotion" / "emoset.yaml"), *FINETUNE, *words[:1], "model.options.weights=nowhere.pth"])
    assert saved["fc.weight"].shape == (8, 512)
    assert all(torch.equal(before[name], pretrained[name]) for name in before if not name.startswith("fc."))
    assert again.weights_report.replaced == ["fc.weight", "fc.bias"]  # a run's own checkpoint is such a file, too
    assert torch.equal(again.layer4[1].conv2.weight, pretrained["layer4.1.conv2.weight"])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("standins")])
def test_stand_ins_learn(workplace, name):
    with inside(workplace), contextlib.redirect_stdout(io.StringIO()):
        train.main([str(CONFIGS / f"{name}.yaml"), f"run_dir=runs/{name}"])
        last = train.RunFolder(f"runs/{name}").metrics()[-1]
    assert last["balanced_accuracy"] > (0.6 if "imagenet" in name else 0.8)  # crops of digits are hard; chance is 0.1
