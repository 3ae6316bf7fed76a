"""Data of a run on texts: read from shards, a vocabulary and a fresh network made for them, and all texts turned to tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from text_config import TextConfig, TextDataConfig
from text_networks import Network, create_network
from text_tokens import Texts, Tokenizer, as_columns, build_vocabulary, read_vocabulary, transformers_tokenizer, word_tokenizer
from torch import Tensor

from ns_data import WEIGHTINGS, ClassStats, Layout, ShardDataset
from ns_data.choose import choose
from ns_data.scoring.tokens import JoinTokens
from ns_data.shards.sources import prepare
from ns_data.training.data import held_out
from ns_data.training.stopwatch import Stopwatch


@dataclass(frozen=True)
class TextData:
    """Both splits as tokens, and the network that reads them."""

    train: Texts
    test: Texts
    stats: ClassStats
    classes: list[str]
    place: str
    words: list[str] | None  # of a vocabulary of words
    tokenizer: Tokenizer
    network: Network
    form: JoinTokens  # of a single text


class RawTexts(NamedTuple):
    """Texts and labels of one split."""

    texts: list[str]
    labels: np.ndarray


def load_texts(config: TextConfig, vocabulary: Path | None) -> TextData:
    """Everything a run starts from; ``vocabulary`` is the file that the run saved before, if it did."""
    train, test, classes, place = read_texts(config.data, config.seed)
    words = None if config.data.tokenizer is not None else choose_words(config.data, train.texts, vocabulary)
    tokenizer = transformers_tokenizer(str(config.data.tokenizer)) if words is None else word_tokenizer(words)
    length, joined = config.data.length, config.ns.length or config.data.length
    torch.manual_seed(config.seed)
    network = create_network(config.model.name, config.model.options, len(classes), tokenizer, max(length, joined))
    form = join_of(tokenizer, network, length)
    most = form.budget(length, 1)
    if most < 1:
        raise ValueError(f"data.length={length} leaves no token for a text beside {length - most} special ones: raise it")
    if choose(WEIGHTINGS, config.ns.weighting, "weighting").composites:
        check_share(join_of(tokenizer, network, joined, config.ns.fit), joined, Layout.parse(config.ns.layout).group_size)
    train_columns, test_columns = (as_columns(tokenizer, part.texts, part.labels, most) for part in (train, test))
    stats = ClassStats.from_labels(train.labels, len(classes))
    return TextData(train_columns, test_columns, stats, classes, place, words, tokenizer, network, form)


def read_texts(config: TextDataConfig, seed: int) -> tuple[RawTexts, RawTexts, list[str], str]:
    """(training texts, test texts, class names, folder); the shards of a source are written on first use."""
    folder = Path(config.path) if config.path is not None else prepare(str(config.source), config.options, config.root)
    train = ShardDataset(folder, config.train_split)
    test = ShardDataset(folder, config.train_split if config.holdout else config.test_split)
    if train.description["kind"] != "text":
        raise ValueError(f"{folder} holds images, not texts: use train.py, or a source of texts such as imdb")
    rows = [np.arange(len(train)), np.arange(len(test))]
    if config.holdout:
        held = held_out(train.labels, config.holdout, seed)
        rows = [np.flatnonzero(~held), np.flatnonzero(held)]
    parts = [
        RawTexts([str(data.read(row)) for row in of], data.labels[of]) for data, of in zip((train, test), rows, strict=True)
    ]
    return parts[0], parts[1], train.classes, str(folder)


def choose_words(config: TextDataConfig, texts: list[str], saved: Path | None) -> list[str]:
    """The vocabulary that the run saved, or a given one, or one made of the training texts."""
    if saved is not None and saved.is_file():
        return read_vocabulary(saved)
    if config.vocabulary is not None:
        return read_vocabulary(config.vocabulary)
    return build_vocabulary(texts, config.min_count, config.max_words)


def join_of(tokenizer: Tokenizer, network: Network, length: int, fit: str = "share") -> JoinTokens:
    """How texts stand in the inputs of a network."""
    return JoinTokens(length, fit=fit, pad=tokenizer.pad, start=network.start, separator=network.separator)


class TimedJoin:
    """Joins the texts of groups, as ``compose`` of a scorer, by the clock."""

    def __init__(self, join: JoinTokens, device: torch.device) -> None:
        self.join, self.time = join, Stopwatch(device)

    def __call__(self, tokens_BL: Tensor, groups_GM: Tensor) -> Tensor:
        with self.time():
            composites_GL: Tensor = self.join(tokens_BL, groups_GM)
        return composites_GL

    def report(self) -> dict[str, int]:
        return self.join.report()


def check_share(join: JoinTokens, length: int, group_size: int) -> None:
    """Refuse composites in which a text has no token; ``join`` says why."""
    join(torch.full((group_size, 1), join.pad), torch.arange(group_size)[None])


def describe_texts(config: TextConfig, data: TextData) -> str:
    """What became of the texts, for people."""
    sizes, group_size = data.train.sizes, Layout.parse(config.ns.layout).group_size
    length = config.ns.length or config.data.length
    budget = data.form.budget(length, group_size)
    share = f", {budget // group_size} for each" if config.ns.fit == "share" else ", first come, first served"
    low, middle, high = np.percentile(sizes, (5, 50, 95)).round().astype(int)
    unknown = (data.test.tokens == data.tokenizer.unknown).mean()
    rows = [
        ("vocabulary", f"{data.tokenizer.size} tokens; {unknown:.1%} of the test tokens are unknown"),
        ("texts", f"{middle} tokens in the middle, {low} to {high} for 90 % of them, at most {data.form.budget(length, 1)}"),
        ("cut, empty", f"{data.train.cut} and {(sizes == 0).sum()} of {len(sizes)} training texts"),
        ("composites", f"{length} tokens, {budget} of them for {group_size} texts{share} ({config.ns.fit})"),
    ]
    return "\n".join(f"{name:<18} {value}" for name, value in rows)
