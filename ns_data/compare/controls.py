"""Controls: each method that weighs by ns is joined by the same method under other weightings, which tell what its gain is not.

constant  the larger step alone      shuffled           scores of other samples
own       no composites              inverse_frequency  class size alone (under a long tail)
"""

from __future__ import annotations

from collections.abc import Mapping

from ns_data.compare.config import Comparison, Method, make_method, settings, wanted_controls

LONG_TAIL = 2.0  # imbalance factor from which inverse_frequency is a control


def with_controls(comparison: Comparison, methods: list[Method], long_tailed: Mapping[str, bool]) -> list[Method]:
    """Each method that weighs by ns, followed by its controls: what differs is the weighting alone.

    A method of the file that already is such a control becomes it under its own name.
    """
    wanted = wanted_controls(comparison)
    written = [(method, settings(method.config)) for method in methods]
    controls: dict[str, list[Method]] = {}
    adopted: set[str] = set()
    for method in methods:
        if method.config.ns.weighting != "ns":
            continue
        for weighting in wanted:
            if weighting == "inverse_frequency" and comparison.controls == "all" and not long_tailed[method.name]:
                continue
            name = f"{method.name}.{weighting}"
            changes = {**method.changes, "ns.weighting": weighting}
            control = make_method(comparison, name, changes, control_of=method.name, control=weighting)
            its_settings = settings(control.config)
            same = [other for other, others in written if others == its_settings]
            if same:
                adopted.add(same[0].name)
                control = same[0]._replace(control_of=method.name, control=weighting)
            controls.setdefault(method.name, []).append(control)
    expanded = []
    for method in methods:
        if method.name not in adopted:
            expanded += [method, *controls.get(method.name, [])]
    _check_twins(expanded)
    return expanded


def _check_twins(methods: list[Method]) -> None:
    """Refuse two methods of one name or with the same settings."""
    all_settings = [settings(method.config) for method in methods]
    for number, method in enumerate(methods):
        for other, others in zip(methods[:number], all_settings, strict=False):
            if method.name == other.name:
                raise ValueError(f"two methods are named {method.name}: rename one")
            if all_settings[number] == others:
                raise ValueError(f"methods {other.name} and {method.name} have the same settings: leave one out")
