"""Pick a named option from a plain dict; unknown names and arguments are refused with the nearest one known."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def choose(options: Mapping[str, T], name: str, what: str) -> T:
    """Return ``options[name]``; raise ``ValueError`` naming the nearest option if there is none.

    >>> choose({"row": 1, "column": 2}, "colum", "order")
    Traceback (most recent call last):
    ...
    ValueError: unknown order 'colum': did you mean 'column'?
    """
    if isinstance(name, str) and name in options:
        return options[name]
    raise ValueError(unknown(name, options, what))


def construct(options: Mapping[str, Callable[..., T]], name: str, what: str, arguments: Mapping[str, Any]) -> T:
    """Call ``options[name](**arguments)``; an argument that it does not take, or lacks, is refused by name."""
    build = choose(options, name, what)
    parameters = inspect.signature(build).parameters.values()
    for p in parameters:
        if p.default is p.empty and p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD) and p.name not in arguments:
            raise ValueError(f"{what} {name!r} needs the option {p.name!r}")
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        known = [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
        for argument in arguments:
            if argument not in known:
                raise ValueError(unknown(argument, known, f"option of {what} {name!r}"))
    return build(**arguments)


def unknown(name: object, known: Iterable[str], what: str) -> str:
    """The sentence for a name that is not among ``known``."""
    known = list(known)
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    if near:
        return f"unknown {what} {name!r}: did you mean {near[0]!r}?"
    more = f" and {len(known) - 20} more" if len(known) > 20 else ""
    return f"unknown {what} {name!r}; known are: {', '.join(known[:20]) or 'none'}{more}"
