"""`ns-data evaluate` on runs, checkpoints and files of weights, against the run's own numbers and plain computations."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import balanced_accuracy_score

from ns_data import create_model
from ns_data.cli import main
from ns_data.shards.dataset import ShardDataset
from ns_data.shards.label_lists import read_label_lists
from ns_data.shards.sources import convert
from ns_data.shards.writer import write_shards
from ns_data.training.config import load_config
from ns_data.training.data import load_data
from ns_data.training.label_space import ListEvaluation, map_classes, right_logits
from tests.test_train import run as train

SIZE = 16


def png(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue(), pixels


def plain_logits(model, pictures):
    """The pixels as a network sees them: scaled to [-1, 1] by hand."""
    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255 * 2 - 1
    with torch.no_grad():
        return model.eval()(images)


def evaluate(capsys, *words):
    """What the command says as JSON."""
    capsys.readouterr()
    assert main(["evaluate", *map(str, words), "out=-"]) == 0
    return json.loads(capsys.readouterr().out)


def error(capsys, *words):
    capsys.readouterr()
    assert main(["evaluate", *map(str, words)]) == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    return text


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two epochs, both checkpoints kept, on the digits' long tail."""
    folder = tmp_path_factory.mktemp("evaluate")
    train(folder, "epochs=2", "keep_every=1", "run_dir=run", f"data.root={folder / 'data'}", "optimizer.lr=0.2")
    return folder / "run"


