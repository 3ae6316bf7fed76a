"""docstrings: what the standard library of this Python says of itself, as a small set of texts that is always at hand.

A sample is the docstring of a module, class or function; its class is the topic of the module. The files are parsed, never
imported. Docstrings that occur twice, or have fewer than three words, are left out; a seeded share of each class is the test
set. Another version of Python has other docstrings.
"""

from __future__ import annotations

import ast
import os
import platform
import sysconfig
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ns_data.shards.sources.samples import TextSamples, pick, split_off, write_splits
from ns_data.shards.writer import write_shards

# Modules and packages of each topic; versions of Python have some under other names, or no more.
TOPICS = {
    "concurrency": "asyncio concurrent multiprocessing queue sched selectors signal subprocess threading _threading_local",
    "files": "_pyio bz2 configparser csv dbm filecmp fileinput fnmatch genericpath glob gzip lzma ntpath os pathlib plistlib "
    "posixpath shelve shutil sqlite3 stat tarfile tempfile tomllib zipapp zipfile",
    "network": "email ftplib html http imaplib ipaddress mailbox mimetypes poplib smtplib socket socketserver ssl urllib "
    "webbrowser wsgiref xmlrpc",
    "numbers": "_pydatetime _pydecimal _strptime bisect calendar colorsys datetime decimal fractions heapq numbers random "
    "statistics zoneinfo",
}
_MIN_WORDS = 3


def write_docstrings(
    out_dir: str | os.PathLike[str],
    *,
    path: str | os.PathLike[str] | None = None,
    test_share: float = 0.25,
    split_seed: int = 0,
    **options: Any,
) -> dict[str, Any]:
    """Docstrings of the standard library by topic: concurrency, files, network, numbers.

    ``path`` is the folder of another Python's library.
    """
    root = Path(path or sysconfig.get_path("stdlib"))
    found = [(text, name, label) for label, topic in enumerate(TOPICS.values()) for text, name in _of_modules(root, topic)]
    times = Counter(text for text, _, _ in found)
    kept = [(text, name, label) for text, name, label in found if times[text] == 1 and len(text.split()) >= _MIN_WORDS]
    labels = [label for _, _, label in kept]
    for label, topic in enumerate(TOPICS):
        if labels.count(label) < 2:
            raise ValueError(
                f"{root} holds no docstrings on {topic}: path must be the standard library of a Python, with its .py"
            )
    parts = {}
    for split, rows in zip(("train", "test"), split_off(kept, labels, test_share, split_seed), strict=True):
        texts, names, classes = zip(*pick(kept, rows), strict=True)
        parts[split] = TextSamples(list(texts), list(classes), list(names))
    python = platform.python_version() if path is None else str(path)
    made_by = {"source": "docstrings", "python": python, "split_seed": split_seed}
    return write_splits(write_shards, parts, out_dir, classes=list(TOPICS), made_by=made_by, **options)


def _of_modules(root: Path, names: str) -> Iterator[tuple[str, str]]:
    """(docstring, where it is) in these modules, in the order of files and lines."""
    for name in names.split():
        package = root / name
        files = sorted(package.rglob("*.py")) if package.is_dir() else [root / f"{name}.py"]
        for file in files:
            if file.is_file():
                place = file.relative_to(root).as_posix()
                yield from ((text, f"{place}:{line}") for line, text in sorted(_of_file(file)))


def _of_file(file: Path) -> Iterator[tuple[int, str]]:
    """(line, docstring) of the module, its classes and functions."""
    for node in ast.walk(ast.parse(file.read_bytes(), str(file))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "lineno", 0), text
