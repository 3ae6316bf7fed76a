"""Pretrained weights: what is loaded, replaced and left out is what the report says, and what does not fit is refused."""

import logging
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn
from torchvision.models import ResNet18_Weights

from ns_data import create_model
from ns_data.models.weights import WeightsReport


def seeded(name="small_cnn", num_classes=5, seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return create_model(name, num_classes, **options)


@pytest.fixture
def source():
    return seeded().state_dict()


def save(tmp_path, content, name="weights.pt"):
    torch.save(content, tmp_path / name)
    return tmp_path / name


def assert_equal(state, other, but=()):
    for key in state:
        assert torch.equal(state[key], other[key]) is (key not in but), key


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"model": state, "optimizer": {"lr": 0.1}, "epoch": 3},
        lambda state: {"state_dict": state, "arch": "small"},
        lambda state: {"model_ema": state},
        lambda state: {"model": {f"module.{key}": value for key, value in state.items()}},
        lambda state: {f"_orig_mod.module.{key}": value for key, value in state.items()},
    ],
    ids=["bare", "model", "state_dict", "model_ema", "ddp", "compiled"],
)
def test_every_common_form_of_checkpoint_loads_whole(tmp_path, source, wrap):
    model = seeded(seed=1, weights=save(tmp_path, wrap(source)))
    assert_equal(source, model.state_dict())
    report = model.weights_report
    assert isinstance(report, WeightsReport)
    assert sorted(report.loaded) == sorted(source)
    assert report.replaced == report.missing == report.unused == []


def test_safetensors_load(tmp_path, source):
    pytest.importorskip("safetensors.torch").save_file(source, tmp_path / "weights.safetensors")
    assert_equal(source, seeded(seed=1, weights=tmp_path / "weights.safetensors").state_dict())
    (tmp_path / "broken.safetensors").write_bytes(b"no weights at all")
    with pytest.raises(ValueError, match="cannot be read as a safetensors file"):
        seeded(weights=tmp_path / "broken.safetensors")


def test_safetensors_without_the_package_says_how_to_get_it(tmp_path, monkeypatch):
    (tmp_path / "weights.safetensors").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ValueError, match="pip install safetensors"):
        seeded(weights=tmp_path / "weights.safetensors")


def test_the_entry_can_be_named(tmp_path, source):
    average = {key: value + 1 for key, value in source.items()}
    path = save(tmp_path, {"model": source, "model_ema": average, "teacher": average})
    assert_equal(source, seeded(seed=1, weights=path).state_dict())
    assert seeded(weights=path).weights_report.source.endswith("[model]")
    for key in ("model_ema", "teacher"):
        assert_equal(average, seeded(seed=1, weights=path, weights_key=key).state_dict())
    with pytest.raises(ValueError, match="no entry 'student': it has model, model_ema, teacher"):
        seeded(weights=path, weights_key="student")
    with pytest.raises(ValueError, match="weights_key='model' has no effect without weights"):
        seeded(weights_key="model")


def test_a_head_for_other_classes_stays_fresh_and_is_named(tmp_path, source, caplog):
    with caplog.at_level(logging.INFO, logger="ns_data.models"):
        model = seeded(num_classes=3, seed=1, weights=save(tmp_path, source))
    head = ["head.weight", "head.bias"]
    fresh, loaded = seeded(num_classes=3, seed=1).state_dict(), model.state_dict()
    assert all(torch.equal(loaded[key], (fresh if key in head else source)[key]) for key in source)
    assert model.weights_report.replaced == head
    assert sorted(model.weights_report.loaded + head) == sorted(source)
    assert "2 replaced for another number of classes (head.weight, head.bias)" in caplog.text
    assert f"{len(source) - 2} tensors loaded from" in caplog.text


def test_what_the_network_does_not_have_and_a_file_without_head_are_reported(tmp_path, source):
    body = {key: value for key, value in source.items() if not key.startswith("head") and "num_batches" not in key}
    model = seeded(seed=1, weights=save(tmp_path, {**body, "projector.weight": torch.zeros(2)}))
    assert model.weights_report.unused == ["projector.weight"]
    assert set(model.weights_report.missing) == source.keys() - body.keys()
    assert set(model.weights_report.loaded) == body.keys()
    assert "1 not in the network and left out (projector.weight)" in str(model.weights_report)
    assert_equal(body, model.state_dict())


def test_torchvision_networks_load_from_files_with_their_old_names(tmp_path):
    """DenseNet's published files spell "norm.1" what the network calls "norm1"."""
    model = seeded("densenet121", 6)
    old = {}
    for key, value in model.state_dict().items():
        for layer in ("norm", "conv"):
            for number in "12":
                if "denselayer" in key:
                    key = key.replace(f".{layer}{number}.", f".{layer}.{number}.")
        old[key] = value
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    other = seeded("densenet121", 6, seed=1, weights=save(tmp_path, old, "densenet121.pth"))
    assert_equal(model.state_dict(), other.state_dict())


