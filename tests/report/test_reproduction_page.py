"""docs/reproduction.md says what its tables say."""

import csv
from pathlib import Path

import pytest

from mup_lightning.cli.main import main

DOCS = Path(__file__).parents[2] / "docs"
TABLES = sorted((DOCS / "results").glob("*.csv"))


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.stem)
def test_every_table_is_what_the_report_prints(table, capsys):
    assert main(["report", "transfer", str(table), "--markdown"]) == 0
    page = (DOCS / "reproduction.md").read_text()
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(printed) > 2
    missing = [line for line in printed if line not in page]
    assert not missing, f"mup-lightning report transfer {table} --markdown prints what docs/reproduction.md has not"


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.stem)
def test_the_cost_of_every_table_is_told(table):
    with table.open(newline="") as file:
        seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
    told = f"{len(seconds)} runs, {sum(seconds) / 3600:.1f} core hours"
    assert told in (DOCS / "reproduction.md").read_text(), f"{table.name}: {told}"


def test_there_are_tables():
    assert TABLES
