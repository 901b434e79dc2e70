"""`mup-lightning tune`."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mup_lightning.cli.options import build, config_parser, parse
from mup_lightning.errors import UserError
from mup_lightning.files import check_folder, make_folder

if TYPE_CHECKING:
    from mup_lightning.config.schema import Config
    from mup_lightning.studies.sweep.grid import Cell
    from mup_lightning.studies.transfer.transfer import Transfer

EXAMPLE = "mup-lightning tune -c recipes/size/xl.yaml -c recipes/optimizer/muon_kimi.yaml --run.name xl"
SWEEP = "recipes/experiment/tune.yaml"
_ROUNDS = 4
"""How often the sweep is run, with a larger grid each time: the last reaches 9 powers of two from the first middle."""


def main(argv: list[str]) -> int:
    """Find a base value on small models and write it down for a large one.

    Returns:
        0; 1 where a configuration has no result; 130 after Ctrl-C.
    """
    parser = config_parser(
        "mup-lightning tune",
        "Find the base learning rate of a large model on small ones. Takes the options of `mup-lightning train` for\n"
        "the large one; runs a sweep over small ones that are like it but for their size; reports whether the best\n"
        "value stays where it is; writes it and its base shape as a recipe file. The same command goes on after a\n"
        "stop.",
        EXAMPLE,
    )
    parser.usage = f"{parser.usage} [--sweep FILE.yaml] [--results TABLE] [--out FOLDER] [--set KEY=VALUE ...]"
    parser.add_argument("--sweep", type=str, help=f"the small models (default: {SWEEP})")
    parser.add_argument("--results", type=str, help="a sweep's folder or results.csv: use it, run nothing")
    parser.add_argument("--out", type=str, help="folder of all results (default: runs/tune/NAME, by --run.name)")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="of the small models; repeatable"
    )
    parser.add_argument("--workers", type=int, help="processes (default: one a core or GPU, as memory allows)")
    parser.add_argument("--dry-run", action="store_true", help="list the small models and what they cost; run none")
    arguments = parse(parser, argv)
    target = build(parser, arguments)
    if target.run.resume is not None:
        raise UserError(
            "run.resume is set, but tune trains small models, and goes on with them by itself; leave it out"
        )
    folder = Path(arguments.out or Path("runs") / "tune" / target.run.name)
    files = [str(file) for file in arguments.config or []]
    check_folder(folder)
    if arguments.results:
        _refuse_options_of_sweeps(arguments)
        return _from_table(Path(arguments.results), target, folder, files)
    return _by_sweep(arguments, target, folder, files)


def _refuse_options_of_sweeps(arguments: Namespace) -> None:
    given = {"--sweep": arguments.sweep, "--set": arguments.set, "--workers": arguments.workers}
    given["--dry-run"] = arguments.dry_run
    if names := [name for name, value in given.items() if not (value is None or value is False or value == [])]:
        raise UserError(
            f"--results reads a table that is there and runs nothing, so it takes no {', '.join(names)}; leave that "
            f"out{' (make tune always gives --sweep: call mup-lightning tune itself)' * bool(arguments.sweep)}"
        )


def _by_sweep(arguments: Namespace, target: Config, folder: Path, files: list[str]) -> int:
    """Run the sweep, and again with a larger grid where the best value, or one as good, is the last one tried."""
    from mup_lightning.cli import sweep as sweeps
    from mup_lightning.cli.tune_cost import dry_run
    from mup_lightning.studies.sweep.run import SweepRun
    from mup_lightning.studies.sweep.spec import load
    from mup_lightning.studies.tune.proxies import AROUND, FURTHER, proxy_cells, varies_itself
    from mup_lightning.studies.tune.transfer_tuned_doubts import ends

    sweep = load(arguments.sweep or SWEEP, dict(sweeps.setting(text) for text in arguments.set))
    below = above = AROUND
    findings: list[Transfer] = []
    cells: list[Cell] = []
    for _ in range(_ROUNDS):
        before = cells
        cells = proxy_cells(sweep, target, sweeps.compose, below=below, above=above)
        if len(cells) == len(before):  # it cannot grow any more
            break
        if arguments.dry_run:
            rounds = 0 if varies_itself(sweep) else _ROUNDS - 1
            print(dry_run(cells, sweep.value, target, folder, arguments.workers, rounds))
            return 0
        run = SweepRun(cells, folder, workers=arguments.workers, early_stop=sweep.early_stop, keep_runs=sweep.keep_runs)
        print(sweeps.first_screen(sweep.name, cells, run.summary, folder), flush=True)
        summary = run.run()
        print(sweeps.last_screen(summary, folder, len(cells)), flush=True)
        if summary.interrupted:
            return 130
        if summary.elsewhere:
            print(f"{folder} is not complete: repeat this command once the other one has ended", flush=True)
        if summary.failed or summary.elsewhere:
            return 1
        findings = _find(folder, cells)
        reached = {end for finding in findings for best in finding.optima for end in ends(finding, best)}
        if varies_itself(sweep) or not reached:
            break
        below, above = below + FURTHER * (-1 in reached), above + FURTHER * (1 in reached)
    _tell(findings, [cell.config for cell in cells], sweep.value, target, folder, folder / "results.csv", files)
    return 0


def _find(folder: Path, cells: list[Cell]) -> list[Transfer]:
    from mup_lightning.studies.transfer.losses import read_losses
    from mup_lightning.studies.transfer.transfer import transfer

    # Another tune of the same folder may have swept another value, or another axis, through the same configurations.
    own = {(cell.hash, axis, cell.value) for cell in cells for axis in cell.axes}
    runs = read_losses(folder / "results.csv")
    places = zip(runs["config_hash"], runs["axis"], runs["value"], strict=True)
    return transfer(runs[[place in own for place in places]])


def _from_table(path: Path, target: Config, folder: Path, files: list[str]) -> int:
    """Take what of a sweep's table is like the target."""
    from mup_lightning.studies.transfer.losses import read_losses
    from mup_lightning.studies.transfer.transfer import transfer
    from mup_lightning.studies.tune.kinship import differences
    from mup_lightning.studies.tune.proxies import refuse_strangers

    path = path / "results.csv" if path.is_dir() else path
    runs = read_losses(path)
    swept = {dict(settings).get("value", "") for settings in runs["settings"]}
    if "" in swept:
        raise UserError(f"{path} does not say which value was swept; expected the results.csv of a sweep")
    if len(swept) > 1:
        raise UserError(
            f"{path} holds sweeps of several values, {' and '.join(sorted(swept))}; repeat the tune that ran the one "
            f"that you want, with its --sweep and this folder as --out: it takes its own runs and repeats none"
        )
    (key,) = swept
    configurations = _configurations(path.with_name("configurations.json"))
    hashes = set(runs["config_hash"])
    known = {name: config for name, config in configurations.items() if name in hashes}
    alike = {name: config for name, config in known.items() if not differences(config, target, key)}
    if not alike:
        nearest = min(known.values(), key=lambda config: len(differences(config, target, key)), default=None)
        refuse_strangers([nearest] if nearest else [], target, key, str(path))
        raise UserError(f"{path} has no run that configurations.json beside it knows; expected a sweep's own folder")
    refuse_strangers(list(alike.values()), target, key, str(path))
    make_folder(folder)
    _tell(transfer(runs[runs["config_hash"].isin(alike)]), list(alike.values()), key, target, folder, path, files)
    return 0


