"""`mup-lightning coord-check`: one check, a list of them, or their table. Imports no torch until a check is run."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from mup_lightning.config.load import Layer, merge, preset
from mup_lightning.config.schema import Config, ScheduleConfig
from mup_lightning.errors import UserError, located
from mup_lightning.files import check_folder, read_yaml, write_atomic
from mup_lightning.studies import style
from mup_lightning.studies.coordinates import CheckSettings
from mup_lightning.studies.coordinates.report import FILE, Check, conclude, markdown, picture, read_check, said, text
from mup_lightning.studies.scaling import exit_code
from mup_lightning.studies.workers import fitting, run_all
from mup_lightning.training import tune_allocator

FOLDER = Path("runs/coordinates")


def run(settings: CheckSettings, config: Config) -> int:
    """Run one check, or all checks of a list, or print the table of finished ones, whose verdicts are in it."""
    if not (settings.table or settings.all):
        return exit_code([run_one(settings, config).asked])
    if (replace(settings, table=[], all=None, out=None), config) != (CheckSettings(), Config()):
        raise UserError("--table and --all allow no other option than --out: the checks have options of their own")
    out = Path(settings.out or FOLDER)
    folders = list(settings.table)
    for listed, its_config in read_list(settings.all) if settings.all else []:
        folder, number = out / name_of(listed, its_config), 1
        while folder in folders:
            number += 1
            folder = out / f"{name_of(listed, its_config)}-{number}"
        if not (folder / FILE).exists():
            run_one(replace(listed, out=str(folder)), its_config)
        elif (replace((done := read_check(folder / FILE)).settings, out=None), done.config) != (listed, its_config):
            raise UserError(f"{folder} has a check with other options than the list; remove it, or name another --out")
        folders.append(folder)
    table = markdown([read_check(folder / FILE) for folder in folders])
    print(table)
    if settings.all:
        write_atomic(out / "table.md", f"{table}\n")
    return 0


def run_one(settings: CheckSettings, config: Config) -> Check:
    """Run one check, print what was found, and write coordinates.json and coordinates.png."""
    folder = Path(settings.out or FOLDER / name_of(settings, config))
    check_folder(folder)
    tune_allocator()
    result = check(settings, config)
    print(f"{text(result)}\n", flush=True)  # first: a full disk must not cost what was found
    result.write(folder / FILE)
    style.save(picture(result), folder / "coordinates.png")
    print(f"wrote {folder / FILE} and coordinates.png\n", flush=True)
    return result


def check(settings: CheckSettings, config: Config) -> Check:
    """Train every size and seed, from those of `config` on, and judge.

    Raises UserError where one of the sizes cannot be trained, or a worker died.
    """
    from mup_lightning.studies.coordinates.measure import measure

    sizes = settings.sizes(config.model.width, config.model.depth)
    configs, work, memory = trainings(settings, config)
    workers = settings.workers
    if workers is None:  # a GPU is shared only if asked
        workers = 1 if configs[0].trainer.accelerator == "gpu" else fitting(memory, len(configs))
    name = f"coordinate check of {config.recipe.optimizer} over {settings.axis}"
    runs = run_all(name, partial(measure, settings.axis), configs, min(workers, len(configs)), work)
    findings = [
        conclude([run for run in runs if run.of == of], sizes, settings, layer_norm=config.model.layer_norm)
        for of in dict.fromkeys(run.of for run in runs)
    ]
    return Check(settings=settings, config=config, findings=findings, runs=runs)


def trainings(settings: CheckSettings, config: Config) -> tuple[list[Config], list[float], int]:
    """All trainings, checked as `train` would, with the expected work of each, and the largest peak of memory in bytes.

    Raises UserError where one of the sizes cannot be trained.
    """
    from mup_lightning.studies.sweep.grid import Checker

    checker, configs, work, memory = Checker(), [], [], 0
    if settings.axis == "experts" and not config.recipe.base_experts:
        few = f"recipe.base_experts {settings.experts[0]}"
        raise UserError(f"--axis experts needs recipe.base_experts, the number that the base has; set {few}")
    asked = config.recipe.parametrization
    compared = [] if asked == "sp" or settings.alone else settings.controls
    for name in dict.fromkeys([asked, *compared]):
        seeds = settings.seeds if name == asked else settings.of_controls
        for shape in settings.sizes(config.model.width, config.model.depth):
            sides: dict[str, Any] = dict(zip(("width", "depth", "experts"), shape, strict=False))
            with located(f"at {said(shape)}"):
                # Another size, a constant learning rate, and nothing that only costs time.
                sized = replace(
                    config,
                    model=replace(config.model, **sides),
                    recipe=replace(config.recipe, parametrization=name),
                    schedule=ScheduleConfig(kind="constant", warmup_steps=0),
                    trainer=replace(config.trainer, validate_every=0, feature_norms_every=0, update_check_every=0),
                )
                checked = checker.check(sized)
            memory = max(memory, checked.memory)
            data = replace(sized.data, verify=False)  # just verified
            for seed in range(1, 1 + seeds):
                configs.append(replace(sized, data=data, seed=seed))
                work.append(checked.work)
    return configs, work, memory


def read_list(file: Path) -> list[tuple[CheckSettings, Config]]:
    """The checks of a file such as recipes/experiment/coordinates.yaml.

    Its `configs` are recipe files that hold for all checks. Each of `checks` names an optimizer, whose recipe is added,
    and sets options of this verb and dotted keys of the configuration. Raises UserError where one is not valid.
    """
    expected = "configs (a list of recipe files) and checks, such as recipes/experiment/coordinates.yaml has"
    content = read_yaml(file, expected)
    result = []
    try:
        for values in content["checks"]:
            own = {key: value for key, value in values.items() if key != "optimizer"}
            layers: list[Layer] = [*map(Path, content["configs"]), preset("optimizer", values["optimizer"]), own]
            merged = merge(layers, [CheckSettings, Config])
            options = {key: merged.pop(key) for key in list(merged) if key in CheckSettings.__dataclass_fields__}
            result.append((CheckSettings(**options), Config.from_plain(merged)))
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{file} is not a list of coordinate checks; expected {expected}") from None
    except UserError as error:
        raise UserError(f"{file}, check {len(result) + 1}: {error}") from None
    return result


def name_of(settings: CheckSettings, config: Config) -> str:
    """A check's folder, such as adamw-depth-k2."""
    recipe = config.recipe
    mup = recipe.parametrization == "mup"
    parametrization = f"k{min(recipe.branch_depth, 2)}" if mup else recipe.parametrization
    without = ("-experts" if config.model.experts else "") + ("" if config.model.layer_norm else "-noln")
    return f"{recipe.optimizer}-{settings.axis}-{parametrization}{without}"
