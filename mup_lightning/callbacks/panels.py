"""What a callback says of its panels in TensorBoard's tab "Custom Scalars", and how those of all come together."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

Panels = dict[str, dict[str, list[Any]]]
"""{category: {title: ["Multiline", [tags]] or ["Margin", [value, lower, upper]]}}.

The tags of a Multiline are regular expressions, matched from the beginning of a tag on; those of a Margin are tags."""


@runtime_checkable
class HasPanels(Protocol):
    """A callback with panels of its own."""

    def panels(self) -> Panels:
        """Its panels, in the order in which they are to be shown."""
        ...


def merge(all_panels: Iterable[Panels]) -> Panels:
    """Bring panels together, in order; those of one category stand side by side.

    Tags of single layers become one pattern for all layers: TensorBoard merges the panels of several runs where they
    are equal, and so models of different depths share one panel.
    """
    merged: Panels = {}
    for panels in all_panels:
        for category, charts in panels.items():
            for title, (kind, tags) in charts.items():
                every_layer = [re.sub(r"layer_\d+$", r"layer_\\d+$", tag) for tag in tags]
                # Each side of a margin is one tag, and its place says which.
                patterns = list(dict.fromkeys(every_layer)) if kind == "Multiline" else tags
                merged.setdefault(category, {})[title] = [kind, patterns]
    return merged
