"""Texts as token ids: split by a vocabulary of words or a tokenizer of transformers, and kept as columns.

A split is one array of all its tokens, two or four bytes each, and one of where each text ends. Batches are cut from it by
whole-array operations.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ns_data import GroupedBatch
from ns_data.scoring.tokens import JoinTokens

PAD, UNKNOWN, START, END = range(4)
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")  # the first lines of a vocabulary, as BERT's files name them
_WORD = re.compile(r"\w+(?:'\w+)?|[^\w\s]")
_MARKUP = re.compile(r"<br\s*/?>")  # line breaks of the IMDB reviews
_CHUNK = 1000


class Tokenizer(NamedTuple):
    """``encode(texts)`` yields the ids of each text, without special ones. ``digest`` tells one vocabulary from another."""

    encode: Callable[[Sequence[str]], Iterator[Sequence[int]]]
    size: int  # ids are below it
    digest: str
    pad: int = PAD
    unknown: int = UNKNOWN
    start: int = START
    end: int = END


@dataclass(frozen=True)
class Texts:
    """One split: the text of id i is tokens[ends[i] - sizes[i] : ends[i]]."""

    tokens: np.ndarray  # uint16 or int32
    ends: np.ndarray
    sizes: np.ndarray  # 0 for a text without any token
    labels: np.ndarray
    cut: int  # texts that were longer

    def __len__(self) -> int:
        return len(self.labels)


def split_words(text: str) -> list[str]:
    """Words and punctuation marks, in lower case.

    >>> split_words("It's GOOD.<br />Isn't it?")
    ["it's", 'good', '.', "isn't", 'it', '?']
    """
    return _WORD.findall(_MARKUP.sub(" ", text).lower())


def build_vocabulary(texts: Iterable[str], min_count: int, max_words: int) -> list[str]:
    """The special tokens, then words by falling frequency, equally frequent ones by the alphabet.

    >>> build_vocabulary(["b a a c", "b a d"], min_count=2, max_words=5)[4:]
    ['a', 'b']
    """
    counts = Counter(chain.from_iterable(split_words(text) for text in texts))
    words = sorted((word for word in counts if counts[word] >= min_count), key=lambda word: (-counts[word], word))
    if not words:
        raise ValueError(f"no word occurs {min_count} times in the training texts: lower data.min_count")
    return [*SPECIAL, *words[:max_words]]


def read_vocabulary(path: str | Path) -> list[str]:
    """A file of one token a line, the special ones first; line i is id i."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no vocabulary file {path}")
    words = path.read_text(encoding="utf-8").split("\n")
    words = words[:-1] if words[-1] == "" else words
    if tuple(words[: len(SPECIAL)]) != SPECIAL:
        raise ValueError(f"{path} is no vocabulary: its first lines must be {' '.join(SPECIAL)}, one token a line")
    word, times = Counter(words).most_common(1)[0]
    if times > 1:
        raise ValueError(f"{path} holds {word!r} {times} times: each token has one id, its line")
    return words


def word_tokenizer(words: Sequence[str]) -> Tokenizer:
    """Words by their places in a vocabulary."""
    ids = {word: i for i, word in enumerate(words)}

    def encode(texts: Sequence[str]) -> Iterator[Sequence[int]]:
        return ([ids.get(word, UNKNOWN) for word in split_words(text)] for text in texts)

    return Tokenizer(encode, len(words), _digest(words))


