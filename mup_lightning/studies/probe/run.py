"""`mup-lightning probe`: measure, judge, write and draw one optimizer, or all of ours."""

import json
import sys
from pathlib import Path

from mup_lightning.files import check_folder, write_atomic
from mup_lightning.spectral.families import FAMILIES
from mup_lightning.studies import style
from mup_lightning.studies.probe import ProbeSettings
from mup_lightning.studies.probe.external import external_subject
from mup_lightning.studies.probe.measure import Subject, build_network, measure, our_subject
from mup_lightning.studies.probe.report import Probe, conclude, markdown, picture, text
from mup_lightning.studies.scaling import exit_code
from mup_lightning.studies.workers import run_all


def run(settings: ProbeSettings) -> int:
    """Probe what the settings name. Returns 0 PASS or proposed, 3 FAIL, 4 UNCLEAR; of several optimizers the worst."""
    base = Path(settings.out or "runs/probe")
    names = list(FAMILIES) if settings.optimizer is None else [settings.optimizer]
    alone = settings.out is not None and not settings.all
    folders = {name: base if alone else base / name.replace(":", ".") for name in names}
    for folder in folders.values():
        check_folder(folder)
    probes: list[Probe] = []
    for name, folder in folders.items():
        mine = settings.of(name)
        found = probe(make_subject(name, mine), mine)
        probes.append(found)
        found.write(folder / "probe.json")
        style.save(picture(found), folder / "probe.png")
        if settings.all:
            write_atomic(base / "table.md", markdown(probes))  # after each, so that Ctrl-C loses one probe alone
        if not settings.json:
            print(f"{text(found)}\n\nwrote {folder / 'probe.json'} and probe.png\n", flush=True)
    if settings.json:
        short = [found.short() for found in probes]
        print(json.dumps(short if settings.all else short[0], indent=1))
    return exit_code(found.finding for found in probes)


def make_subject(name: str, settings: ProbeSettings) -> Subject:
    """One of ours by its name, or any torch optimizer class by its import path."""
    if name in FAMILIES:
        return our_subject(name, settings.branch_depth, settings.arguments)
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)  # a module in the current folder counts, too
    return external_subject(name, settings.arguments, settings)


def probe(subject: Subject, settings: ProbeSettings) -> Probe:
    """Measure every size and seed, fit, and judge or propose."""
    subject.build(build_network(settings, *settings.base, seed=0), 1.0, 1.0)  # refuses wrong arguments at once
    networks = [(*shape, seed) for shape in settings.shapes for seed in range(settings.seeds)]
    runs = run_all(f"probe of {subject.name}", lambda network: measure(subject, settings, *network), networks, 0)
    return conclude(subject.name, subject.family, settings, subject.facts, runs)