@pytest.fixture(scope="module")
def hard(tmp_path_factory):
    """ImageNet-Hard as it is distributed, with 14 pictures; a network of 1000 classes whose second guess is often right."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    folder = tmp_path_factory.mktemp("hard")
    torch.manual_seed(0)
    model = create_model("small_cnn", 1000)
    torch.save(model.state_dict(), folder / "weights.pt")
    encoded, pictures = zip(*(png(seed) for seed in range(14)), strict=True)
    guesses = plain_logits(model, pictures).topk(6).indices.tolist()
    lists = []
    for i, (first, second, *_, sixth) in enumerate(guesses):
        other = next(k for k in range(1000) if k not in guesses[i])
        lists.append({0: [other, first], 1: [second, other, sixth], 2: [sixth], 3: [first]}[i % 4])
    columns = {
        "image": [{"bytes": data, "path": None} for data in encoded],
        "label": lists,
        "origin": ["imagenet_v2"] * 14,
        "english_label": [["x"]] * 14,
    }
    (folder / "in").mkdir()
    parquet.write_table(pyarrow.table(columns), folder / "in" / "validation-00000.parquet")
    convert("imagenet_hard", folder / "shards", {"path": folder / "in", "progress": False, "samples_per_shard": 5})
    return folder, model, pictures, lists


def words_of(folder):
    return ["model.name=small_cnn", f"data.path={folder / 'shards'}", f"data.image_size={SIZE}", "eval_batch_size=4"]


def test_a_run_has_the_numbers_that_its_training_wrote(trained, capsys):
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    for place, line in ((trained, lines[1]), (trained / "last.pt", lines[1]), (trained / "epoch-1.pt", lines[0])):
        found = evaluate(capsys, place, "eval_batch_size=50")
        names = ["accuracy", "top5_accuracy", "balanced_accuracy", "many_shot", "medium_shot", "few_shot", "test_samples"]
        for name in [*names, "calibration_error"]:
            assert found[name] == pytest.approx(line[name], rel=1e-6), name
        assert found["test_loss"] == pytest.approx(line["test_loss"], rel=1e-5)
        assert found["recall"] == line["recall"]
    assert lines[0]["accuracy"] != lines[1]["accuracy"]


def test_other_data_and_splits_take_the_place_of_the_runs(trained, capsys):
    training = evaluate(capsys, trained, "split=train")
    assert (training["test_samples"], training["split"]) == (417, "train")
    noisy = evaluate(capsys, trained, "data.source=digits", "data.options.noise=0.4", "split=train")
    assert noisy["data"].endswith("digits-noise=0.4")
    assert noisy["test_samples"] == 1500


def test_it_reads_for_people_and_writes_json(trained, tmp_path, capsys):
    assert main(["evaluate", str(trained), f"out={tmp_path / 'deep' / 'found.json'}"]) == 0
    found = json.loads((tmp_path / "deep" / "found.json").read_text())
    out = capsys.readouterr().out
    assert f"  accuracy             {found['accuracy']:.2%}\n" in out
    assert f"on 297 samples of {found['data']}, split test\n" in out


def test_a_file_of_weights_has_the_numbers_of_a_plain_loop(trained, tmp_path, capsys):
    state = torch.load(trained / "last.pt", weights_only=True)["training"]["model"]
    torch.save(state, tmp_path / "bare.pt")
    folder = load_config(trained / "config.yaml").data.root + "/digits-imbalance=50"
    words = ["model.name=small_cnn", f"data.path={folder}", "data.image_size=16"]
    found = evaluate(capsys, tmp_path / "bare.pt", *words)
    dataset = ShardDataset(folder, "test")
    pictures = [np.asarray(Image.open(io.BytesIO(dataset.read_bytes(i))).convert("RGB")) for i in range(len(dataset))]
    model = create_model("small_cnn", 10)
    model.load_state_dict(state)
    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    images = torch.nn.functional.interpolate(images.float(), size=(16, 16), mode="bilinear").round() / 255 * 2 - 1
    with torch.no_grad():
        logits = model.eval()(images)
    assert found["accuracy"] == pytest.approx((logits.argmax(1).numpy() == dataset.labels).mean(), abs=2 / 297)
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(dataset.labels, logits.argmax(1)), abs=0.01)
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(dataset.labels).long())
    assert found["test_loss"] == pytest.approx(loss.item(), rel=1e-2)
    assert "many_shot" not in found  # nothing is known of its training
    by_config = evaluate(capsys, tmp_path / "bare.pt", trained / "config.yaml", f"data.path={folder}")
    assert by_config["accuracy"] == found["accuracy"]


def test_a_prediction_in_the_list_is_right(hard, capsys):
    folder, model, pictures, lists = hard
    found = evaluate(capsys, folder / "weights.pt", *words_of(folder))
    guesses = plain_logits(model, pictures).topk(5).indices.tolist()
    right = [guess[0] in labels for guess, labels in zip(guesses, lists, strict=True)]
    near = [bool(set(guess) & set(labels)) for guess, labels in zip(guesses, lists, strict=True)]
    assert right.count(True) == 7  # the first guess is in the list of every other picture, for half of them not as its first
    assert found["accuracy"] == sum(right) / 14
    assert found["top5_accuracy"] == sum(near) / 14 > found["accuracy"]
    assert found["labels_per_sample"] == pytest.approx(np.mean([len(labels) for labels in lists]))
    assert found["label_lists"] is True
    assert "test_loss" not in found
    assert evaluate(capsys, folder / "weights.pt", *words_of(folder), "labels=json:labels") == found


def test_label_lists_are_read_in_the_order_of_the_samples(hard):
    folder, _, pictures, lists = hard
    dataset = ShardDataset(folder / "shards", "test")
    assert len(dataset.shard_paths()) == 3
    found = read_label_lists(dataset, "labels")
    for i, labels in enumerate(found):
        number = next(n for n, pixels in enumerate(pictures) if np.array_equal(dataset[i][0].permute(1, 2, 0).numpy(), pixels))
        assert labels == lists[number]
        assert labels[0] == dataset.labels[i]
    with pytest.raises(ValueError, match=r"no JSON with key 'nothing'"):
        read_label_lists(dataset, "nothing")
    with pytest.raises(ValueError, match=r"'origin' is imagenet_v2, not a class id or a list"):
        read_label_lists(dataset, "origin")


def test_samples_without_lists_are_named(tmp_path):
    samples = [(np.zeros((8, 8, 3), np.uint8), 0, {"labels": [0, 1]}), (np.zeros((8, 8, 3), np.uint8), 1)]
    write_shards(samples, tmp_path, seed=None, progress=False)
    with pytest.raises(ValueError, match=r"train-000000.tar, sample '0*1' has no JSON member, which should hold its labels"):
        read_label_lists(ShardDataset(tmp_path, "train"), "labels")


def test_list_evaluation_counts_nan_as_wrong_and_more_than_five():
    logits = torch.zeros(4, 8)
    logits[0, 3] = logits[1, 3] = logits[3, 3] = 9
    logits[1, 4], logits[2, 5] = 8, torch.nan
    counts = ListEvaluation()
    counts.update(logits[:2], right_logits([[3], [4, 7]], np.arange(8), 8))
    counts.update(logits[2:], right_logits([[5], [0, 3]], np.arange(8), 8))
    expected = {"accuracy": 2 / 4, "top5_accuracy": 3 / 4, "labels_per_sample": 6 / 4, "test_samples": 4}
    assert counts.numbers() == {**expected, "invalid_predictions": 1}
    with pytest.raises(ValueError, match="no samples"):
        ListEvaluation().numbers()
    with pytest.raises(ValueError, match="sample 1 has label 8, beyond the 8 classes"):
        right_logits([[3], [2, 8]], np.arange(8), 8)


def test_classes_are_matched_by_name_or_by_id():
    names = ["n03000000", "n01000000", "n02000000"]
    assert map_classes(3, names, ["n02000000", "n03000000"]).tolist() == [2, 0]
    assert map_classes(3, names, ["0", "1", "2"]).tolist() == [1, 2, 0]  # ids are in the order of sorted WordNet ids
    assert map_classes(3, ["b", "c", "a"], ["0", "1", "2"]).tolist() == [0, 1, 2]
    assert map_classes(3, None, names).tolist() == [0, 1, 2]
    assert map_classes(3, ["0", "1", "2"], names).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="of 4 classes, the data has 3"):
        map_classes(4, None, names)
    with pytest.raises(ValueError, match=r"1 of the data's 3 classes \(n09000000\) are not among the 3"):
        map_classes(3, names, [*names[:2], "n09000000"])


def test_a_part_of_the_classes_in_another_order(tmp_path, capsys):
    """Folders of two classes for a network of four, whose names shards tell."""
    torch.manual_seed(1)
    model = create_model("small_cnn", 4)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "four.pt")
    pictures, labels = [], []
    for name, label, count in (("owl", 0, 5), ("ant", 3, 9)):
        (tmp_path / "part" / "test" / name).mkdir(parents=True)
        for i in range(count):
            data, pixels = png(100 * label + i)
            (tmp_path / "part" / "test" / name / f"{i}.png").write_bytes(data)
            pictures.append(pixels)
            labels.append(label)
    samples = [(np.zeros((8, 8, 3), np.uint8), k) for k in range(4)]
    write_shards(samples, tmp_path / "named", classes=["owl", "bee", "cat", "ant"], progress=False)
    words = ["model.name=small_cnn", f"data.path={tmp_path / 'part'}", f"data.image_size={SIZE}"]
    found = evaluate(capsys, tmp_path / "four.pt", *words, f"classes={tmp_path / 'named'}")
    predicted = plain_logits(model, pictures).argmax(1).numpy()
    assert found["accuracy"] == pytest.approx((predicted == labels).mean())
    recalls = [(predicted[np.array(labels) == k] == k).mean() for k in (0, 3)]
    assert found["recall"] == [pytest.approx(recalls[0], abs=1e-6), None, None, pytest.approx(recalls[1], abs=1e-6)]
    assert found["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    assert "of 4 classes, the data has 2" in error(capsys, tmp_path / "four.pt", *words)


def test_what_does_not_fit_is_one_sentence(trained, hard, tmp_path, capsys):
    folder, *_ = hard
    weights, words = folder / "weights.pt", words_of(folder)
    assert "name a run folder or a checkpoint" in error(capsys)
    assert "there is no checkpoint nowhere" in error(capsys, "nowhere")
    (tmp_path / "empty").mkdir()
    assert "is not a run folder, it has no config.yaml" in error(capsys, tmp_path / "empty")
    (tmp_path / "empty" / "config.yaml").write_text("epochs: 1\n")
    assert "has the run ended its first epoch?" in error(capsys, tmp_path / "empty")
    assert "is in no run folder: name its config file" in error(capsys, weights, "model.name=small_cnn")
    assert "unknown option 'splot': did you mean 'split'" in error(capsys, trained, "splot=train")
    assert "is not of the form key=value" in error(capsys, trained, "epochs=2", "split")
    assert "has no split 'val': it has test, train" in error(capsys, trained, "split=val")
    digits = load_config(trained / "config.yaml").data.root + "/digits-imbalance=50"
    assert "of 1000 classes, the data has 10" in error(capsys, weights, *words, f"data.path={digits}")
    assert "has no head of resnet18" in error(capsys, weights, *words, "model.name=resnet18")
    assert "several right ones for an image, and labels=cls needs a single" in error(capsys, weights, *words, "labels=cls")
    assert "neither cls, the class ids of the index, nor json:KEY" in error(capsys, weights, *words, "labels=list")
    assert "no JSON with key 'right'" in error(capsys, weights, *words, "labels=json:right")
    assert "of 10 classes, the data has 1000" in error(capsys, trained, f"data.path={folder / 'shards'}")


def test_training_on_lists_of_labels_is_refused(hard, tmp_path):
    folder, *_ = hard
    (tmp_path / "c.yaml").write_text(f"data: {{path: {folder / 'shards'}, train_split: test, image_size: 16}}\n")
    with pytest.raises(ValueError, match="has lists of labels, several right ones for an image, and training needs a single"):
        load_data(load_config(tmp_path / "c.yaml").data, 0)


def test_texts_are_refused(tmp_path, capsys):
    write_shards([("a text", 0), ("another", 1)], tmp_path / "texts", split="test", progress=False)
    torch.save(create_model("small_cnn", 2).state_dict(), tmp_path / "w.pt")
    assert "holds texts" in error(capsys, tmp_path / "w.pt", "model.name=small_cnn", f"data.path={tmp_path / 'texts'}")


def test_a_network_can_start_from_a_runs_checkpoint(trained):
    model = create_model("small_cnn", 10, weights=trained / "last.pt")
    state = torch.load(trained / "last.pt", weights_only=True)["training"]["model"]
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