@pytest.mark.parametrize("form", ["IMAGENET1K_V1", "ResNet18_Weights.IMAGENET1K_V1", "DEFAULT"])
def test_torchvision_weights_by_name(monkeypatch, form):
    full = seeded("resnet18", 1000).state_dict()
    asked = {}

    def download(self, **options):
        asked.update(options)
        return full

    monkeypatch.setattr(ResNet18_Weights, "get_state_dict", download)
    model = seeded("resnet18", 7, seed=1, weights=form)
    assert asked["weights_only"] is True
    assert model.weights_report.replaced == ["fc.weight", "fc.bias"]
    assert model.weights_report.source == "ResNet18_Weights.IMAGENET1K_V1"
    assert_equal({key: value for key, value in full.items() if not key.startswith("fc.")}, model.state_dict())


def test_a_failed_download_names_the_address_and_the_way_out(monkeypatch):
    def offline(self, **options):
        raise OSError("no route")

    monkeypatch.setattr(ResNet18_Weights, "get_state_dict", offline)
    with pytest.raises(ValueError, match=r"no route.*download https://.*resnet18.*and give the file"):
        create_model("resnet18", 7, weights="DEFAULT")


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


def test_nothing_but_tensors_is_unpickled(tmp_path, source, capsys):
    path = save(tmp_path, {"model": source, "config": Evil()})
    with pytest.raises(ValueError, match=r"holds (builtins\.)?print, which may run code.*weights_only=False"):
        seeded(weights=path)
    assert "code ran" not in capsys.readouterr().out


def test_the_way_out_for_a_checkpoint_with_objects_works(tmp_path, source):
    path = save(tmp_path, {"model": source, "config": nn.ReLU()}, "old.pth")
    with pytest.raises(ValueError, match="weights_only=False") as refused:
        seeded(weights=path)
    command = str(refused.value).split("with ", 1)[1].replace("FILE", "'old.pth'")
    subprocess.run([sys.executable, "-c", f"import torch; {command}"], cwd=tmp_path, check=True)
    assert_equal(source, seeded(seed=1, weights=tmp_path / "weights.pt").state_dict())


def test_files_that_are_no_checkpoints_are_refused(tmp_path, source):
    whole = save(tmp_path, source).read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"a": 1}, protocol=2))
    for name in ("cut.pt", "text.pt", "empty.pt", "plain.pt"):
        with pytest.raises(ValueError, match=name) as refused:
            seeded(weights=tmp_path / name)
        assert "\n" not in str(refused.value)
    for content, message in (
        (torch.zeros(3), "holds a Tensor, not a state dict"),
        ({"epoch": 3}, "no tensors by name: it has epoch"),
        ({"model": {"epoch": 3}}, "no tensors by name under 'model'"),
        ({"net": source}, "it has net; name the entry with weights_key"),
    ):
        with pytest.raises(ValueError, match=message):
            seeded(weights=save(tmp_path, content))
    with pytest.raises(ValueError, match="no weights at 'IMAGENET1K_V9'"):
        seeded("resnet18", weights="IMAGENET1K_V9")


def test_a_file_that_fits_nothing_or_not_all_is_refused_and_leaves_no_trace(tmp_path, source):
    other_names = {f"backbone.{key}": value for key, value in source.items()}
    with pytest.raises(ValueError, match=r"does not fit SmallCNN at all: it has tensors such as backbone\.features\.0\.weight"):
        seeded(weights=save(tmp_path, other_names))
    with pytest.raises(ValueError, match=r"'features\.0\.weight' has shape \(8, 3, 3, 3\) in the file and \(16, 3, 3, 3\)"):
        seeded(weights=save(tmp_path, seeded(width=8).state_dict()))
    with pytest.raises(ValueError, match=r"lacks 1 tensors of SmallCNN: features\.0\.weight"):
        seeded(weights=save(tmp_path, {key: value for key, value in source.items() if key != "features.0.weight"}))
    with pytest.raises(ValueError, match=r"lacks 3 tensors of SmallCNN: features\.1\.running_mean"):
        seeded(weights=save(tmp_path, {key: value for key, value in source.items() if "running_mean" not in key}))


def test_only_the_number_of_classes_may_differ(tmp_path, source):
    with pytest.raises(ValueError, match=r"'head\.weight' has shape \(7, 40\) in the file and \(5, 64\)"):
        seeded(weights=save(tmp_path, {**source, "head.weight": torch.zeros(7, 40), "head.bias": torch.zeros(7)}))
    with pytest.raises(ValueError, match=r"features\.4\.weight"):  # 16 channels beside 16 classes are no head
        seeded(num_classes=16, weights=save(tmp_path, seeded(width=8).state_dict()))
