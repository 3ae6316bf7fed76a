"""text_classification.py as its users start it, on a tiny corpus: finished, interrupted and started again, with mistakes."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import text_classification
import torch
import yaml
from text_config import TextConfig
from text_data import load_texts
from text_tokens import SPECIAL, read_vocabulary

from ns_data import write_shards
from ns_data.training.config import load_config

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs" / "text").glob("*.yaml"))
TOPICS = {
    "sea": ["ship", "wave", "fish", "salt", "port"],
    "sky": ["cloud", "bird", "wind", "star", "moon"],
    "ore": ["iron", "gold", "coal"],
}
TEXTCNN = "model: {name: textcnn, options: {dim: 16, filters: 8, dropout: 0.5}}\n"
SIZES = "{hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32, initializer_range: 0.2}"
BERT = f"model: {{name: bert, options: {SIZES}}}\n"
COMMON = """
data: {path: corpus, length: 24, min_count: 1}
ns: {weighting: ns, sigma: 1.5, rho: -1.0, layout: 1x4}
epochs: 2
batch_size: 8
device: cpu
optimizer: {name: adamw, lr: 0.01, options: {weight_decay: 0.0}}
"""


def corpus(folder):
    """48 training texts, two of them without a word, and 24 test texts: words of a topic among words of no topic."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 48), ("test", 24)):
        samples = []
        for i in range(count):
            label = i % 3
            own = rng.choice(list(TOPICS.values())[label], rng.integers(3, 16))
            words = rng.permutation([*own, *rng.choice(["the", "a", "of", "and"], rng.integers(1, 4))])
            samples.append(("" if split == "train" and i in (7, 20) else " ".join(words), label))
        write_shards(samples, folder, split=split, classes=list(TOPICS), progress=False)


def run(folder, *words):
    """Run ``main`` in this process with ``folder`` as working directory; return what it prints."""
    out = io.StringIO()
    with contextlib.chdir(folder) if hasattr(contextlib, "chdir") else _chdir(folder), contextlib.redirect_stdout(out):
        text_classification.main([str(word) for word in words])
    return out.getvalue()


@contextlib.contextmanager
def _chdir(folder):
    here = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(here)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with a corpus, configs of both networks, and a finished run of each."""
    folder = tmp_path_factory.mktemp("texts")
    corpus(folder / "corpus")
    for name, model in (("textcnn", TEXTCNN), ("bert", BERT)):
        (folder / f"{name}.yaml").write_text(model + COMMON)
        run(folder, f"{name}.yaml", f"run_dir={name}")
    return folder


def metrics(run_dir):
    """The lines of metrics.jsonl without the clock's numbers."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    clock = ("second", "waiting", "scoring")
    return [{key: value for key, value in line.items() if not any(word in key for word in clock)} for line in lines]


def same_results(one, other):
    a, b = (torch.load(folder / "last.pt", weights_only=True)["training"] for folder in (one, other))
    for x, y in ((a["model"], b["model"]), (a["notes"]["ledger"], b["notes"]["ledger"])):
        assert x.keys() == y.keys()
        for name in x:
            torch.testing.assert_close(x[name], y[name], rtol=0, atol=0, equal_nan=True)
    assert metrics(one) == metrics(other)


@pytest.mark.parametrize("network", ["textcnn", "bert"])
def test_a_run_learns_and_leaves_a_folder(workplace, network):
    folder = workplace / network
    logs = {"metrics.jsonl", "tensorboard", "scores.npz", "last.pt", "plots", "done"}
    names = {"config.yaml", "env.json", "vocabulary.txt", *logs}
    assert {path.name for path in folder.iterdir()} == names
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1]
    for line in lines:
        assert (line["samples"], line["test_samples"], line["blank_texts"]) == (48, 24, 2)
        # Both texts without a word may stand in one group; else two groups are dissolved.
        assert line["ungrouped"] in (4, 8)
        assert line["mean_weight"] == pytest.approx(1.5 - 1 / 4, abs=1e-6)
        assert 0 < line["joining_seconds"] < line["scoring_seconds"] < line["train_seconds"]
        assert line["cut_texts"] > 0
        assert line["empty_texts"] == 0
    assert lines[1]["accuracy"] > 0.6
    assert json.loads((folder / "done").read_text())["accuracy"] == lines[1]["accuracy"]
    words = read_vocabulary(folder / "vocabulary.txt")
    assert set(words) == {*SPECIAL, "the", "a", "of", "and", *(word for topic in TOPICS.values() for word in topic)}


