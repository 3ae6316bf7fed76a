"""Texts as columns of tokens, inputs and composites, against plain loops over lists and the libraries' own ways."""

import itertools
import sys

import numpy as np
import pytest
import torch
import yaml
from text_networks import create_network
from text_tokens import (
    SPECIAL,
    as_columns,
    batch_of,
    build_vocabulary,
    inputs_of,
    read_vocabulary,
    split_words,
    transformers_tokenizer,
    word_tokenizer,
)

from ns_data import NSScorer
from ns_data.scoring.tokens import JoinTokens

SIZES = "{hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32, initializer_range: 0.2}"
TEXTS = ["The film was good.", "", "Bad, bad, BAD film!", "good " * 30, "the unheard-of", "It's <br /><br />over"]
WORDS = [*SPECIAL, "bad", "film", "good", "the", ",", ".", "was", "!", "over", "it's"]


@pytest.fixture
def tokenizer():
    return word_tokenizer(WORDS)


def columns(tokenizer, texts=TEXTS, most=1000):
    return as_columns(tokenizer, texts, np.arange(len(texts)) % 2, most)


def lists_of(texts):
    return [texts.tokens[end - size : end].tolist() for end, size in zip(texts.ends, texts.sizes, strict=True)]


def test_a_vocabulary_holds_the_most_frequent_words_equal_ones_by_the_alphabet():
    texts = ["b c a", "B c d!", "c d b", "e"]  # c 3, b 3, d 2, a 1, e 1, ! 1
    assert build_vocabulary(texts, 2, 100) == [*SPECIAL, "b", "c", "d"]
    assert build_vocabulary(texts, 1, 4) == [*SPECIAL, "b", "c", "d", "!"]
    with pytest.raises(ValueError, match=r"no word occurs 5 times in the training texts: lower data.min_count"):
        build_vocabulary(texts, 5, 100)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (None, "there is no vocabulary file"),
        (["good", "film"], "its first lines must be \\[PAD\\] \\[UNK\\] \\[CLS\\] \\[SEP\\]"),
        ([*SPECIAL, "film", "good", "film"], "holds 'film' 2 times: each token has one id"),
    ],
)
def test_a_file_that_is_no_vocabulary_is_refused(tmp_path, lines, message):
    path = tmp_path / "words.txt"
    if lines is not None:
        path.write_text("".join(f"{line}\n" for line in lines))
    with pytest.raises(ValueError, match=message):
        read_vocabulary(path)


def test_a_vocabulary_is_read_as_it_was_written(tmp_path):
    (tmp_path / "words.txt").write_text("".join(f"{word}\n" for word in WORDS), encoding="utf-8")
    assert read_vocabulary(tmp_path / "words.txt") == WORDS


def test_texts_are_kept_as_columns_and_cut_ones_counted(tokenizer):
    texts = columns(tokenizer, most=5)  # the first text has as many
    unknown = 1
    expected = [[WORDS.index(word) if word in WORDS else unknown for word in split_words(text)][:5] for text in TEXTS]
    assert lists_of(texts) == expected
    assert expected[4] == [7, unknown, unknown, unknown]  # the unheard - of
    assert texts.sizes.tolist() == [5, 0, 5, 5, 4, 2]
    assert texts.cut == 2
    assert texts.tokens.dtype == np.uint16
    assert columns(tokenizer._replace(size=70000)).tokens.dtype == np.int32
    assert columns(tokenizer, ["", ""]).sizes.tolist() == [0, 0]


@pytest.mark.parametrize("trim", [False, True])
@pytest.mark.parametrize(("start", "separator"), [((), ()), ((2,), (3,)), ((0,) * 4, (0,) * 4)])
def test_an_input_is_start_text_separator_and_padding(tokenizer, start, separator, trim):
    form = JoinTokens(20, start=start, separator=separator)
    texts, ids = columns(tokenizer, most=form.budget(20, 1)), [5, 1, 2, 3]
    expected = [[*start, *lists_of(texts)[i], *separator] for i in ids]
    width = max(len(tokens) for tokens in expected) if trim else 20
    expected = [tokens + [0] * (width - len(tokens)) for tokens in expected]
    assert inputs_of(texts, ids, form, trim=trim).tolist() == expected
    if not trim:  # one rule for single and joined texts
        bare = torch.tensor([tokens + [0] * (20 - len(tokens)) for tokens in (lists_of(texts)[i] for i in ids)])
        assert form(bare, torch.arange(4)[:, None]).tolist() == expected


