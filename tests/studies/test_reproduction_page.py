"""docs/results/reproduction.md says what its tables say, and the sweeps that ship are those of the tables."""

import csv
import math
from itertools import product
from pathlib import Path

import pytest

from mup_lightning.cli.main import main
from mup_lightning.studies.sweep.spec import load

DOCS = Path(__file__).parents[2] / "docs"
RECIPES = DOCS.parent / "recipes" / "experiment"
NAMES = ("reproduction", "reproduction_depth", "reproduction_adamw", "weight_decay", "published_losses")
PAGES = "\n".join((DOCS / "results" / f"{name}.md").read_text() for name in NAMES)
PUBLISHED = DOCS / "results" / "published_losses.csv"
TABLES = sorted({*(DOCS / "results").glob("*.csv")} - {PUBLISHED})
assert TABLES


@pytest.mark.parametrize("table", [*TABLES, PUBLISHED], ids=lambda table: table.stem)
def test_every_table_is_what_the_report_prints_and_its_cost_is_told(table, capsys):
    assert main(["report", "transfer", str(table), "--markdown"]) == 0
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(printed) > (20 if table == PUBLISHED else 2)
    missing = [line for line in printed if line not in PAGES]
    assert not missing, f"mup-lightning report transfer {table} --markdown prints more than docs/results/"
    if table != PUBLISHED:
        with table.open(newline="") as file:
            seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
        told = f"{len(seconds)} runs, {sum(seconds) / 3600:.1f} core hours"
        assert told in PAGES, f"{table.name}: {told}"


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.stem)
def test_the_sweep_that_ships_is_the_tables(table):
    """Parametrization, k, size, value and seed of every run."""
    sweep = load(RECIPES / f"{table.stem}.yaml")
    shipped = set()
    for grid in sweep.grids:
        for values in product(*grid.vary.values()):
            key = grid.set | dict(zip(grid.vary, values, strict=True))
            k = key.get("recipe.branch_depth", 2) if key["recipe.parametrization"] == "mup" else None
            size = key["model.depth" if "depth" in table.stem else "model.width"]
            shipped.add((key["recipe.parametrization"], k, size, math.log2(key[sweep.value]), key["seed"]))
    with table.open(newline="") as file:
        run = {
            (row["parametrization"], int(float(row["branch_depth"])) if row["branch_depth"] else None, int(row["size"]),
             float(row["log2_value"]), int(row["seed"])) for row in csv.DictReader(file)}  # fmt: skip
    assert shipped == run