def _configurations(file: Path) -> dict[str, Config]:
    from mup_lightning.config.schema import Config

    try:
        saved: dict[str, dict[str, Any]] = json.loads(file.read_text())
    except FileNotFoundError:
        raise UserError(
            f"there is no {file}, which tells what the runs of the table were; expected a sweep's own folder"
        ) from None
    except ValueError as error:
        raise UserError(f"{file} is damaged: {error}") from error
    try:
        return {name: Config.from_plain(plain) for name, plain in saved.items()}
    except (AttributeError, TypeError, UserError) as error:
        why = f" ({error})" if isinstance(error, UserError) else ""
        raise UserError(f"{file} is damaged: expected the configuration of every run, by its hash{why}") from None


def _tell(
    findings: list[Transfer],
    proxies: list[Config],
    key: str,
    target: Config,
    folder: Path,
    table: Path,
    files: list[str],
) -> None:
    """Print what was found, draw it, and write the recipe file."""
    from mup_lightning.cli import next_command
    from mup_lightning.cli.tune_cost import of_target
    from mup_lightning.studies.sweep.grid import look_up
    from mup_lightning.studies.transfer.figures import draw
    from mup_lightning.studies.transfer.report import text
    from mup_lightning.studies.tune import tuned_file
    from mup_lightning.studies.tune.kinship import belongings, cautions
    from mup_lightning.studies.tune.prediction import tuned

    shape = (target.model.width, target.model.depth)
    own = (target.recipe.base_width, target.recipe.base_depth)
    base = (proxies[0].recipe.base_width, proxies[0].recipe.base_depth)
    differing = cautions(proxies, target)
    more = [f"not transferred by the recipe: {'; '.join(differing)}"] if differing else []
    if target.recipe.parametrization == "sp":
        more.append("recipe.parametrization is sp, which transfers nothing by design")
        base = own  # SP reads none, so that the proxies' may be any
    elif base != own:
        more.append(
            f"the target's own base shape is {own}, the proxies' is {base}: with the file's base shape all other base "
            f"values (init_std, eps, weight_decay, multipliers) belong to {base} too, as they did in the proxies"
        )
    result = tuned(findings, key, shape, more)
    present = look_up(target, key) if base == own else None
    print(f"\n{text(findings)}\n\n{tuned_file.screen(result, base, shape, present)}")
    seeds = max(finding.seeds for finding in findings)
    counted = "one seed" if seeds == 1 else f"up to {seeds} seeds"
    origin = f"{len(proxies)} runs of {findings[0].steps} steps, {counted}: {table}"
    # One file for each value, so that the weight decay's does not replace the rate's.
    file = folder / ("tuned.yaml" if key == "recipe.lr" else f"tuned_{key.rpartition('.')[2]}.yaml")
    tuned_file.write(result, base, shape, origin, belongings(proxies[0], key), file)
    for picture in draw(findings, folder):
        print(f"wrote {picture}")
    command = next_command.training([*files, str(file)], next_command.tuned_target(target, file))
    print(f"wrote {file}\n\nnext: {of_target(target)}\n  {command}")
    sys.stdout.flush()
