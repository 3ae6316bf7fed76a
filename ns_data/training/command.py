"""Command: the command line of a script: words, dashed words, and how it ends when it cannot do what was asked."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence


def split_arguments(arguments: Iterable[str], dashed: Sequence[str]) -> tuple[list[str], set[str]]:
    """(plain words, dashed words) of a command line; ``ValueError`` for a dashed word that is not among ``dashed``."""
    words, found = list[str](), set[str]()
    for argument in arguments:
        if not argument.startswith("-"):
            words.append(argument)
        elif argument in dashed:
            found.add(argument)
        else:
            raise ValueError(f"unknown option {argument}: there are {', '.join(dashed)}; settings are written key=value")
    return words, found


def run_command(main: Callable[[list[str]], None]) -> None:
    """Run a script's ``main``. What its user must mend is one line and status 1; NS_TRACEBACK=1 shows where it was raised."""
    try:
        main(sys.argv[1:])
    except ValueError as error:
        if "NS_TRACEBACK" in os.environ:
            raise
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\ninterrupted: the same command goes on where it stopped")
