"""`mup-lightning coord-check`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mup_lightning.files import check_folder
from mup_lightning.studies.coordinates.settings import CheckSettings

if TYPE_CHECKING:
    from mup_lightning.config.schema import Config
    from mup_lightning.studies.coordinates.run import Check

EXIT_CODES = {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 2}


def run(settings: CheckSettings, config: Config) -> int:
    """Check, or print the table of checks done before.

    Returns:
        0 PASS, 1 FAIL, 2 INCONCLUSIVE of the parametrization that was asked for; 1 is also a user's mistake, which says
        so in a line that begins with "error:".
    """
    if settings.table:
        return _table(settings.table)
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


def _name(config: Config, settings: CheckSettings) -> str:
    recipe = config.recipe
    parametrization = "sp" if recipe.parametrization == "sp" else f"k{min(recipe.branch_depth, 2)}"
    without = "" if config.model.layer_norm else "-noln"
    return f"{recipe.optimizer}-{settings.axis}-{parametrization}{without}"


def _table(folders: list[Path]) -> int:
    """The checks of some folders as one Markdown table."""
    from mup_lightning.studies.coordinates.coordinate_results import read_check
    from mup_lightning.studies.coordinates.report import markdown

    print(markdown([read_check(Path(folder) / "coordinates.json") for folder in folders]), end="")
    return 0
