"""Networks for texts by name, each with what stands before and after a text in its inputs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from text_tokens import Tokenizer, import_transformers
from torch import Tensor, nn

from ns_data import create_model
from ns_data.choose import construct, unknown


class Network(NamedTuple):
    """``model(tokens_BL) -> logits_BK`` for tokens ``[start] text [separator]`` and padding."""

    model: nn.Module
    start: tuple[int, ...]
    separator: tuple[int, ...]
    trim: bool  # padding at the end changes nothing, and may be left out


class BertClassifier(nn.Module):
    """Somebody's sequence classifier of transformers as a function of token ids alone: padding is masked."""

    def __init__(self, bert: nn.Module, pad_id: int) -> None:
        super().__init__()
        self.bert, self.pad_id = bert, pad_id

    def forward(self, tokens_BL: Tensor) -> Tensor:
        logits_BK: Tensor = self.bert(input_ids=tokens_BL, attention_mask=(tokens_BL != self.pad_id).long()).logits
        return logits_BK


def build_textcnn(num_classes: int, tokenizer: Tokenizer, length: int, **options: Any) -> Network:
    """``ns_data``'s TextCNN; padding of one less than the widest filter at every seam, so that no filter sees two texts."""
    model: Any = create_model("textcnn", num_classes, vocab_size=tokenizer.size, pad_id=tokenizer.pad, **options)
    seam = (tokenizer.pad,) * (model.max_width - 1)
    return Network(model, seam, seam, trim=False)


def build_bert(num_classes: int, tokenizer: Tokenizer, length: int, folder: str | None = None, **options: Any) -> Network:
    """A BERT: [CLS] a [SEP], and of joined texts [CLS] a [SEP] b [SEP].

    ``folder`` holds what ``save_pretrained`` leaves (config.json and weights), ``options`` are changes of its configuration;
    without it a new network is made, ``options`` being those of ``BertConfig``, such as hidden_size.
    """
    transformers = import_transformers()
    known = [name for name in inspect.signature(transformers.BertConfig.__init__).parameters if name != "self"]
    for name in options:
        if name not in known:
            raise ValueError(unknown(name, ["folder", *known], "option of model 'bert'"))
    options = {"num_labels": num_classes, **options}
    if folder is None:
        config = transformers.BertConfig(**{"vocab_size": tokenizer.size, "pad_token_id": tokenizer.pad, **options})
    elif (Path(folder) / "config.json").is_file():
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, **options)
    else:
        raise ValueError(f"model.options.folder={folder} holds no config.json: give the folder of a saved model")
    if config.vocab_size < tokenizer.size:
        raise ValueError(
            f"the vocabulary of {tokenizer.size} tokens does not fit the model, which knows {config.vocab_size}: use the "
            "tokenizer that the model was made with"
        )
    if config.max_position_embeddings < length:
        raise ValueError(
            f"inputs of {length} tokens do not fit the model, which has {config.max_position_embeddings} positions: lower "
            "data.length and ns.length"
        )
    bert = transformers.AutoModelForSequenceClassification.from_config(config) if folder is None else _saved(folder, config)
    return Network(BertClassifier(bert, tokenizer.pad), (tokenizer.start,), (tokenizer.end,), trim=True)


def _saved(folder: str, config: Any) -> nn.Module:
    """The network of a folder; only its head may be new."""
    options = {"local_files_only": True, "ignore_mismatched_sizes": True, "output_loading_info": True, "dtype": torch.float32}
    try:
        model, found = import_transformers().AutoModelForSequenceClassification.from_pretrained(
            folder, config=config, **options
        )
    except OSError as error:
        raise ValueError(f"model.options.folder={folder} holds no weights ({str(error).splitlines()[0]})") from None
    strangers = [key if isinstance(key, str) else key[0] for name in ("missing_keys", "mismatched_keys") for key in found[name]]
    strangers = sorted(key for key in strangers if "classifier" not in key and "pooler" not in key)
    if strangers:
        raise ValueError(f"the weights in {folder} do not fit its config.json: {strangers[0]} and {len(strangers) - 1} more")
    bert: nn.Module = model.train()  # saved networks come in evaluation mode, without dropout
    return bert


NETWORKS: dict[str, Callable[..., Network]] = {"textcnn": build_textcnn, "bert": build_bert}


def create_network(name: str, options: dict[str, Any], num_classes: int, tokenizer: Tokenizer, length: int) -> Network:
    """A network for inputs of up to ``length`` tokens."""
    facts = {"num_classes": num_classes, "tokenizer": tokenizer, "length": length}
    return construct(NETWORKS, name, "model", {**facts, **options})
