"""`mup-lightning coord-check`: one check (train every size and seed, fit, judge), a list of them, or their table."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from mup_lightning.config.load import Layer, merge, preset
from mup_lightning.config.schema import Config
from mup_lightning.errors import UserError
from mup_lightning.files import check_folder, read_yaml, write_atomic
from mup_lightning.studies.coordinates.measure import Training, measure
from mup_lightning.studies.coordinates.report import draw, markdown, text
from mup_lightning.studies.coordinates.results import FILE, CheckResult, Finding, read_check, write_check
from mup_lightning.studies.coordinates.settings import CheckSettings
from mup_lightning.studies.coordinates.verdict import conclude
from mup_lightning.studies.sweep.check import Checker
from mup_lightning.studies.sweep.pool import fitting, threads
from mup_lightning.studies.workers import each
from mup_lightning.training.hardware import tune_allocator
from mup_lightning.versions import versions

FOLDER = Path("runs/coordinates")

Parametrization = Literal["sp", "mup"]


def run(settings: CheckSettings, config: Config) -> int:
    """Run one check, or all checks of a list, or print the table of finished ones.

    Returns:
        The exit status: of one check that of its verdict; 0 for many, whose verdicts are in their table.
    """
    if not (settings.table or settings.all):
        return run_one(settings, config).asked.verdict.exit_code
    if (replace(settings, table=[], all=None, out=None), config) != (CheckSettings(), Config()):
        raise UserError("--table and --all allow no other option than --out: the checks have options of their own")
    out = Path(settings.out or FOLDER)
    folders = list(settings.table)
    for mine, checked in read_list(settings.all) if settings.all else []:
        folder = out / name_of(mine, checked)
        if not (folder / FILE).exists():
            run_one(replace(mine, out=str(folder)), checked)
        folders.append(folder)
    table = markdown([read_check(folder / FILE) for folder in folders])
    print(table)
    if settings.all:
        write_atomic(out / "table.md", f"{table}\n")
    return 0


def run_one(settings: CheckSettings, config: Config) -> CheckResult:
    """Run one check, print what was found, and write coordinates.json and coordinates.png."""
    folder = Path(settings.out or FOLDER / name_of(settings, config))
    check_folder(folder)
    tune_allocator()
    result = check(settings, config)
    write_check(result, folder / FILE)
    draw(result, folder / "coordinates.png")
    print(f"{text(result)}\nwrote {folder / FILE} and coordinates.png", flush=True)
    return result


def read_list(file: Path) -> list[tuple[CheckSettings, Config]]:
    """The checks of a file such as recipes/experiment/coordinates.yaml.

    Its `configs` are recipe files that hold for all checks. Each of `checks` names an optimizer, whose recipe is added,
    and sets options of this verb and dotted keys of the configuration.

    Raises:
        UserError: it cannot be read, or one of the checks is not valid.
    """
    expected = "configs (a list of recipe files) and checks, such as recipes/experiment/coordinates.yaml has"
    content = read_yaml(file, expected)
    result = []
    try:
        for values in content["checks"]:
            own = {key: value for key, value in values.items() if key != "optimizer"}
            layers: list[Layer] = [*map(Path, content["configs"]), preset("optimizer", values["optimizer"]), own]
            merged = merge(layers, [CheckSettings, Config])
            mine = {key: merged.pop(key) for key in list(merged) if key in CheckSettings.__dataclass_fields__}
            result.append((CheckSettings(**mine), Config.from_plain(merged)))
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{file} is not a list of coordinate checks; expected {expected}") from None
    except UserError as error:
        raise UserError(f"{file}, check {len(result) + 1}: {error}") from None
    return result


def name_of(settings: CheckSettings, config: Config) -> str:
    """A check's folder, such as adamw-depth-k2."""
    recipe = config.recipe
    parametrization = "sp" if recipe.parametrization == "sp" else f"k{min(recipe.branch_depth, 2)}"
    without = "" if config.model.layer_norm else "-noln"
    return f"{recipe.optimizer}-{settings.axis}-{parametrization}{without}"


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
    """What is trained: the parametrization that was asked for, and SP for comparison."""
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
                checked = checker.check(sized, None)
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
