"""The `ns-data` command, equally `python -m ns_data.cli`: shards, comparisons, analysis and evaluation of runs."""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ns_data.choose import unknown
from ns_data.shards.index import index_shards
from ns_data.shards.inspect import describe, draw
from ns_data.shards.sources import SOURCES, convert, folder_name, source_options
from ns_data.shards.verify import verify_shards


def shards(arguments: Sequence[str]) -> int:
    """ns-data shards SOURCE [key=value ...]: convert a data set to shards.

    The folder is out=DIR, by default data/SOURCE and its options. `ns-data shards SOURCE help` lists the options of a source.
    """
    if not arguments or "=" in arguments[0]:
        raise ValueError(f"name a data source: {', '.join(SOURCES)}")
    source, *rest = arguments
    if rest == ["help"]:
        print(f"{source}: {inspect.getdoc(SOURCES[source]) if source in SOURCES else ''}")
        for name, option in source_options(source).items():
            print(f"  {name}={'...' if option.default is option.empty else option.default}")
        return 0
    options = _options(rest)
    out = options.pop("out", None)
    # Where and how fast it is written does not name the folder.
    name = folder_name(source, {key: value for key, value in options.items() if key not in ("workers", "progress")})
    folder = Path(str(out)) if out is not None else Path("data") / name
    description = convert(source, folder, options)
    print(f"{folder}: {_summary(description)}")
    return 0


def index(arguments: Sequence[str]) -> int:
    """ns-data index DIR [label=cls] [classes=a,b,c] [index_dir=DIR] [digest=true]: index shards that exist."""
    folder, options = _folder_and(arguments, ("label", "classes", "index_dir", "digest"))
    if isinstance(options.get("classes"), str):
        options["classes"] = options["classes"].split(",")
    print(f"{folder}: {_summary(index_shards(folder, progress=True, **options))}")
    return 0


def inspect_folder(arguments: Sequence[str]) -> int:
    """ns-data inspect DIR [split=train] [layout=2x2] [size=64] [out=DIR]: classes, sizes, groups, and pictures of both."""
    folder, options = _folder_and(arguments, ("split", "layout", "size", "out", "index_dir"))
    out = Path(str(options.pop("out", folder)))
    drawing = {key: options.pop(key) for key in ("layout", "size") if key in options}
    text, dataset = describe(folder, **options)
    print(text)
    for path in draw(dataset, out, **drawing):
        print(f"picture: {path}")
    return 0


def verify(arguments: Sequence[str]) -> int:
    """ns-data verify DIR [index_dir=DIR]: read every shard and compare its digest."""
    folder, options = _folder_and(arguments, ("index_dir",))
    found = verify_shards(folder, progress=True, **options)
    for problem in found.problems:
        print(problem)
    if found.unknown:
        print(f"{len(found.unknown)} shards have no digest to compare: make them with ns-data index {folder} digest=true")
    print(f"{folder}: {len(found.intact)} files intact, {len(found.problems)} damaged, {len(found.unknown)} without a digest")
    return 1 if found.problems or found.unknown else 0


def compare(arguments: Sequence[str]) -> int:
    """ns-data compare CONFIG.yaml [key=value ...]: run methods with every seed, write a report; --help lists settings."""
    from ns_data.compare.launch import main as launch  # matplotlib, torch and the training take their time

    launch(list(arguments))
    return 0


def report(arguments: Sequence[str]) -> int:
    """ns-data report RUN... [out=DIR]: scores and weights of finished runs as figures, tables and one page, from their folders.

    By default out is the folder `report` in the run's folder, or in the one that holds all of them.
    """
    from ns_data.compare.analyse import main as analyse

    analyse(arguments)
    return 0


def evaluate(arguments: Sequence[str]) -> int:
    """ns-data evaluate RUN_OR_CHECKPOINT [CONFIG.yaml] [split=test] [out=FILE] [key=value ...]: all numbers of a network.

    RUN is a run folder (its last.pt); a checkpoint in one, such as RUN/epoch-10.pt, or any file of weights will do, the
    latter with its CONFIG.yaml or model.name=. Settings such as data.path=DIR put other data in the place of the run's.
    labels=json:KEY counts a prediction as right if it is in a list of labels, as is done for ImageNet-Hard unasked;
    classes=DIR names shards with the network's class names; out=FILE writes JSON, out=- prints it alone.
    """
    from ns_data.training.evaluate_checkpoint import main as evaluate_checkpoint

    evaluate_checkpoint(arguments)
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "shards": shards,
    "index": index,
    "inspect": inspect_folder,
    "verify": verify,
    "compare": compare,
    "report": report,
    "evaluate": evaluate,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; user errors are one line on stderr and exit status 2."""
    parser = argparse.ArgumentParser("ns-data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    usages = [f"  {(inspect.getdoc(command) or name).splitlines()[0]}" for name, command in COMMANDS.items()]
    parser.epilog = "commands:\n" + "\n".join(usages)
    parser.add_argument("command", metavar="command")
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    given = parser.parse_args(arguments)
    try:
        if given.command not in COMMANDS:
            raise ValueError(unknown(given.command, COMMANDS, "command"))
        if given.command != "compare" and {"-h", "--help"} & set(given.arguments):  # compare has a help of its own
            print(inspect.getdoc(COMMANDS[given.command]))
            return 0
        return COMMANDS[given.command](given.arguments)
    except (ValueError, OSError) as error:
        print(f"ns-data: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ns-data: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130


def _folder_and(arguments: Sequence[str], known: Sequence[str]) -> tuple[str, dict[str, Any]]:
    if not arguments or arguments[0].startswith("--"):
        raise ValueError("name the folder of the shards first")
    options = _options(arguments[1:])
    for name in options:
        if name not in known:
            raise ValueError(unknown(name, known, "option"))
    return arguments[0], options


def _options(arguments: Sequence[str]) -> dict[str, Any]:
    """key=value words, also spelled --key=value and --key value, as in ``--max-side 500``."""
    options: dict[str, Any] = {}
    words = list(arguments)
    while words:
        word = words.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        if not equals and word.startswith("--") and words:
            value, equals = words.pop(0), "="
        if not equals or not name:
            raise ValueError(f"{word!r} is not an option: write key=value")
        options[name.replace("-", "_")] = _value(value)
    return options


def _value(text: str) -> Any:
    """Numbers, true, false and none as such; everything else stays text."""
    if text.lower() in ("true", "false", "none", "null"):
        return {"true": True, "false": False}.get(text.lower())
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _summary(description: dict[str, Any]) -> str:
    parts = [f"{split} {part['samples']:,}" for split, part in description["splits"].items()]
    return f"{', '.join(parts)} samples of {len(description['classes'])} classes in {len(description['shards'])} shards"


if __name__ == "__main__":
    sys.exit(main())
