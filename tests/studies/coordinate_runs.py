"""Coordinate checks without training: runs whose norms follow a given power of the size."""

import json
from dataclasses import asdict
from random import Random

from mup_lightning.config.schema import Config
from mup_lightning.studies.coordinates.settings import CheckSettings
from mup_lightning.studies.coordinates.verdict import judge
from mup_lightning.studies.fits import features

POINTS = ("attention", "mlp", "residual")
STEPS = 2


def runs(settings, exponents=None, *, width=64, depth=2, noise=0.01, diverged=(), parametrization="mup"):
    """What `measure` would say. exponents: (tap's point, "norms" or "changes") -> power of the size, from step 1 on."""
    exponents = exponents or {}
    chance = Random(0)
    result = []
    for size, shape in zip(settings.sizes, settings.shapes(width, depth), strict=True):
        taps = ["embedding", *(f"{point}/{i}" for point in POINTS for i in range(shape[1])), "final_norm", "logits"]
        for seed in range(1, settings.seeds + 1):

            def curve(tap, kind, size=size):
                grown = size ** exponents.get((tap.split("/")[0], kind), 0.0)
                start = 0.0 if kind == "changes" else 1.0 + noise * chance.gauss(0, 1)
                return [start, *(grown * (1.0 + noise * chance.gauss(0, 1)) for _ in range(STEPS))]

            bad = shape in diverged
            steps = 1 if bad else STEPS + 1
            result.append(
                {"parametrization": parametrization, "width": shape[0], "depth": shape[1], "seed": seed}
                | {kind: {tap: curve(tap, kind)[:steps] for tap in taps} for kind in ("norms", "changes")}
                | {"losses": [3.0] * (steps - 1), "diverged": "step 1: the loss is nan" if bad else None}
                | {"seconds": 0.1}
            )
    return result


def judged(settings, exponents=None, **more):
    """The verdict on such runs."""
    shapes = settings.shapes(64, 2)
    return judge(runs(settings, exponents, **more), dict(zip(shapes, settings.sizes, strict=True)), settings)


def write_result(folder, settings=None, exponents=None, sp=None, *, asked="mup", **recipe):
    """A result file; `sp` gives SP's exponents, where it is there, too. Returns the folder."""
    settings = settings or CheckSettings(widths=[64, 128, 256], seeds=3)
    config = Config.from_plain({"model": {"width": 64, "depth": 2}, "recipe": recipe})
    by_name = {asked: exponents} | ({"sp": sp} if sp is not None else {})
    found = {name: runs(settings, given, parametrization=name) for name, given in by_name.items()}
    shapes = settings.shapes(64, 2)
    sizes = dict(zip(shapes, settings.sizes, strict=True))
    result = {
        "axis": settings.axis,
        "asked": asked,
        "checks": {name: judge(of_name, sizes, settings) for name, of_name in found.items()},
        "features": {name: [taps(depth) for _, depth in shapes] for name, taps in features(settings.axis).items()},
        "sizes": settings.sizes,
        "shapes": [list(shape) for shape in shapes],
        "settings": asdict(settings),
        "config": asdict(config),
        "versions": {},
        "seconds": 1.0,
        "runs": [run for of_name in found.values() for run in of_name],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "coordinates.json").write_text(json.dumps(result))
    return folder