def test_the_same_command_again_prints_the_summary_and_trains_nothing(workplace):
    before = (workplace / "textcnn" / "last.pt").stat().st_mtime_ns
    assert "done already" in run(workplace, "textcnn.yaml", "run_dir=textcnn")
    assert (workplace / "textcnn" / "last.pt").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r"other settings \(seed was 2024, is 1\)"):
        run(workplace, "textcnn.yaml", "run_dir=textcnn", "seed=1")


@pytest.mark.parametrize("network", ["textcnn", "bert"])
def test_an_interrupted_run_goes_on_to_the_same_end(workplace, network, monkeypatch):
    """By SIGTERM, after the second step of the second epoch."""
    step = text_classification.Training.step

    def interrupted(self, batch, epoch, number, share):
        step(self, batch, epoch, number, share)
        if (epoch, number) == (1, 1):
            os.kill(os.getpid(), signal.SIGTERM)

    words = (f"{network}.yaml", f"run_dir={network}-interrupted")
    with monkeypatch.context() as patch:
        patch.setattr(text_classification.Training, "step", interrupted)
        with pytest.raises(SystemExit) as left:
            run(workplace, *words)
    assert left.value.code == 75
    assert "at epoch 2, step 4" in run(workplace, *words)  # the flag is read before a step
    same_results(workplace / network, workplace / f"{network}-interrupted")


def test_weights_of_one_equal_the_baseline_bit_by_bit_and_others_do_not(workplace):
    run(workplace, "textcnn.yaml", "run_dir=forced", "ns.sigma=1", "ns.rho=0")
    run(workplace, "textcnn.yaml", "run_dir=none", "ns.weighting=none")
    forced, none, ns = (
        torch.load(workplace / name / "last.pt", weights_only=True)["training"]["model"]["head.weight"]
        for name in ("forced", "none", "textcnn")
    )
    assert torch.equal(forced, none)
    assert not torch.equal(ns, none)


@pytest.mark.parametrize("weighting", ["own", "shuffled", "constant", "inverse_frequency"])
def test_every_control_trains(workplace, weighting):
    run(workplace, "textcnn.yaml", "epochs=1", f"ns.weighting={weighting}", f"run_dir={weighting}")
    assert metrics(workplace / weighting)[0]["mean_weight"] == pytest.approx(1.25, rel=1e-3)


def test_tail_crowds_texts_out_of_composites_and_counts_them(workplace):
    run(workplace, "textcnn.yaml", "epochs=1", "ns.fit=tail", "ns.length=28", "run_dir=tail")
    assert metrics(workplace / "tail")[0]["empty_texts"] > 0


def test_other_settings_of_the_step(workplace):
    words = ["loss.name=focal", "sampling.name=cbs", "ns.normalize=true", "ns.placements=2", "clip_grad=1.0", "amp=bf16"]
    run(workplace, "textcnn.yaml", "epochs=1", *words, "data.holdout=0.25", "run_dir=other")
    line = metrics(workplace / "other")[0]
    assert line["mean_weight"] == pytest.approx(1, abs=1e-6)
    assert line["test_samples"] == 12


@pytest.fixture(scope="module")
def saved_bert(workplace):
    """The folder of a tiny BERT with its tokenizer, as users have downloaded one."""
    from transformers import BertConfig, BertForSequenceClassification

    words = read_vocabulary(workplace / "bert" / "vocabulary.txt")
    config = BertConfig(vocab_size=len(words), num_labels=2, max_position_embeddings=24, **yaml.safe_load(SIZES))
    BertForSequenceClassification(config).save_pretrained(workplace / "saved")
    shutil.copy(workplace / "bert" / "vocabulary.txt", workplace / "saved" / "vocab.txt")
    return "saved"


