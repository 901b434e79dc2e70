"""`mup-lightning probe`: measure, judge, write and draw one optimizer, or all of ours."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from mup_lightning.errors import UserError
from mup_lightning.files import check_folder, write_atomic, write_json
from mup_lightning.spectral.families import FAMILIES
from mup_lightning.studies import style
from mup_lightning.studies.probe import report
from mup_lightning.studies.probe.external import external_subject
from mup_lightning.studies.probe.measure import Subject, measure, our_subject, points
from mup_lightning.studies.probe.settings import ProbeSettings
from mup_lightning.studies.probe.verdict import Probe, conclude
from mup_lightning.versions import versions

FILE = "probe.json"
TABLE = "table.md"


def run(settings: ProbeSettings) -> int:
    """Probe what the settings name.

    Returns:
        0 PASS or proposed, 3 FAIL, 4 UNCLEAR; of several optimizers the worst.

    Raises:
        UserError: an optimizer cannot be probed, or a folder cannot be written.
    """
    base = settings.out or Path("runs/probe")
    names = list(FAMILIES) if settings.optimizer is None else [settings.optimizer]
    alone = settings.out is not None and not settings.all
    folders = {name: base if alone else base / name.replace(":", ".") for name in names}
    for folder in folders.values():
        check_folder(folder)
    probes: list[Probe] = []
    for name, folder in folders.items():
        mine = settings.of(name)
        subject = make_subject(name, mine)
        total = len(mine.shapes) * mine.seeds
        with tqdm(total=total, desc=f"probe {name}", unit="network", leave=False, disable=None) as bar:
            found = probe(subject, mine, bar.update)
        probes.append(found)
        if (folder / FILE).exists():
            print(f"note: {folder / FILE} was there and has been replaced", file=sys.stderr)
        write_json(folder / FILE, found.to_dict() | {"versions": versions()})
        style.save(report.picture(found), folder / "probe.png")
        if settings.all:
            write_atomic(base / TABLE, report.markdown(probes))  # after each, so that Ctrl-C loses one probe alone
        if not settings.json:
            print(f"{report.text(found)}\nwrote {folder / FILE} and probe.png\n", flush=True)
    if settings.all:
        print(f"wrote {base / TABLE}", file=sys.stderr)
    if settings.json:
        short = [{key: value for key, value in found.to_dict().items() if key != "networks"} for found in probes]
        print(json.dumps(short if settings.all else short[0], indent=1))
    codes = {found.exit_code for found in probes}
    return 3 if 3 in codes else max(codes)


def make_subject(name: str, settings: ProbeSettings) -> Subject:
    """One of ours by its name, or any torch optimizer class by its import path."""
    if name in FAMILIES:
        return our_subject(name, settings.branch_depth, settings.arguments)
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)  # a module in the current folder counts, too
    return external_subject(name, settings.arguments, settings)


def probe(subject: Subject, settings: ProbeSettings, on_network: Callable[[], object] = lambda: None) -> Probe:
    """Measure every size and seed, fit, and judge or propose.

    Args:
        subject: the optimizer.
        settings: sizes, steps, tolerance.
        on_network: called after every network.

    Raises:
        UserError: a step was not finite, or no step changed anything.
    """
    networks = []
    for width, depth in settings.shapes:
        for seed in range(settings.seeds):
            networks.append(measure(subject, settings, width, depth, seed))
            on_network()
    moved = points(networks, settings)
    if not moved:
        raise UserError(
            f"{subject.name} changed nothing in {settings.steps} steps, so there is nothing to measure. Does it warm "
            f"up? Give it more --steps, or other --arguments"
        )
    return conclude(subject.name, subject.family, settings, subject.facts, networks, moved)