@pytest.mark.parametrize("fit", ["share", "tail"])
@pytest.mark.parametrize(("start", "separator"), [((2,), (3,)), ((0,) * 4, (0,) * 4)])
@pytest.mark.parametrize("length", [25, 48, 90])
def test_composites_of_a_batch_are_those_of_a_loop_over_lists(tokenizer, fit, start, separator, length):
    form = JoinTokens(32, start=start, separator=separator)
    texts = columns(tokenizer, most=form.budget(32, 1))
    batch = batch_of(texts, [3, 0, 2, 5, 4, 3, 3, 0, 2], form, 4)
    join = JoinTokens(length, fit=fit, start=start, separator=separator)
    composites = join(batch.images, batch.groups)
    for composite, members in zip(composites.tolist(), ([3, 0, 2, 5], [4, 3, 3, 0]), strict=True):
        left = length - len(start) - 4 * len(separator)
        share, expected = left // 4, list(start)
        for member in members:
            kept = lists_of(texts)[member][: share if fit == "share" else left]
            left -= len(kept)
            expected += [*kept, *separator]
        assert composite == expected + [0] * (length - len(expected))


def test_a_group_with_an_empty_text_is_dissolved_and_its_members_are_neutral(tokenizer):
    form = JoinTokens(16)
    batch = batch_of(columns(tokenizer), [0, 2, 3, 1, 0, 2, 4, 5, 0, 2], JoinTokens(40), 4)
    assert batch.groups.tolist() == [[4, 5, 6, 7]]
    assert batch.ids.tolist() == [0, 2, 3, 1, 0, 2, 4, 5, 0, 2]
    torch.manual_seed(0)
    model = create_network("textcnn", {"dim": 8, "filters": 8}, 2, tokenizer, 40).model
    scores = NSScorer(model, layout="1x4", compose=form)(batch.images, batch.labels, batch.groups)
    assert scores[[0, 1, 2, 3, 8, 9]].tolist() == [0.25] * 6
    assert scores[4:8].sum().item() == pytest.approx(1)
    assert (scores[4:8] - 0.25).abs().min() > 1e-4


def test_composites_of_textcnn_do_not_depend_on_the_order_of_texts_and_take_the_best_of_each(tokenizer):
    torch.manual_seed(0)
    network = create_network("textcnn", {"dim": 16, "filters": 12, "widths": [2, 3, 5]}, 3, tokenizer, 80)
    assert network.start == network.separator == (0,) * 4
    model = network.model.eval()
    texts = columns(tokenizer, ["The film was good.", "Bad, bad, BAD film!", "It's over", "good, good, the film"])
    join = JoinTokens(80, start=network.start, separator=network.separator)
    bare = JoinTokens(80, start=network.start)
    tokens = inputs_of(texts, range(4), join)
    groups = torch.tensor(list(itertools.permutations(range(4))))
    with torch.no_grad():
        logits = model(join(tokens, groups))
        assert torch.equal(logits, logits[:1].expand_as(logits))
        assert not torch.equal(model(bare(tokens, groups[:1])), model(bare(tokens, groups[-1:])))
        features = []
        model.head.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0]))
        model(tokens), model(join(tokens, groups[:1]))
    torch.testing.assert_close(features[1], features[0].amax(dim=0, keepdim=True))


@pytest.mark.parametrize(("name", "options"), [("textcnn", {"dim": 8, "filters": 100}), ("bert", yaml.safe_load(SIZES))])
def test_logits_of_a_text_do_not_depend_on_its_batch(tokenizer, name, options):
    torch.manual_seed(0)
    network = create_network(name, options, 3, tokenizer, 40)
    for convolution in getattr(network.model, "convolutions", ()):
        torch.nn.init.ones_(convolution.bias)  # what a filter says of nothing but padding must not come and go
    form = JoinTokens(40, start=network.start, separator=network.separator)
    texts = columns(tokenizer, most=form.budget(40, 1))
    with torch.no_grad():
        alone, among = (network.model.eval()(inputs_of(texts, ids, form, trim=network.trim)) for ids in ([5], [5, 3, 1]))
    torch.testing.assert_close(alone[0], among[0])


@pytest.mark.parametrize("fit", ["share", "tail"])
def test_no_python_runs_per_token_or_text(tokenizer, fit):
    """As many calls into Python and C for 8 short texts as for 64 long ones."""

    def calls(count, words):
        texts = columns(tokenizer, ["good film " * words] * count)
        form = JoinTokens(4 * words + 10, fit=fit, start=(2,), separator=(3,))
        seen = []
        sys.setprofile(lambda frame, event, argument: seen.append(event))
        try:
            batch = batch_of(texts, range(count), form, 4)
            form(batch.images, batch.groups)
        finally:
            sys.setprofile(None)
        return len(seen)

    calls(8, 4)  # what is imported or cached at first use
    assert calls(64, 200) == calls(8, 4)


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory):
    """A vocabulary of word pieces as BERT's are saved, and a tiny network with it."""
    from transformers import BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("bert")
    pieces = [*SPECIAL, "[MASK]", "the", "film", "was", "good", "##s", "bad", ".", "[", "]", "sep"]
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces))
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=len(pieces), num_labels=3, max_position_embeddings=40, **sizes)
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