def test_a_saved_bert_has_a_vocabulary_of_its_own(workplace, saved_bert):
    words = ["bert.yaml", *(f"model.options.{name}=null" for name in yaml.safe_load(SIZES)), "model.options.folder=saved"]
    run(workplace, *words, "data.tokenizer=saved", "epochs=1", "run_dir=from-saved")
    assert metrics(workplace / "from-saved")[0]["test_samples"] == 24
    assert not (workplace / "from-saved" / "vocabulary.txt").exists()
    with pytest.raises(ValueError, match=r"no effect beside data.tokenizer"):
        run(workplace, *words, "data.tokenizer=saved", "data.vocabulary=bert/vocabulary.txt", "run_dir=mistake")
    more = [*read_vocabulary(workplace / "bert" / "vocabulary.txt"), "one", "two", "three"]
    (workplace / "more.txt").write_text("\n".join(more))
    with pytest.raises(ValueError, match="the vocabulary of 24 tokens does not fit the model, which knows 21"):
        run(workplace, *words, "data.vocabulary=more.txt", "run_dir=mistake")


def downloaded(folder):
    """IMDB and AG News as they come, of a few texts."""
    for split, count in (("train", 4), ("test", 2)):
        for name in ("neg", "pos"):
            (folder / "aclImdb" / split / name).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                (folder / "aclImdb" / split / name / f"{i}_7.txt").write_text(f"the {name} ship.<br />a wave of salt, {i}")
        (folder / "ag_news").mkdir(exist_ok=True)
        rows = "".join(f'"{1 + i % 4}","The gold {i % 4}","a port of iron"\n' for i in range(2 * count))
        (folder / "ag_news" / f"{split}.csv").write_text(rows)


@pytest.mark.parametrize("config", ["imdb_textcnn", "agnews_textcnn", "imdb_bert", "agnews_bert"])
def test_shipped_configs_run_on_files_as_they_come(workplace, saved_bert, config):
    downloaded(workplace / "downloads")
    source = "aclImdb" if "imdb" in config else "ag_news"
    words = [f"data.options.path=downloads/{source}", "data.length=24", "epochs=1", "batch_size=8", "device=cpu"]
    small = ["model.options.dim=8", "model.options.filters=4", "data.min_count=1"]
    bert = ["data.tokenizer=saved", "model.options.folder=saved"]
    path = ROOT / "configs" / "text" / f"{config}.yaml"
    run(workplace, path, *words, *(bert if "bert" in config else small), f"run_dir={config}")
    line = metrics(workplace / config)[0]
    assert (line["samples"], line["test_samples"], line["ungrouped"]) == (8, 4, 0)
    assert line["mean_weight"] == pytest.approx(1.25)


