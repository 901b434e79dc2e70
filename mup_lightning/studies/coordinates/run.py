"""`mup-lightning coord-check`: one check, a list of them, or their table. Imports no torch until a check is run."""

from dataclasses import replace
from pathlib import Path

from mup_lightning.config.load import Layer, merge, preset
from mup_lightning.config.schema import Config
from mup_lightning.errors import UserError
from mup_lightning.files import check_folder, read_yaml, write_atomic
from mup_lightning.studies.coordinates.report import draw, markdown, text
from mup_lightning.studies.coordinates.results import FILE, CheckResult, read_check, write_check
from mup_lightning.studies.coordinates.settings import CheckSettings

FOLDER = Path("runs/coordinates")


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
    for listed, its_config in read_list(settings.all) if settings.all else []:
        folder = out / name_of(listed, its_config)
        if not (folder / FILE).exists():
            run_one(replace(listed, out=str(folder)), its_config)
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
    from mup_lightning.training.hardware import tune_allocator

    tune_allocator()
    from mup_lightning.studies.coordinates.check import check

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
    parametrization = "sp" if recipe.parametrization == "sp" else f"k{min(recipe.branch_depth, 2)}"
    without = "" if config.model.layer_norm else "-noln"
    return f"{recipe.optimizer}-{settings.axis}-{parametrization}{without}"