BERT_TEXTS = ["The films was good.", "bad", "", "the film " * 20]


def test_inputs_of_bert_are_those_of_its_own_tokenizer(bert_folder):
    from transformers import BertTokenizer

    theirs = BertTokenizer.from_pretrained(bert_folder)
    tokenizer = transformers_tokenizer(bert_folder)
    form = JoinTokens(16, pad=tokenizer.pad, start=(tokenizer.start,), separator=(tokenizer.end,))
    texts = columns(tokenizer, BERT_TEXTS, most=form.budget(16, 1))
    expected = theirs(BERT_TEXTS, padding="max_length", truncation=True, max_length=16)["input_ids"]
    assert inputs_of(texts, range(4), form).tolist() == expected
    assert texts.cut == 1
    sep = columns(tokenizer, ["the [SEP] film"])
    assert tokenizer.end not in sep.tokens
    assert sep.sizes.tolist() == [5]


def test_logits_of_bert_are_those_of_the_saved_network_with_masked_padding(bert_folder):
    from transformers import BertForSequenceClassification, BertTokenizer

    tokenizer = transformers_tokenizer(bert_folder)
    network = create_network("bert", {"folder": str(bert_folder)}, 3, tokenizer, 40)
    form = JoinTokens(40, start=network.start, separator=network.separator)
    texts = columns(tokenizer, BERT_TEXTS, most=form.budget(40, 1))
    theirs = BertForSequenceClassification.from_pretrained(bert_folder).eval()
    encoded = BertTokenizer.from_pretrained(bert_folder)(BERT_TEXTS, padding=True, truncation=True, max_length=40)
    with torch.no_grad():
        expected = theirs(
            input_ids=torch.tensor(encoded["input_ids"]), attention_mask=torch.tensor(encoded["attention_mask"])
        ).logits
        torch.testing.assert_close(network.model.eval()(inputs_of(texts, range(4), form)), expected)
        torch.testing.assert_close(network.model(inputs_of(texts, range(4), form, trim=network.trim)), expected)
    assert network.trim


def test_a_head_for_other_classes_is_new_and_anything_else_must_fit(bert_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    tokenizer = transformers_tokenizer(bert_folder)
    network = create_network("bert", {"folder": str(bert_folder)}, 5, tokenizer, 16)
    assert network.model.bert.classifier.out_features == 5
    assert all(module.training for module in network.model.modules())
    saved = load_file(bert_folder / "model.safetensors")
    name = "bert.embeddings.word_embeddings.weight"
    assert torch.equal(network.model.bert.state_dict()[name], saved[name])
    for file in bert_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    save_file({**saved, name: saved[name][:-1].contiguous()}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=f"do not fit its config.json: {name}"):
        create_network("bert", {"folder": str(tmp_path)}, 5, tokenizer, 16)


@pytest.mark.parametrize(
    ("options", "size", "length", "message"),
    [
        ({"folder": "FOLDER"}, 99, 16, "the vocabulary of 99 tokens does not fit the model, which knows 15"),
        ({"folder": "FOLDER"}, 15, 64, "inputs of 64 tokens do not fit the model, which has 40 positions"),
        ({"folder": "nowhere"}, 15, 16, "model.options.folder=nowhere holds no config.json"),
        ({"hiden_size": 8}, 15, 16, "unknown option of model 'bert' 'hiden_size': did you mean 'hidden_size'"),
    ],
)
def test_a_bert_that_does_not_fit_is_refused(bert_folder, options, size, length, message):
    options = {key: str(bert_folder) if value == "FOLDER" else value for key, value in options.items()}
    with pytest.raises(ValueError, match=message):
        create_network("bert", options, 3, word_tokenizer(WORDS)._replace(size=size), length)


def test_bert_without_transformers_says_how_to_get_it(monkeypatch, tokenizer):
    monkeypatch.setitem(sys.modules, "transformers", None)
    for use in (lambda: create_network("bert", {}, 2, tokenizer, 16), lambda: transformers_tokenizer("anywhere")):
        with pytest.raises(ValueError, match=r"pip install 'ns_data\[text\]'"):
            use()


@pytest.mark.parametrize(
    ("files", "message"),
    [(None, "is not a folder: it should hold vocab.txt"), ({}, "holds neither tokenizer.json nor vocab.txt")],
)
def test_a_folder_without_a_tokenizer_is_refused(tmp_path, files, message):
    folder = tmp_path / "tokenizer"
    if files is not None:
        folder.mkdir()
    with pytest.raises(ValueError, match=message):
        transformers_tokenizer(folder)
