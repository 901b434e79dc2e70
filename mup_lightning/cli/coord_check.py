"""`mup-lightning coord-check`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser

from mup_lightning.config.load import build, config_parser, parse
from mup_lightning.errors import UserError
from mup_lightning.files import check_folder
from mup_lightning.studies.coordinates.settings import CheckSettings

if TYPE_CHECKING:
    from mup_lightning.config.schema import Config
    from mup_lightning.studies.coordinates.run import Check

EXAMPLE = (
    "mup-lightning coord-check -c recipes/optimizer/muon_kimi.yaml -c recipes/experiment/coord_check.yaml \\\n"
    "      --axis depth --depths 2,4,8,16\n"
    "  mup-lightning coord-check --table runs/coordinates/*"
)

EXIT_CODES = {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 2}

_LISTS = ("--widths", "--depths", "--ratios")


def main(argv: list[str]) -> int:
    """Check, or print the table of checks done before.

    Returns:
        0 PASS, 1 FAIL, 2 INCONCLUSIVE of the parametrization that was asked for; 1 is also a user's mistake, which says
        so in a line that begins with "error:".
    """
    if argv and argv[0] == "--table":
        return _table(argv[1:])
    if "--table" in argv:
        raise UserError("--table comes first, and folders alone after it: it trains nothing")
    parser = _parser()
    arguments = parse(parser, [_spelled_out(before, item) for before, item in zip(["", *argv], argv, strict=False)])
    settings = CheckSettings(**{key: getattr(arguments, key) for key in CheckSettings.__dataclass_fields__})
    _refuse_sizes_of_other_axes(argv, settings.axis)
    config = build(parser, arguments)
    folder = Path(settings.out or Path("runs") / "coordinates" / _name(config, settings))
    check_folder(folder)

    from mup_lightning.training.hardware import tune_allocator

    tune_allocator()
    from mup_lightning.studies.coordinates.progress import Progress
    from mup_lightning.studies.coordinates.run import FILE, Check
    from mup_lightning.studies.result_write import write

    check = Check(config, settings)
    print(first_screen(check), flush=True)
    with Progress(check.cells) as progress:
        result = check.run(progress.finished)
    replaced = write(result, folder / FILE)

    from mup_lightning.studies.coordinates.coordinate_figure import draw_check
    from mup_lightning.studies.coordinates.coordinate_results import read_check
    from mup_lightning.studies.coordinates.report import screen

    draw_check(read_check(folder / FILE), folder / "coordinates.png")
    print(screen(result))
    print(f"wrote {folder / FILE} and coordinates.png" + (", in place of earlier ones" if replaced else ""))
    return EXIT_CODES[result["checks"][result["asked"]]["verdict"]]


def first_screen(check: Check) -> str:
    """What is about to be trained."""
    settings, config = check.settings, check.cells[0].config
    controls = {cell.seed for cell in check.cells if cell.parametrization != check.config.recipe.parametrization}
    sizes = ", ".join(f"{size:g}" for size in settings.sizes)
    what = {"width": "widths", "depth": "depths", "both": "width and depth times"}[settings.axis]
    fewer = f" ({len(controls)} of SP)" if 0 < len(controls) < settings.seeds else ""
    where = f"on {check.workers} worker processes" if check.workers else "in this process"
    return (
        f"coordinate check of {config.recipe.optimizer}: {what} {sizes}, {settings.seeds} seeds{fewer}, "
        f"{config.trainer.max_steps} steps at a constant learning rate; {len(check.cells)} trainings {where}"
    )


def _parser() -> ArgumentParser:
    parser = config_parser(
        "mup-lightning coord-check",
        "Do features, and their changes, keep their size while the model grows? Trains models of several sizes and\n"
        "seeds for a few steps, fits how the RMS norm of every feature grows with size, and ends with a verdict.\n"
        "Takes the options of `mup-lightning train` (their seed, warm-up and schedule have no effect), and:",
        EXAMPLE,
    )
    parser.usage = (
        f"{parser.usage} [--axis width|depth|both] [--widths N,N,..] [--seeds N] ...\n"
        "       %(prog)s --table FOLDER ..."
    )
    parser.epilog = (
        "exit status: 0 PASS; 1 FAIL; 2 INCONCLUSIVE (noise too large, or the base learning rate diverges);\n"
        "1 with a line that begins with 'error:' is a mistake in what was asked for; 130 interrupted"
    )
    parser.add_class_arguments(CheckSettings)
    return parser


def _spelled_out(before: str, item: str) -> str:
    """As jsonargparse reads it: 64,128,256 as a list where one is expected, --alone with its value."""
    option, equals, value = item.partition("=")
    if item == "--alone":
        return "--alone=true"
    if before in _LISTS and not item.startswith("["):
        return f"[{item}]"
    if option in _LISTS and equals and not value.startswith("["):
        return f"{option}=[{value}]"
    return item


def _refuse_sizes_of_other_axes(argv: list[str], axis: str) -> None:
    """A file may have the sizes of every axis; on the command line they would be asked for, and not looked at."""
    own = {"width": "--widths", "depth": "--depths", "both": "--ratios"}[axis]
    given = {item.partition("=")[0] for item in argv} & set(_LISTS)
    if others := sorted(given - {own}):
        raise UserError(f"--axis {axis} takes no {', '.join(others)}; its sizes are {own}")


def _name(config: Config, settings: CheckSettings) -> str:
    recipe = config.recipe
    parametrization = "sp" if recipe.parametrization == "sp" else f"k{min(recipe.branch_depth, 2)}"
    without = "" if config.model.layer_norm else "-noln"
    return f"{recipe.optimizer}-{settings.axis}-{parametrization}{without}"


def _table(folders: list[str]) -> int:
    """The checks of some folders as one Markdown table."""
    from mup_lightning.studies.coordinates.coordinate_results import read_check
    from mup_lightning.studies.coordinates.report import markdown

    if not folders:
        raise UserError("--table needs folders of coordinate checks, such as runs/coordinates/*")
    print(markdown([read_check(Path(folder) / "coordinates.json") for folder in folders]), end="")
    return 0
