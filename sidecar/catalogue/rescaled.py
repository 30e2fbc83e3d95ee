"""Refuses metrics whose base unit would change: amounts that were counted are kept in it.

Guarantees: every such metric is named with its line, and with what to do instead.
"""

from __future__ import annotations

from collections.abc import Mapping

from sidecar.catalogue.model import Catalogue
from sidecar.catalogue.yaml_reader import Reader


def rescaled(catalogue: Catalogue, text: str, name: str, scales: Mapping[str, int]) -> list[str]:
    """The problems of a text that was read as ``catalogue``, when metrics had these decimal places before."""
    changed = {
        metric: (scales[metric], one.scale)
        for metric, one in catalogue.metrics.items()
        if scales.get(metric, one.scale) != one.scale
    }
    if not changed:
        return []
    reader = Reader(name)
    places = reader.mapping(reader.mapping(reader.document(text)).get("metrics"))
    for metric, (before, after) in changed.items():
        value = reader.mapping(places[metric]).get("scale", places[metric])
        reader.problem(
            value,
            f"the scale of {metric} is {before} and cannot become {after}, since what was counted is kept in that unit",
            f'write "scale: {before}", or give the metric another name',
        )
    return reader.problems
