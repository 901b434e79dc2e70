"""`mup-lightning gpu-check`: a list of parts, one after another in a worker process, and the table of what they found.

The bars are those of one H100 or H200 in bf16; on another GPU the same rows stand without them.
"""

import os
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from functools import partial
from itertools import product, takewhile
from pathlib import Path
from typing import Any

import torch

from mup_lightning import tables
from mup_lightning.data.card import load_card
from mup_lightning.data.prepare import prepare
from mup_lightning.errors import UserError
from mup_lightning.files import check_folder, write_atomic, write_json
from mup_lightning.studies.gpu import GpuCheckSettings
from mup_lightning.studies.gpu import parts as measurements
from mup_lightning.studies.gpu.parts import FAMILIES, Place, Row
from mup_lightning.studies.scaling import Verdict
from mup_lightning.studies.workers import DIED, each
from mup_lightning.versions import versions

STRATEGIES = ("ddp", "zero1", "zero2", "zero3", "fsdp")

Part = Callable[[Place], list[Row]]

Found = Mapping[str, list[Row] | str]  # name of a part -> its rows, or why there are none


def run(settings: GpuCheckSettings) -> int:
    """Run all parts, print and write what they found. Returns 3 if something is wrong, 4 if time was too short."""
    if not (torch.cuda.is_available() or settings.rehearse):
        raise UserError("torch finds no GPU here; --rehearse runs every part on the CPU with tiny models")
    check_folder(settings.out)
    gpus = 0 if settings.rehearse else torch.cuda.device_count()
    device = "CPU (rehearsal)" if settings.rehearse else torch.cuda.get_device_name(0)
    tokenizer = "bytes" if settings.rehearse else "gpt2"
    corpus = settings.out / f"corpus-{tokenizer}"
    prepare(load_card(Path("data/austen.yaml")), corpus, tokenizer, progress=False)
    place = Place(settings.out, str(corpus), tokenizer, settings.rehearse)
    todo = parts(settings.sizes, ("fsdp",) if settings.rehearse else STRATEGIES, min(2, gpus) or 2)
    found: dict[str, list[Row] | str] = {}
    deadline = time.monotonic() + 60 * settings.minutes
    in_time = takewhile(lambda _: time.monotonic() < deadline, todo.values())

    os.environ.setdefault("OMP_NUM_THREADS", "1" if settings.rehearse else "8")
    measure, names = partial(_measure, place), list(todo)
    write(settings.out, device, gpus, todo, found)
    for number, result in each(measure, in_time, 0 if settings.rehearse else 1, 8, died=lambda part: DIED):
        found[names[number]] = result
        print(tables.text(lines({names[number]: result})[1:]), flush=True)
        write(settings.out, device, gpus, todo, found)
    print(f"\n{settings.out / 'gpu_check.md'} and gpu_check.json have all of it")
    wrong = any(cells[-1] == Verdict.FAIL for cells in lines(found))
    return 3 if wrong else 4 if len(found) < len(todo) else 0


def parts(sizes: tuple[str, ...], strategies: tuple[str, ...], processes: int) -> dict[str, Part]:
    """What is measured, what has to be right first; `strategies` run in so many processes."""
    found: dict[str, Part] = {"bf16 and the compiler": measurements.same_losses, "resume": measurements.resume}
    found |= {"waits for the GPU": measurements.waits}
    found |= {f"attention of {family}": partial(measurements.flash, family=family) for family in FAMILIES}
    under = f"strategies, {processes} process{'es' * (processes > 1)} each"
    found[under] = partial(measurements.strategies, names=strategies, processes=processes)
    for size, family in product(sizes, FAMILIES):
        found[f"speed of {size}, {family}"] = partial(measurements.speed, size=size, family=family)
    return found | {"steps of 0.5 M tokens": measurements.steps, "kernels of the loss": measurements.losses}


def _measure(place: Place, part: Part) -> list[Row] | str:
    """The rows of a part, or why there are none."""
    try:
        return part(place)
    except Exception as error:
        if "CUDA error" in str(error):  # the process can do nothing more with its GPU
            os._exit(1)
        return next((line for line in str(error).splitlines() if line), repr(error))


def lines(found: Found) -> list[list[str]]:
    """The rows of parts as cells; the first line is the heading."""
    cells = [["part", "what", "value", "wanted", "verdict"]]
    for name, rows in found.items():
        if isinstance(rows, str):
            cells.append([name, rows, "", "", Verdict.FAIL])
            continue
        for row in rows:
            bounds = [f"{sign} {end:g}" for sign, end in (("≥", row.low), ("≤", row.high)) if end is not None]
            value = f"{row.value:,.4g} {row.unit}".strip()
            cells.append([name, row.what, value, " ".join(bounds), row.verdict or ""])
    return cells


def write(out: Path, device: str, gpus: int, todo: Collection[str], found: Found) -> None:
    """Write what was found so far as JSON and Markdown."""
    left = [name for name in todo if name not in found]
    plain: dict[str, Any] = {"device": device, "gpus": gpus, "versions": versions(), "left_out": left}
    rows = {
        name: rows if isinstance(rows, str) else [asdict(row) | {"verdict": row.verdict} for row in rows]
        for name, rows in found.items()
    }
    write_json(out / "gpu_check.json", plain | {"parts": rows})
    head = f"# GPU check\n\n{device}, {gpus} in all; versions {plain['versions']}\n"
    tail = f"\nNot measured, for want of time: {', '.join(left)}.\n" if left else ""
    write_atomic(out / "gpu_check.md", f"{head}\n{tables.markdown(lines(found))}\n{tail}")
