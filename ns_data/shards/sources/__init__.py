"""Sources: data sets as users have them, converted to shards. Each is a function of its options."""

from __future__ import annotations

import inspect
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ns_data.choose import choose, unknown
from ns_data.shards.sources.cifar import write_cifar10, write_cifar100, write_cifar_lt
from ns_data.shards.sources.digits import write_digits, write_digits_domain
from ns_data.shards.sources.docstrings import write_docstrings
from ns_data.shards.sources.folders import write_emoset, write_folder, write_list, write_officehome
from ns_data.shards.sources.imagenet import write_imagenet
from ns_data.shards.sources.imagenet_hard import write_imagenet_hard
from ns_data.shards.sources.texts import write_agnews, write_imdb
from ns_data.shards.sources.wds import link_wds
from ns_data.shards.writer import write_shards

# source(out_dir, **options) writes a folder of shards with the splits "train" and "test" (or "val").
SOURCES: dict[str, Callable[..., Any]] = {
    "digits": write_digits,
    "digits_domain": write_digits_domain,
    "cifar10": write_cifar10,
    "cifar100": write_cifar100,
    "cifar_lt": write_cifar_lt,
    "imagenet": write_imagenet,
    "imagenet_hard": write_imagenet_hard,
    "folder": write_folder,
    "list": write_list,
    "officehome": write_officehome,
    "emoset": write_emoset,
    "imdb": write_imdb,
    "agnews": write_agnews,
    "docstrings": write_docstrings,
    "wds": link_wds,
}

# Options of write_shards that a source hands on when it takes more options than it names.
_SHARED = ("seed", "samples_per_shard", "max_side", "quality", "workers", "progress")


def source_options(source: str) -> dict[str, inspect.Parameter]:
    """The options of a source, those that it shares with ``write_shards`` included."""
    own = dict(inspect.signature(choose(SOURCES, source, "data source")).parameters)
    del own["out_dir"]
    if own.pop("options", None) is not None:
        shared = inspect.signature(write_shards).parameters
        own |= {name: shared[name] for name in _SHARED}
    return own


def convert(source: str, out_dir: str | Path, options: dict[str, Any]) -> dict[str, Any]:
    """Write the shards of ``source``; ``ValueError`` for an option that it does not know, or that is missing."""
    known = source_options(source)
    for name in options:
        if name not in known:
            raise ValueError(unknown(name, known, f"option of data source {source!r}"))
    missing = [name for name, option in known.items() if option.default is option.empty and name not in options]
    if missing:
        raise ValueError(f"data source {source!r} needs {', '.join(f'{name}=...' for name in missing)}")
    return SOURCES[source](out_dir, **options)


def folder_name(source: str, options: dict[str, Any]) -> str:
    """A folder for a source with these options: ``digits-imbalance=50``.

    >>> folder_name("digits", {"imbalance": 50})
    'digits-imbalance=50'
    """
    return "-".join([source, *(f"{key}={_plain(str(value))}" for key, value in sorted(options.items()))])


def _plain(value: str) -> str:
    """A value as part of a file name; paths and the like are cut to their end and told apart by a checksum."""
    name = re.sub(r"[^\w.+]+", "_", value)
    return value if name == value else f"{name[-20:]}~{zlib.crc32(value.encode()):08x}"


def prepare(source: str, options: dict[str, Any], root: str | Path) -> Path:
    """The folder of a source's shards under ``root``, written on first use."""
    folder = Path(root) / folder_name(source, options)
    if not (folder / "complete").is_file():
        convert(source, folder, options)
        (folder / "complete").touch()
    return folder
