"""A coordinate check from beginning to end: train every size and seed, fit, judge; one result file."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from mup_lightning.config.schema import Config
from mup_lightning.studies.coordinates.cells import Cell, cells, parametrizations
from mup_lightning.studies.coordinates.settings import CheckSettings
from mup_lightning.studies.coordinates.verdict import judge
from mup_lightning.studies.coordinates.workers import how_many, run_all
from mup_lightning.studies.fits import features
from mup_lightning.training.checkpoint import plain
from mup_lightning.versions import versions

FILE = "coordinates.json"


class Check:
    """A coordinate check, refused or ready to run.

    Args:
        config: of the model that sizes begin with.
        settings: sizes, seeds, thresholds.

    Attributes:
        cells: what will be trained.
        workers: on how many processes.

    Raises:
        UserError: `train` would refuse one of the sizes.
    """

    def __init__(self, config: Config, settings: CheckSettings) -> None:
        self.config, self.settings = config, settings
        self.cells: list[Cell] = cells(config, settings)
        self.workers = how_many(self.cells, settings.workers)

    def run(self, on_done: Callable[[Cell, dict[str, Any]], object] = lambda cell, run: None) -> dict[str, Any]:
        """Train everything and judge.

        Args:
            on_done: called after every training.

        Returns:
            Plain values: "axis", "asked" (the parametrization whose verdict counts), "checks" (parametrization -> what
            `judge` says of it), "features" (name -> for every size the taps that it is the largest of), "sizes",
            "shapes" ((width, depth) of every size), "settings", "config" (of the smallest size, as trained),
            "versions", "seconds", and "runs": everything measured.

        Raises:
            UserError: see `run_all`.
        """
        begin = time.perf_counter()
        settings, config = self.settings, self.config
        runs = run_all(self.cells, self.workers, on_done)
        shapes = settings.shapes(config.model.width, config.model.depth)
        sizes = dict(zip(shapes, settings.sizes, strict=True))
        names = parametrizations(config, settings)
        smallest = min((cell for cell in self.cells if cell.parametrization == names[0]), key=lambda cell: cell.work)
        return {
            "axis": settings.axis,
            "asked": names[0],
            "checks": {
                name: judge(
                    [run for run in runs if run["parametrization"] == name],
                    sizes,
                    settings,
                    layer_norm=config.model.layer_norm,
                )
                for name in names
            },
            "features": {name: [taps(depth) for _, depth in shapes] for name, taps in features(settings.axis).items()},
            "sizes": settings.sizes,
            "shapes": [list(shape) for shape in shapes],
            "settings": asdict(settings),
            "config": plain(asdict(smallest.config)),
            "versions": versions(),
            "seconds": round(time.perf_counter() - begin, 1),
            "runs": sorted(runs, key=lambda run: (run["parametrization"], run["width"], run["depth"], run["seed"])),
        }
