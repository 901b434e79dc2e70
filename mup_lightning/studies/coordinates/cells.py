"""The trainings of a coordinate check: each configured, checked and priced before the first one starts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from mup_lightning.config.schema import Config
from mup_lightning.errors import UserError
from mup_lightning.studies.coordinates.settings import CheckSettings
from mup_lightning.studies.sweep.check import Checker


@dataclass(frozen=True)
class Cell:
    """One training.

    Attributes:
        parametrization: sp or mup.
        width: n.
        depth: L.
        seed: of the weights and the order of samples.
        config: all of it.
        work: expected time, in operations of one busy core.
        memory: bytes that it takes at its peak.
    """

    parametrization: str
    width: int
    depth: int
    seed: int
    config: Config
    work: float
    memory: int

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.parametrization} ({self.width}, {self.depth}) seed {self.seed}"


def parametrizations(config: Config, settings: CheckSettings) -> list[str]:
    """What is trained: what is asked for, and SP beside it."""
    asked = config.recipe.parametrization
    return [asked] if asked == "sp" or settings.alone else [asked, "sp"]


def repetitions(parametrization: str, config: Config, settings: CheckSettings) -> int:
    """Seeds of every size: fewer of SP where it is a control."""
    asked = parametrization == config.recipe.parametrization
    return settings.seeds if asked else min(settings.seeds, settings.control_seeds)


def cells(config: Config, settings: CheckSettings) -> list[Cell]:
    """All trainings, the most work first.

    Args:
        config: the model that sizes begin with, and the recipe.
        settings: sizes and seeds.

    Raises:
        UserError: as `train` would, for one of the sizes.
    """
    checker = Checker()
    result = []
    for parametrization in parametrizations(config, settings):
        for width, depth in settings.shapes(config.model.width, config.model.depth):
            try:
                sized = _sized(config, parametrization, width, depth)
                checked = checker.check(sized, None)
            except UserError as error:
                raise UserError(f"at width {width}, depth {depth}: {error}") from None
            for seed in range(1, repetitions(parametrization, config, settings) + 1):
                mine = _changed(sized, {"seed": seed, "data": {"verify": False}})  # it has just been verified
                result.append(Cell(parametrization, width, depth, seed, mine, checked.work, checked.memory))
    return sorted(result, key=lambda cell: -cell.work)


def _sized(config: Config, parametrization: str, width: int, depth: int) -> Config:
    """The configuration at another size, at a constant learning rate, and with nothing on that only costs time."""
    return _changed(
        config,
        {
            "model": {"width": width, "depth": depth},
            "recipe": {"parametrization": parametrization},
            "schedule": {"warmup_steps": 0, "min_lr": config.recipe.lr},
            "trainer": {"validate_every": 0, "feature_norms_every": 0, "update_check_every": 0},
        },
    )


def _changed(config: Config, changes: dict[str, Any]) -> Config:
    """A copy with other values, checked as a whole again."""
    values = asdict(config)
    for key, value in changes.items():
        values[key] = values[key] | value if isinstance(value, dict) else value
    return Config.from_plain(values)