def test_a_vocabulary_that_does_not_fit_the_model_is_refused(workplace):
    words = ("textcnn.yaml", "run_dir=changed")
    run(workplace, *words, "epochs=1")
    (workplace / "changed" / "done").unlink()
    path = workplace / "changed" / "vocabulary.txt"
    kept = path.read_text()
    swapped = kept.rstrip("\n").rpartition("\n")[0] + "\nwhale\n"
    for text, message in (
        (swapped, "vocabulary of 21 tokens is not the one that the network in changed was trained with"),
        (kept + "whale\n", "of another network.*embedding.weight was .21, 16., is .22, 16."),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            run(workplace, *words, "epochs=1")
    path.write_text(kept)
    assert "going on in changed" in run(workplace, *words, "epochs=1")
    shutil.copy(path, workplace / "given.txt")
    run(workplace, "textcnn.yaml", "epochs=1", "data.vocabulary=given.txt", "run_dir=given")
    assert metrics(workplace / "given") == metrics(workplace / "changed")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["epcohs=3"], "unknown setting 'epcohs': did you mean 'epochs'"),
        (["data.lenght=3"], "unknown setting 'data.lenght': did you mean 'data.length'"),
        (["--dryrun"], "unknown option --dryrun"),
        (["channels_last=true"], "unknown setting 'channels_last'"),
        (["ns.scale=0.5"], "ns.scale=0.5 has no effect on texts"),
        (["ns.order=row"], "ns.order=row has no effect on texts"),
        (["ns.batch_norm=running"], "ns.batch_norm=running has no effect on texts"),
        (["ns.fit=head"], "fit must be 'share' or 'tail', got 'head'"),
        (["model.name=textcn"], "unknown model 'textcn': did you mean 'textcnn'"),
        (["model.options.fliters=3"], "unknown option of model 'textcnn' 'fliters': did you mean 'filters'"),
        (["data.length=8"], "data.length=8 leaves no token for a text beside 8 special ones"),
        (["ns.length=23"], "length 23 has no token for each of 4 texts beside 20 special ones"),
        (["data.source=null", "data.path=null"], "no texts: set data.source or data.path"),
        (["data.path=null", "data.source=digits"], "holds images, not texts: use train.py"),
        (["data.vocabulary=nowhere.txt"], "there is no vocabulary file nowhere.txt"),
        (["amp=fp16"], "unknown amp 'fp16'"),
    ],
)
def test_mistakes_are_one_sentence(workplace, words, message):
    with pytest.raises(ValueError, match=message) as error:
        run(workplace, "textcnn.yaml", *words, "run_dir=mistake", "fresh=true")
    assert "\n" not in str(error.value)
    assert not (workplace / "mistake").exists()


def test_a_sequence_too_short_for_groups_is_no_mistake_where_none_are_scored(workplace):
    run(workplace, "textcnn.yaml", "ns.weighting=own", "ns.length=23", "epochs=1", "run_dir=short")
    assert metrics(workplace / "short")[0]["test_samples"] == 24


def test_several_processes_are_refused(workplace, monkeypatch):
    monkeypatch.setattr(text_classification, "start_world", lambda device: text_classification.World(0, 2, torch.device("cpu")))
    with pytest.raises(ValueError, match="texts are trained by one process, not by 2: start without torchrun"):
        run(workplace, "textcnn.yaml", "run_dir=mistake")


def test_help_print_config_and_dry_run(workplace):
    assert "ns.fit=share" in run(workplace, "--help")
    assert yaml.safe_load(run(workplace, "textcnn.yaml", "--print-config", "epochs=7"))["epochs"] == 7
    out = run(workplace, "textcnn.yaml", "--dry-run", "run_dir=dry")
    assert "as learning rate x 1.25 under SGD" in out
    assert "21 tokens; 0.0% of the test tokens are unknown" in out
    assert "and 2 of 48 training texts" in out
    assert "24 tokens, 4 of them for 4 texts, 1 for each (share)" in out
    assert not (workplace / "dry").exists()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_are_read(path):
    config = load_config(path, schema=TextConfig)
    assert config.ns.layout == "1x4"
    assert f"configs/text/{path.name}" in path.read_text() or path == text_classification.DEFAULT_CONFIG


def test_texts_of_the_standard_library(tmp_path):
    """The default config reads the docstrings of this Python."""
    config = load_config(text_classification.DEFAULT_CONFIG, [f"data.root={tmp_path}"], schema=TextConfig)
    data = load_texts(config, None)
    assert data.classes == ["concurrency", "files", "network", "numbers"]
    assert {"thread", "file", "decimal", "address"} <= set(data.words)
    assert len(data.train) > 1500


@pytest.mark.slow
def test_a_mistake_ends_the_process_with_one_line_and_no_traceback(workplace):
    command = [sys.executable, str(ROOT / "examples" / "text_classification.py"), "epcohs=3"]
    result = subprocess.run(command, cwd=workplace, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert (result.stdout, result.stderr) == ("", "error: epcohs=3: unknown setting 'epcohs': did you mean 'epochs'?\n")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["docstrings_textcnn", "docstrings_bert"])
def test_stand_ins_learn(workplace, name):
    run(workplace, ROOT / "configs" / "text" / f"{name}.yaml", f"run_dir={name}", "device=cpu")
    assert metrics(workplace / name)[-1]["balanced_accuracy"] > 0.6
