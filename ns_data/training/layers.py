"""Layers: settings from files and words, checked against typed dataclasses and laid over each other through OmegaConf."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ns_data.choose import unknown

T = TypeVar("T")

Layers = list[tuple[str, Any]]  # where settings come from, and the settings, in the order of growing weight


def read_words(words: Iterable[str], example: str) -> Layers:
    """``key=value`` words as layers of settings."""
    layers: Layers = []
    for word in words:
        key, equals, _ = word.partition("=")
        if not (key and equals):
            raise ValueError(f"{word!r} is not of the form key=value, such as {example}")
        layers.append((word, _parse(word, partial(OmegaConf.from_dotlist, [word]))))
    return layers


def read_yaml(path: Path) -> Any:
    """The mapping of settings in a YAML file."""
    content = _parse(str(path), partial(OmegaConf.load, path))
    if not OmegaConf.is_dict(content):
        raise ValueError(f"{path} is not a mapping of settings")
    return content


def merge_layers(schema: type[T], layers: Layers) -> T:
    """A ``schema`` with the settings of all layers; the first layer names the file in what goes wrong at the end."""
    merged = OmegaConf.structured(schema)
    for origin, layer in layers:
        _check_keys(layer, schema, origin)
        merged = _parse(origin, partial(OmegaConf.merge, merged, layer))
    settings: T = _parse(layers[0][0], partial(OmegaConf.to_object, merged))
    return settings


def leaves(schema: Any, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    """Every setting of a dataclass and of those in it, by its dotted name."""
    for f in dataclasses.fields(schema):
        if dataclasses.is_dataclass(f.default_factory):
            yield from leaves(f.default_factory, f"{prefix}{f.name}.")
        else:
            yield prefix + f.name, f


def _parse(origin: str, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except OmegaConfBaseException as error:
        setting = f"setting {error.full_key}: " if getattr(error, "full_key", None) else ""
        raise ValueError(f"{origin}: {setting}{str(error).splitlines()[0]}") from None
    except Exception as error:  # YAML errors have no common, importable base
        if type(error).__module__.partition(".")[0] != "yaml":
            raise
        raise ValueError(f"{origin} is not valid YAML: {' '.join(str(error).split())}") from None


def _check_keys(layer: Any, schema: type, origin: str, prefix: str = "") -> None:
    content: Any = OmegaConf.to_container(layer, resolve=False) if OmegaConf.is_config(layer) else layer
    fields = {f.name: f for f in dataclasses.fields(schema)}
    for key, value in content.items():
        if key not in fields:
            raise ValueError(f"{origin}: {unknown(f'{prefix}{key}', [prefix + name for name in fields], 'setting')}")
        inner = fields[key].default_factory
        if dataclasses.is_dataclass(inner):
            if not isinstance(value, dict):
                raise ValueError(
                    f"{origin}: {prefix}{key} holds settings such as {next(iter(leaves(inner)))[0]}, got {value!r}"
                )
            _check_keys(value, inner, origin, f"{prefix}{key}.")
