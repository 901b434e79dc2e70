"""A coordinate check from beginning to end: train every size and seed, fit, and judge."""

import time
from dataclasses import replace
from typing import Literal

from tqdm import tqdm

from mup_lightning.config.schema import Config
from mup_lightning.errors import UserError
from mup_lightning.studies.coordinates.measure import Training, measure
from mup_lightning.studies.coordinates.results import CheckResult, Finding
from mup_lightning.studies.coordinates.settings import CheckSettings
from mup_lightning.studies.coordinates.verdict import conclude
from mup_lightning.studies.sweep.check import Checker
from mup_lightning.studies.workers import each, fitting, threads
from mup_lightning.versions import versions

Parametrization = Literal["sp", "mup"]


def check(settings: CheckSettings, config: Config) -> CheckResult:
    """Train every size and seed, and judge.

    Args:
        settings: sizes, seeds and thresholds.
        config: the model that sizes start from, and the recipe.

    Raises:
        UserError: one of the sizes cannot be trained, or a worker died.
    """
    begin = time.perf_counter()
    sizes = settings.sizes(config.model.width, config.model.depth)
    todo = trainings(settings, config)
    workers = workers_for(settings, todo)
    what = {"width": "widths", "depth": "depths", "both": "width and depth times"}[settings.axis]
    print(
        f"coordinate check of {config.recipe.optimizer}: {what} {', '.join(f'{size:g}' for size in sizes.values())}, "
        f"{settings.seeds} seeds, {config.trainer.max_steps} steps at a constant learning rate; {len(todo)} trainings "
        + (f"on {workers} worker processes" if workers else "in this process"),
        flush=True,
    )
    runs = []
    with tqdm(total=sum(one.work for one in todo), desc="training", bar_format=_BAR, disable=None) as bar:
        for training, found in each(measure, todo, workers, threads(workers)):
            runs.append(found)
            bar.set_postfix_str(f", {len(runs)}/{len(todo)} trainings")
            bar.update(training.work)
    findings: dict[str, Finding] = {
        name: conclude(
            [found for found in runs if found.parametrization == name],
            sizes,
            settings,
            layer_norm=config.model.layer_norm,
        )
        for name in parametrizations(settings, config)
    }
    runs.sort(key=lambda found: (found.parametrization, found.shape, found.seed))
    return CheckResult(settings, config, findings, runs, versions(), round(time.perf_counter() - begin, 1))


_BAR = "{desc} {percentage:3.0f}% |{bar}| [{elapsed}<{remaining}{postfix}]"


def parametrizations(settings: CheckSettings, config: Config) -> list[Parametrization]:
    """What is trained: the requested parametrization, and SP for comparison."""
    asked = config.recipe.parametrization
    return [asked] if asked == "sp" or settings.alone else [asked, "sp"]


def trainings(settings: CheckSettings, config: Config) -> list[Training]:
    """All trainings, checked as `train` would, the most work first.

    Raises:
        UserError: one of the sizes cannot be trained.
    """
    checker = Checker()
    result = []
    for name in parametrizations(settings, config):
        asked = name == config.recipe.parametrization
        seeds = settings.seeds if asked else min(settings.seeds, settings.control_seeds)
        for width, depth in settings.sizes(config.model.width, config.model.depth):
            try:
                sized = _sized(config, name, width, depth)
                checked = checker.check(sized)
            except UserError as error:
                raise UserError(f"at width {width}, depth {depth}: {error}") from None
            data = replace(sized.data, verify=False)  # just verified
            for seed in range(1, seeds + 1):
                seeded = replace(sized, data=data, seed=seed)
                result.append(Training(seeded, settings.axis, checked.work, checked.memory))
    return sorted(result, key=lambda one: -one.work)


def _sized(config: Config, parametrization: Parametrization, width: int, depth: int) -> Config:
    """The configuration at another size, at a constant learning rate, and with nothing on that only costs time."""
    return replace(
        config,
        model=replace(config.model, width=width, depth=depth),
        recipe=replace(config.recipe, parametrization=parametrization),
        schedule=replace(config.schedule, warmup_steps=0, min_lr=config.recipe.lr),
        trainer=replace(config.trainer, validate_every=0, feature_norms_every=0, update_check_every=0),
    )


def workers_for(settings: CheckSettings, todo: list[Training]) -> int:
    """Worker processes: as asked, or one per core as far as memory allows; a GPU is shared only if asked."""
    if settings.workers is not None:
        return min(settings.workers, len(todo))
    if todo[0].config.trainer.accelerator == "gpu":
        return 1
    return fitting(max(one.memory for one in todo), len(todo))
