"""`mup-lightning probe`."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mup_lightning.errors import UserError
from mup_lightning.files import check_folder
from mup_lightning.spectral.families import FAMILIES
from mup_lightning.studies.probe.settings import QUICK, ProbeSettings

if TYPE_CHECKING:
    from mup_lightning.studies.probe.candidate import Candidate

EXIT_CODES = {"consistent": 0, "proposed": 0, "inconsistent": 3, "unclear": 4}
TABLE = "table.md"
MATRIX_SEEDS = 4


def main(argv: list[str]) -> int:
    """Probe one optimizer, or all of ours.

    Returns:
        0 consistent or proposed, 3 inconsistent, 4 unclear (of several: the worst); 1 and 2 are errors.
    """
    options = _parser().parse_args(argv)
    if bool(options.optimizer) == options.all:
        raise UserError("expected either --optimizer NAME or --all")
    if options.all and options.arguments:
        raise UserError("--arguments goes with --optimizer: every optimizer has its own")
    settings = _settings(options)
    arguments = _arguments(options.arguments)
    names = list(FAMILIES) if options.all else [options.optimizer]
    known = len(names) > 1 or names[0] in FAMILIES
    if not known and ":" not in names[0]:
        raise UserError(
            f"--optimizer is {names[0]!r}; expected {', '.join(FAMILIES)}, or package.module:Class of a torch optimizer"
        )
    base: Path = options.out or Path("runs/probe")
    folders = {name: base if options.out and not options.all else base / name.replace(":", ".") for name in names}
    for folder in (*folders.values(), base):
        check_folder(folder)

    from mup_lightning.studies.probe.report import markdown, screen

    results = []
    for name in names:
        fewer = options.seeds is None and name in FAMILIES and FAMILIES[name].whole_matrix
        mine = replace(settings, seeds=min(settings.seeds, MATRIX_SEEDS)) if fewer else settings
        result = _one(name, arguments, mine, folders[name])
        results.append(result)
        if options.all:
            (base / TABLE).write_text(markdown(results))  # after each, so that Ctrl-C loses one probe alone
        if not options.json:
            print(f"{screen(result)}\nwrote {folders[name] / 'probe.json'} and probe.png\n", flush=True)
    if options.all:
        print(f"wrote {base / TABLE}", file=sys.stderr)
    if options.json:
        short = [{key: value for key, value in result.items() if key != "networks"} for result in results]
        print(json.dumps(short if options.all else short[0], indent=1))
    return max(EXIT_CODES[result["verdict"]] for result in results)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog="mup-lightning probe",
        description="Measure how an optimizer's raw step scales with width and depth, on small residual networks, and\n"
        "compare with what its family declares; propose a recipe for an optimizer that nobody has declared.\n"
        "Takes a minute or two of CPU; shampoo, soap, sso more.\n\n"
        "examples:\n  mup-lightning probe --optimizer muon\n"
        "  mup-lightning probe --optimizer pytorch_optimizer:Adan\n"
        "  mup-lightning probe --optimizer soap --arguments '{\"precondition_every\": 1}'\n"
        "  mup-lightning probe --all --out runs/probe",
        epilog="exit status: 0 consistent, or a recipe is proposed; 3 inconsistent; 4 unclear; 1 a mistake in what\n"
        "was asked for, or an optimizer that cannot be probed; 2 unknown option; 130 interrupted",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = ProbeSettings()
    parser.add_argument(
        "--optimizer", metavar="NAME", help=f"{', '.join(FAMILIES)}; or package.module:Class of a torch optimizer"
    )
    parser.add_argument("--all", action="store_true", help="probe all of ours, and write one Markdown table")
    parser.add_argument("--arguments", metavar="JSON", help="options of the optimizer, as in '{\"beta1\": 0.9}'")
    parser.add_argument(
        "--seeds",
        type=int,
        metavar="N",
        help=f"repetitions (default: {default.seeds}; {MATRIX_SEEDS} for our matrix families, which cost more)",
    )
    parser.add_argument("--widths", metavar="N,N,..", help=f"(default: {_joined(default.widths)})")
    parser.add_argument("--depths", metavar="N,N,..", help=f"(default: {_joined(default.depths)})")
    parser.add_argument("--steps", type=int, metavar="N", help=f"of each network (default: {default.steps})")
    parser.add_argument("--batch", type=int, metavar="N", help=f"samples in a step (default: {default.batch})")
    parser.add_argument(
        "--branch-depth", type=int, metavar="K", help="k, matrices in a residual branch: 1, or 2 and more (default: 2)"
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        metavar="X",
        help=f"how far an exponent may be from the declared one (default: {default.tolerance})",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="for probe.json and probe.png (default: runs/probe/NAME)"
    )
    parser.add_argument("--quick", action="store_true", help="tiny networks: a look in seconds, too small to trust")
    parser.add_argument(
        "--json", action="store_true", help="print JSON instead of a table (probe.json also has every measurement)"
    )
    return parser


def _one(name: str, arguments: dict[str, Any], settings: ProbeSettings, folder: Path) -> dict[str, Any]:
    """Probe, write, draw."""
    from tqdm import tqdm

    from mup_lightning.studies.probe.probe_figure import draw_probe
    from mup_lightning.studies.probe.probe_results import read_probe
    from mup_lightning.studies.probe.run import FILE, probe
    from mup_lightning.studies.result_write import write

    candidate = _candidate(name, arguments, settings)
    steps = len(settings.shapes) * settings.seeds * settings.steps
    with tqdm(total=steps, desc=f"probe {name}", unit="step", leave=False, disable=None) as bar:
        result = probe(candidate, settings, bar.update)
    if write(result, folder / FILE):
        print(f"note: {folder / FILE} was there and has been replaced", file=sys.stderr)
    draw_probe(read_probe(folder / FILE), folder / "probe.png")
    return result


def _candidate(name: str, arguments: dict[str, Any], settings: ProbeSettings) -> Candidate:
    if name in FAMILIES:
        from mup_lightning.studies.probe.ours import our_candidate

        return our_candidate(name, settings.branch_depth, arguments)
    from mup_lightning.studies.probe.external import foreign_candidate

    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)  # a module in the current folder counts, too

    return foreign_candidate(name, arguments, settings)


def _settings(options: argparse.Namespace) -> ProbeSettings:
    given: dict[str, Any] = {
        key: getattr(options, key)
        for key in ("seeds", "steps", "batch", "branch_depth", "tolerance")
        if getattr(options, key) is not None
    }
    for key in ("widths", "depths"):
        if (text := getattr(options, key)) is not None:
            given[key] = _numbers(f"--{key}", text)
    return replace(QUICK if options.quick else ProbeSettings(), **given)


def _arguments(text: str | None) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except ValueError as error:
        raise UserError(f"--arguments is not JSON ({error}); expected such as '{{\"beta1\": 0.9}}'") from None
    if not isinstance(value, dict):
        raise UserError(f"--arguments is {text}; expected names and values, such as '{{\"beta1\": 0.9}}'")
    return value


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UserError(
            f"{option} is {text!r}; expected whole numbers with commas between them, as in 64,128,256"
        ) from None


def _joined(numbers: tuple[int, ...]) -> str:
    return ",".join(map(str, numbers))
