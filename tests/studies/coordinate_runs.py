"""Coordinate checks without training: runs whose norms follow a given power of the size."""

from random import Random

from mup_lightning.config.schema import Config
from mup_lightning.studies.coordinates import CheckSettings
from mup_lightning.studies.coordinates.measure import features
from mup_lightning.studies.coordinates.report import Check, conclude
from mup_lightning.studies.scaling import Run

STEPS = 2
WIDTH, DEPTH = 64, 2


def runs(settings, exponents=None, *, noise=0.01, diverged=(), parametrization="mup"):
    """What `measure` would find. exponents: (point, "init", "norms" or "changes") -> power of the size."""
    exponents = exponents or {}
    chance = Random(0)
    result = []
    for shape, size in settings.sizes(WIDTH, DEPTH).items():

        def curve(feature, kind, size=size):
            point = feature.split(",")[0]
            start = size ** exponents.get((point, "init"), 0.0) * (1.0 + noise * chance.gauss(0, 1))
            grown = size ** exponents.get((point, kind), 0.0)
            later = (grown * (1.0 + noise * chance.gauss(0, 1)) for _ in range(STEPS))
            return [0.0 if kind == "changes" else start, *later]

        for seed in range(1, settings.seeds + 1):
            why, steps = ("step 1: the loss is nan", 1) if shape in diverged else (None, STEPS + 1)
            names = features(settings.axis, shape[1])
            measured = {kind: {name: curve(name, kind)[:steps] for name in names} for kind in ("norms", "changes")}
            result.append(Run((parametrization,), shape, seed, [3.0] * (steps - 1), measured, why))
    return result


def judged(settings, exponents=None, *, layer_norm=True, **more):
    """The conclusion about such runs."""
    return conclude(runs(settings, exponents, **more), settings.sizes(WIDTH, DEPTH), settings, layer_norm=layer_norm)


def result(settings=None, exponents=None, sp=None, *, asked="mup", diverged=(), **recipe):
    """A finished check; `sp` gives SP's exponents, where it is trained too."""
    settings = settings or CheckSettings(widths=[64, 128, 256], seeds=3)
    plain = {"model": {"width": WIDTH, "depth": DEPTH}, "recipe": recipe | {"parametrization": asked}}
    config = Config.from_plain(plain | {"trainer": {"max_steps": STEPS}})
    by_name = {asked: exponents} | ({"sp": sp} if sp is not None else {})
    found = [runs(settings, given, parametrization=name, diverged=diverged) for name, given in by_name.items()]
    findings = [conclude(one, settings.sizes(WIDTH, DEPTH), settings) for one in found]
    return Check(
        settings=settings, config=config, findings=findings, runs=[run for one in found for run in one], versions={}
    )
