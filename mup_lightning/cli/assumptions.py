"""`mup-lightning assumptions`."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from mup_lightning.errors import UserError
from mup_lightning.files import check_folder
from mup_lightning.studies.assumptions.settings import BASE_LR, NETWORKS, AssumptionSettings

EXIT_CODES = {"holds": 0, "does not hold": 3, "unclear": 4}
TABLE = "table.md"


def main(argv: list[str]) -> int:
    """Check, write, draw, and say what was found.

    Returns:
        0 all assumptions hold, 3 one does not, 4 one is unclear; 1 and 2 are errors.
    """
    options = _parser().parse_args(argv)
    settings = _settings(options)
    out: Path = options.out
    check_folder(out)
    from mup_lightning.studies.sweep.pool import cores

    workers = cores() if options.workers is None else options.workers
    if workers < 0:
        raise UserError(f"--workers is {workers}; expected 0 (in this process) or more")
    if "gpt2" in settings.networks:
        from mup_lightning.studies.assumptions.gpt2 import open_corpus

        open_corpus(settings)  # refused now, rather than in a worker
    from tqdm import tqdm

    from mup_lightning.studies.assumptions.assumption_figures import draw_assumptions
    from mup_lightning.studies.assumptions.assumption_results import read_assumptions
    from mup_lightning.studies.assumptions.report import markdown, screen
    from mup_lightning.studies.assumptions.run import FILE, check, tasks_of, work_of
    from mup_lightning.studies.result_write import write

    total = sum(map(work_of, tasks_of(settings)))
    form = "{desc} {percentage:3.0f}% |{bar}| [{elapsed}<{remaining}]"
    with tqdm(total=total, desc="assumptions", bar_format=form, leave=False, disable=None) as bar:
        result = check(settings, workers, lambda task: bar.update(work_of(task)))
    if write(result, out / FILE):
        print(f"note: {out / FILE} was there and has been replaced", file=sys.stderr)
    result = read_assumptions(out / FILE)
    (out / TABLE).write_text(markdown(result))
    pictures = draw_assumptions(result, out)
    if options.json:
        print(json.dumps({key: value for key, value in result.items() if key != "runs"}, indent=1))
    else:
        names = ", ".join(picture.name for picture in pictures)
        print(f"{screen(result)}\n\nwrote {out / FILE}, {TABLE}, {names}")
    return EXIT_CODES[result["verdict"]]


def _parser() -> argparse.ArgumentParser:
    default = AssumptionSettings()
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog="mup-lightning assumptions",
        description="Measure over depth what the spectral condition takes for granted, while small networks train: a\n"
        "step cancels neither its weight nor its features, nonlinearities keep the size of features, and the updates\n"
        "of single samples add up. On a residual MLP and our GPT-2 (bytes of the demo corpus).\n\n"
        "examples:\n  mup-lightning assumptions\n"
        "  mup-lightning assumptions --network mlp --optimizer sgd,lion --depths 4,16,64,256",
        epilog="exit status: 0 all assumptions hold; 3 one does not; 4 one is unclear; 1 a mistake in what was asked\n"
        "for; 2 unknown option; 130 interrupted",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--network", default="both", metavar="NAME", help="mlp, gpt2 or both (default: both)")
    parser.add_argument("--depths", metavar="L,L,..", help=f"(default: {','.join(map(str, default.depths))})")
    parser.add_argument(
        "--optimizer",
        metavar="NAME,..",
        help=f"some of {', '.join(BASE_LR['mlp'])} (default: {','.join(default.optimizers)})",
    )
    for name, text in (
        ("width", "of all networks"),
        ("seeds", "repetitions"),
        ("steps", "T, of training; measured after 0, T/2 and T"),
    ):
        known = getattr(default, name)
        parser.add_argument(f"--{name}", type=int, metavar="N", help=f"{text} (default: {known})")
    parser.add_argument(
        "--warmup", type=int, metavar="N", help="steps in which the learning rate rises, as in training (default: T/10)"
    )
    parser.add_argument(
        "--data", metavar="FOLDER", help=f"corpus prepared as bytes, for the GPT-2 (default: {default.data})"
    )
    for name, text in (
        ("least", "smallest ratio that still counts as near 1"),
        ("tolerance", "largest exponent of depth that still counts as flat"),
    ):
        known = getattr(default, name)
        parser.add_argument(f"--{name}", type=float, metavar="X", help=f"{text} (default: {known})")
    parser.add_argument("--workers", type=int, metavar="N", help="processes; 0: in this one (default: one a core)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/assumptions"),
        metavar="FOLDER",
        help="for assumptions.json, table.md and the pictures (default: runs/assumptions)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def _settings(options: argparse.Namespace) -> AssumptionSettings:
    names = ("width", "seeds", "steps", "warmup", "data", "least", "tolerance")
    given: dict[str, Any] = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if options.network != "both":
        if options.network not in NETWORKS:
            raise UserError(f"--network is {options.network!r}; expected {', '.join(NETWORKS)} or both")
        given["networks"] = (options.network,)
    if options.optimizer is not None:
        given["optimizers"] = tuple(dict.fromkeys(options.optimizer.split(",")))
    if options.depths is not None:
        try:
            given["depths"] = tuple(int(part) for part in options.depths.split(","))
        except ValueError:
            raise UserError(
                f"--depths is {options.depths!r}; expected whole numbers with commas between them, as in 4,8,16"
            ) from None
    return replace(AssumptionSettings(), **given)