def transformers_tokenizer(folder: str | Path) -> Tokenizer:
    """A tokenizer saved in a local folder, or BERT's from a ``vocab.txt`` in it."""
    transformers = import_transformers()
    if not Path(folder).is_dir():
        raise ValueError(f"data.tokenizer={folder} is not a folder: it should hold vocab.txt, or what save_pretrained leaves")
    whole = any((Path(folder) / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
    read = transformers.AutoTokenizer if whole else transformers.BertTokenizer
    if not whole and not (Path(folder) / "vocab.txt").is_file():
        raise ValueError(f"data.tokenizer={folder} holds neither tokenizer.json nor vocab.txt")
    tokenizer = read.from_pretrained(folder, local_files_only=True)
    special = {name: getattr(tokenizer, f"{name}_token_id") for name in ("pad", "unk", "cls", "sep")}
    for name, value in special.items():
        if value is None:
            raise ValueError(
                f"the tokenizer in {folder} has no {name} token, which joined texts need: use one of the BERT kind"
            )
    options = {"add_special_tokens": False, "return_attention_mask": False, "return_token_type_ids": False}
    options |= {"verbose": False, "split_special_tokens": True}  # "[SEP]" in a text is text

    def encode(texts: Sequence[str]) -> Iterator[Sequence[int]]:
        for first in range(0, len(texts), _CHUNK):
            yield from tokenizer(list(texts[first : first + _CHUNK]), **options)["input_ids"]

    size = max(tokenizer.vocab_size, *(value + 1 for value in special.values()))
    words = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return Tokenizer(encode, size, _digest([word for word, _ in words]), *special.values())


def import_transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise ValueError(
            "BERT and its tokenizers need transformers, which is not installed: python -m pip install 'ns_data[text]'"
        ) from None
    return transformers


def _digest(words: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]


def as_columns(tokenizer: Tokenizer, texts: Sequence[str], labels: np.ndarray, most: int) -> Texts:
    """All texts as tokens, each of at most ``most``."""
    flat, sizes, cut = array("i"), [], 0
    for ids in tokenizer.encode(texts):
        flat.extend(ids[:most])
        sizes.append(min(len(ids), most))
        cut += len(ids) > most
    tokens = np.frombuffer(flat, np.int32) if flat else np.empty(0, np.int32)
    tokens = tokens.astype(np.uint16 if tokenizer.size <= 1 << 16 else np.int32)
    return Texts(tokens, np.cumsum(sizes, dtype=np.int64), np.asarray(sizes, np.int64), np.asarray(labels, np.int64), cut)


def inputs_of(texts: Texts, ids: Sequence[int] | np.ndarray, join: JoinTokens, *, trim: bool = False) -> Tensor:
    """[start] text [separator] of each id, padded, shape (B, L): what ``join`` makes of groups of one.

    L is ``join.length``; ``trim`` takes what the longest text needs, for networks that do not look at padding.
    """
    assert join.length is not None, "set by the caller"
    rows = np.asarray(ids, np.int64)
    sizes_B = texts.sizes[rows]
    s, q, longest = len(join.start), len(join.separator), int(sizes_B.max(initial=0))
    tokens_BL = np.full((len(rows), s + longest + q if trim else join.length), join.pad, np.int64)
    tokens_BL[:, :s] = join.start
    place_L = np.arange(longest)
    within_BL = place_L < sizes_B[:, None]
    source_BL = (texts.ends[rows] - sizes_B)[:, None] + place_L
    tokens_BL[:, s : s + longest][within_BL] = texts.tokens[source_BL[within_BL]]
    tokens_BL[np.arange(len(rows))[:, None], s + sizes_B[:, None] + np.arange(q)] = join.separator
    return torch.from_numpy(tokens_BL)


def batch_of(texts: Texts, ids: Sequence[int], join: JoinTokens, group_size: int, *, trim: bool = False) -> GroupedBatch:
    """A planned batch. A group with an empty text is dissolved: its members stay ungrouped and have the neutral score."""
    rows = np.asarray(ids, np.int64)
    groups_GM = np.arange(len(rows) // group_size * group_size).reshape(-1, group_size)
    empty_B = texts.sizes[rows] == 0
    groups_GM = groups_GM[~empty_B[groups_GM].any(axis=1)]
    tensors = (torch.from_numpy(part) for part in (texts.labels[rows], rows, groups_GM))
    return GroupedBatch(inputs_of(texts, rows, join, trim=trim), *tensors, torch.tensor(0))
