"""`mup-lightning submit`."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from argparse import Namespace
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser

from mup_lightning.config.load import build, config_parser, options_parser, parse
from mup_lightning.errors import UserError
from mup_lightning.files import make_folder
from mup_lightning.slurm import queue, script
from mup_lightning.slurm import submit as check
from mup_lightning.slurm.options import SlurmConfig

if TYPE_CHECKING:
    from mup_lightning.config.schema import Config

EXAMPLE = (
    "mup-lightning submit -c recipes/slurm/default.yaml -c recipes/size/xl.yaml -c recipes/strategy/ddp.yaml \\\n"
    "      --trainer.nodes 4 --slurm.gpus 8 --slurm.time 12:00:00 --data.batch_size 256 --run.name xl --dry\n"
    "  mup-lightning submit --sweep recipes/experiment/FILE.yaml --tasks 8 --slurm.gpus 1"
)


def main(argv: list[str]) -> int:
    """Submit a training, or a sweep as an array job."""
    array = any(item == "--sweep" or item.startswith("--sweep=") for item in argv)
    parser = _parser(array)
    arguments = parse(parser, argv)
    slurm = SlurmConfig(**vars(parser.instantiate_classes(arguments).slurm))
    if array:  # its small models need no GPU unless one is asked for
        return _submit_sweep(arguments, replace(slurm, gpus=slurm.gpus or 0))
    slurm.checked_gpus()
    return _submit_training(build(parser, arguments), slurm, dry=arguments.dry)


def _parser(array: bool) -> ArgumentParser:
    name, description = "mup-lightning submit", "Check everything as `train` would, write a job script, submit it."
    if array:
        parser = options_parser(name, f"{description} This is the form for sweeps.", EXAMPLE)
        parser.add_argument("--sweep", metavar="FILE.yaml", required=True, help="see mup-lightning sweep")
        parser.add_argument(
            "--tasks", type=int, required=True, help="jobs of the array; each runs every N-th configuration"
        )
        parser.add_argument("--out", type=str, help="folder of the table (default: runs/sweeps/NAME)")
        parser.add_argument("--workers", type=int, help="processes of each task (default: one a core or GPU)")
        parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="see mup-lightning sweep")
    else:
        parser = config_parser(
            name,
            f"{description} Takes the options of\n`mup-lightning train`; those of the cluster begin with --slurm.\n"
            "With --sweep FILE.yaml --tasks N [--out FOLDER] [--workers N] [--set KEY=VALUE ...] instead of the\n"
            "options of `train`, an array job shares out a sweep.",
            EXAMPLE,
        )
        parser.usage = f"{parser.usage} [--slurm.key VALUE ...] [--dry]"
    parser.add_class_arguments(SlurmConfig, "slurm")
    parser.add_argument("--dry", action="store_true", help="print the script and let SLURM check it; submit nothing")
    return parser


def _submit_training(config: Config, slurm: SlurmConfig, *, dry: bool) -> int:
    check.settle(config, slurm)
    check.check(config)
    folder = Path(config.run.root) / config.run.name / "slurm"
    config.run.resume = "auto"
    text = script.training(
        slurm,
        name=slurm.job or config.run.name.replace("/", "-"),
        nodes=config.trainer.nodes,
        processes=config.trainer.devices,
        folder=folder,
        program=_program(),
    )
    if dry:
        return _show(text)
    queue.test(text)

    import yaml

    from mup_lightning.training.checkpoint import plain

    make_folder(folder, "--run.root, --run.name")
    # As it is now: a recipe that changes while the job waits, or between two of its lives, changes nothing.
    (folder / "config.yaml").write_text(yaml.safe_dump(plain(asdict(config)), sort_keys=False))
    job = _submit(folder, text)
    (folder / check.RECORD).write_text(json.dumps({"job": job}) + "\n")
    trainer = config.trainer
    each = f"{trainer.devices} {'GPUs' if slurm.gpus else 'CPU processes'}"
    print(
        f"job {job}: {config.run.name} on {trainer.nodes} x {each}\n"
        f"  watch     squeue -j {job}; tail -F {folder}/{job}.log\n"
        f"  stop      scancel {job}    (saves; RESUME=auto, or --run.resume auto, submits the rest)\n"
        f"  requeue   scancel --signal=USR1 {job}    (saves, goes back into the queue)\n"
        f"  script    {folder}/job.sbatch"
    )
    return 0


def _submit_sweep(arguments: Namespace, slurm: SlurmConfig) -> int:
    if arguments.tasks < 1:
        raise UserError(f"--tasks is {arguments.tasks}; expected a whole number of at least 1")
    from mup_lightning.studies.sweep.spec import load

    out = Path(arguments.out or Path("runs") / "sweeps" / load(arguments.sweep).name)
    for name, what in ((str(out), "--out"), (str(Path.cwd()), "the folder you are in")):
        check.name_is_plain(name, what)
    command = ["sweep", arguments.sweep, "--out", str(out)]
    command += ["--workers", str(arguments.workers)] if arguments.workers is not None else []
    command += [item for setting in arguments.set for item in ("--set", setting)]
    _check_sweep(command)
    folder = out / "slurm"
    name = slurm.job or f"sweep-{out.name}"
    text = script.sweep(slurm, name=name, tasks=arguments.tasks, command=[str(_program()), *command], folder=folder)
    if arguments.dry:
        return _show(text)
    queue.test(text)
    make_folder(folder)
    job = _submit(folder, text)
    print(
        f"job {job}: {arguments.tasks} tasks of {arguments.sweep}, each on "
        f"{f'{slurm.gpus} GPUs' if slurm.gpus else 'CPUs alone (GPUS=N, or --slurm.gpus N: GPUs)'}; "
        f"table {out}/results.csv\n"
        f"  watch     squeue -j {job}; tail -F {folder}/{job}_1.log\n"
        f"  stop      scancel {job}    (submit it again to go on)\n"
        f"  script    {folder}/job.sbatch"
    )
    return 0


def _check_sweep(command: list[str]) -> None:
    """Build and check every configuration as the sweep itself will."""
    from mup_lightning.cli import sweep

    with contextlib.redirect_stdout(io.StringIO()):
        sweep.main([*command[1:], "--dry-run"])


def _submit(folder: Path, text: str) -> str:
    """Write the script into the folder and submit it."""
    file = folder / "job.sbatch"
    file.write_text(text)
    return queue.submit(str(file))


def _show(text: str) -> int:
    """Print the script, and what SLURM says of it."""
    print(text, flush=True)
    print(queue.test(text) if queue.available() else "not checked by SLURM: there is no sbatch here", file=sys.stderr)
    return 0


def _program() -> Path:
    """The command mup-lightning beside this Python.

    Raises:
        UserError: it is not installed.
    """
    program = Path(sys.executable).with_name("mup-lightning")
    if not program.is_file():
        raise UserError(f"there is no {program}, which the job would run; install this package there (make setup)")
    return program
