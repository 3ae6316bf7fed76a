"""Sources: data sets as users have them, converted to shards. One source a file; each is a function of its options."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ns_data.shards.sources.digits import write_digits

# source(out_dir, **options) writes a folder of shards with the splits "train" and "test".
SOURCES: dict[str, Callable[..., Any]] = {
    "digits": write_digits,
}


def folder_name(source: str, options: dict[str, Any]) -> str:
    """A folder for a source with these options: ``digits-imbalance=50``.

    >>> folder_name("digits", {"imbalance": 50})
    'digits-imbalance=50'
    """
    return "-".join([source, *(f"{key}={value}" for key, value in sorted(options.items()))])


def prepare(source: str, options: dict[str, Any], root: str | Path) -> Path:
    """The folder of a source's shards under ``root``, written on first use."""
    from ns_data.choose import construct

    folder = Path(root) / folder_name(source, options)
    if not (folder / "complete").is_file():
        construct(SOURCES, source, "data source", {"out_dir": folder, **options})
        (folder / "complete").touch()
    return folder
