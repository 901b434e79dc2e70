"""`mup-lightning sweep`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mup_lightning import tables
from mup_lightning.config.load import build_config
from mup_lightning.config.schema import Config
from mup_lightning.errors import UserError
from mup_lightning.files import check_folder
from mup_lightning.studies.sweep.spec import load

if TYPE_CHECKING:
    from mup_lightning.studies.sweep.grid import Cell
    from mup_lightning.studies.sweep.progress import Estimate
    from mup_lightning.studies.sweep.run import Summary

EXAMPLE = "mup-lightning sweep recipes/experiment/lr_width.yaml --set trainer.max_steps=200"


def main(argv: list[str]) -> int:
    """Run a sweep, or what is left of it.

    Returns:
        0; 1 where a configuration has no result; 130 after Ctrl-C.
    """
    arguments = _parser().parse_args(argv)
    overrides = dict(setting(text) for text in arguments.set)
    sweep = load(arguments.file, overrides)
    number, of = _shard(arguments.shard)

    from mup_lightning.studies.sweep.grid import expand, shard
    from mup_lightning.studies.sweep.run import SweepRun
    from mup_lightning.studies.sweep.table import read_rows

    cells = expand(sweep, compose)
    mine = shard(cells, number, of)
    folder = Path(arguments.out or Path("runs") / "sweeps" / sweep.name)
    if not mine:
        print(f"{len(cells)} configurations, none of them in shard {arguments.shard}")
        return 0
    if arguments.dry_run:
        print(dry_run(mine, folder, arguments.workers))
        return 0
    strangers = len({row["config_hash"] for row in read_rows(folder / "results.csv")} - {cell.hash for cell in cells})
    if strangers:
        print(
            f"note: {folder / 'results.csv'} also has {strangers} configurations that are not in this sweep (other "
            f"values, or another --set); reports will read them too. --out FOLDER keeps sweeps apart",
            file=sys.stderr,
        )
    run = SweepRun(
        mine,
        folder,
        workers=arguments.workers,
        early_stop=sweep.early_stop,
        keep_runs=sweep.keep_runs,
        sweep=cells,
    )
    print(first_screen(sweep.name, mine, run.summary, folder), flush=True)
    summary = run.run()
    print(last_screen(summary, folder, len(mine)), flush=True)
    if summary.interrupted:
        return 130
    return 1 if summary.failed else 0


def compose(files: Sequence[str], settings: dict[str, Any]) -> Config:
    """The Config that `mup-lightning train -c FILE ... --key VALUE ...` would make.

    Raises:
        UserError: as there.
    """
    return build_config([*map(Path, files), settings])


def first_screen(name: str, cells: list[Cell], summary: Summary, folder: Path) -> str:
    """What is about to be run."""
    left = len(cells) - summary.before
    done = f", {summary.before} of them done already" if summary.before else ""
    workers = f" on {summary.workers} worker processes" if left else ""
    return f"sweep {name}: {len(cells)} configurations{done}{workers}; table {folder / 'results.csv'}"


def last_screen(summary: Summary, folder: Path, total: int) -> str:
    """What came of it, and how to go on."""
    lines = []
    if summary.ran:
        counts = [f"{summary.ran} configurations run"]
        counts += [f"{summary.diverged} of them diverged"] if summary.diverged else []
        counts += [f"{summary.stopped} stopped early"] if summary.stopped else []
        lines.append(
            f"{', '.join(counts)} in {summary.wall:.0f} s; {summary.workers} workers {summary.busy:.0%} busy "
            f"({summary.busy_started:.0%} once started)"
        )
    if summary.elsewhere:
        lines.append(f"{summary.elsewhere} configurations are being run by another sweep in this folder")
    for reason in summary.failed.values():
        lines.append(f"FAILED {reason}")
    if summary.failed:
        lines.append(f"The same command tries them again; what the workers printed is in {folder / 'workers.log'}")
    if summary.interrupted:
        lines.append(
            f"stopped: {summary.before + summary.ran} of {total} are done; the same command goes on from there"
        )
    lines.append(f"table: {folder / 'results.csv'}")
    return "\n".join(lines)


def dry_run(cells: list[Cell], folder: Path, workers: int | None) -> str:
    """What would be run, and what it would cost."""
    estimate, present = estimates(cells, folder)
    lines = [["configuration", "axis", "tokens", "FLOPs", "minutes", ""]]
    for cell in cells:
        minutes, state = f"{estimate.seconds(cell) / 60:.1f}", "done" if cell.hash in present else ""
        lines.append([cell.label, ",".join(cell.axes), f"{cell.tokens:,}", f"{cell.flops:.3g}", minutes, state])
    return f"{tables.text(lines)}\n\n{costs(cells, folder, workers)}"


def estimates(cells: list[Cell], folder: Path) -> tuple[Estimate, set[str]]:
    """How long runs take, by those in the folder's table, and the hashes of these."""
    from mup_lightning.studies.sweep.progress import Estimate
    from mup_lightning.studies.sweep.table import read_rows

    check_folder(folder)
    rows = read_rows(folder / "results.csv")
    return Estimate(cells, rows), {row["config_hash"] for row in rows}


def costs(cells: list[Cell], folder: Path, workers: int | None) -> str:
    """What is left to be run, and how long that takes."""
    from mup_lightning.studies.sweep.pool import how_many
    from mup_lightning.studies.sweep.progress import ASSUMED_SPEED

    estimate, present = estimates(cells, folder)
    left = [cell for cell in cells if cell.hash not in present]
    if not left:
        return f"{len(cells)} configurations, all of them done"
    count = how_many(left, workers)
    basis = (
        f"by {estimate.measured} runs in the table"
        if estimate.measured
        else f"a guess, at {ASSUMED_SPEED:.0e} operations per second and worker; the first runs will tell"
    )
    return (
        f"{len(cells)} configurations, {len(left)} left: {sum(cell.tokens for cell in left):,} tokens, "
        f"{sum(cell.flops for cell in left):.3g} FLOPs\n"
        f"{sum(map(estimate.seconds, left)) / 60:.1f} minutes of one worker, "
        f"{estimate.remaining(left, [], count) / 60:.1f} minutes on {count} ({basis})"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog="mup-lightning sweep",
        description="Run every configuration of a sweep file once, several at a time, into one table, results.csv.\n"
        "What is in the table is not run again: after a kill, the same command goes on.",
        epilog=f"example:\n  {EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="FILE.yaml", help="grids of values, see recipes/experiment/")
    parser.add_argument("--out", metavar="FOLDER", help="where the table is (default: runs/sweeps/NAME)")
    parser.add_argument("--workers", type=int, help="processes (default: one a core or GPU, as memory allows)")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="a fixed value; wins over the file; repeatable"
    )
    parser.add_argument("--shard", metavar="I/N", default="1/1", help="only every N-th configuration from the I-th on")
    parser.add_argument("--dry-run", action="store_true", help="list the configurations and what they cost; run none")
    return parser


def setting(text: str) -> tuple[str, Any]:
    """KEY and value of KEY=VALUE. Raises UserError for anything else."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"--set is {text!r}; expected KEY=VALUE, such as trainer.max_steps=200")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError:
        raise UserError(
            f"--set is {text!r}; {value!r} is no YAML value: is a bracket or a quotation mark open?"
        ) from None


def _shard(text: str) -> tuple[int, int]:
    number, slash, of = text.partition("/")
    if not (slash and number.isdecimal() and of.isdecimal()):
        raise UserError(f"--shard is {text!r}; expected I/N with I from 1 to N, such as 1/4")
    return int(number), int(of)
