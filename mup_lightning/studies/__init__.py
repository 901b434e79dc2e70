"""Sweeps, and studies of what the recipe promises, one a folder; here the types that their options share."""

from mup_lightning.typed import Bound

GROWING = Bound(
    "at least three numbers above 0, from small to large", lambda sizes: len(sizes) > 2 and [*sizes] == sorted({*sizes})
)
