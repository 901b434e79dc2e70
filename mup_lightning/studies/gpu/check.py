"""`mup-lightning gpu-check`: a list of parts, one after another in a worker process, and the table of what they found.

The bars are those of one H100 or H200 in bf16; on another GPU the same rows stand without them.
"""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mup_lightning import tables
from mup_lightning.errors import UserError
from mup_lightning.files import check_folder, write_atomic, write_json
from mup_lightning.studies.gpu import GpuCheckSettings
from mup_lightning.studies.gpu.parts import FAMILIES, Place, Row
from mup_lightning.studies.scaling import Verdict, overall
from mup_lightning.studies.workers import DIED, each
from mup_lightning.versions import versions

STRATEGIES = ("ddp", "zero1", "zero2", "zero3", "fsdp")

Found = Mapping[str, "list[Row] | str"]
"""Part -> its rows, or why there are none."""


@dataclass
class Part:
    """One part of the check: a function of `parts` and its arguments, after the `Place`."""

    name: str
    measure: str
    arguments: tuple[Any, ...] = ()


def run(settings: GpuCheckSettings) -> int:
    """Run all parts, print and write what they found.

    Returns 3 where something is not as it should be, 4 where time was too short for a part.
    """
    import torch

    if not (torch.cuda.is_available() or settings.rehearse):
        raise UserError("torch finds no GPU here; --rehearse runs every part on the CPU with tiny models")
    check_folder(settings.out)
    gpus = 0 if settings.rehearse else torch.cuda.device_count()
    device = "CPU (rehearsal)" if settings.rehearse else torch.cuda.get_device_name(0)
    place = _prepare(settings)
    todo = parts(settings.sizes, ("fsdp",) if settings.rehearse else STRATEGIES, min(2, gpus) or 2)
    found: dict[str, list[Row] | str] = {}
    deadline = time.monotonic() + 60 * settings.minutes

    def in_time() -> Iterator[Part]:
        for part in todo:
            if time.monotonic() < deadline:
                yield part

    os.environ.setdefault("OMP_NUM_THREADS", "1" if settings.rehearse else "8")
    measure = partial(_measure, place)
    write(settings.out, device, gpus, todo, found)
    for number, result in each(measure, in_time(), 0 if settings.rehearse else 1, 8, died=lambda part: DIED):
        found[todo[number].name] = result
        print(tables.text(lines({todo[number].name: result})[1:]), flush=True)
        write(settings.out, device, gpus, todo, found)
    print(f"\n{settings.out / 'gpu_check.md'} and gpu_check.json have all of it")
    verdicts = [
        Verdict.FAIL if isinstance(rows, str) else overall(row.verdict for row in rows) for rows in found.values()
    ]
    return 3 if Verdict.FAIL in verdicts else 4 if len(found) < len(todo) else 0


def parts(sizes: tuple[str, ...], strategies: tuple[str, ...], processes: int) -> list[Part]:
    """What is measured, what has to be right first; `strategies` run in so many processes."""
    found = [Part("bf16 and the compiler", "same_losses"), Part("resume", "resume"), Part("waits for the GPU", "waits")]
    found += [Part(f"attention of {family}", "flash", (family,)) for family in FAMILIES]
    found.append(
        Part(f"strategies, {processes} process{'es' * (processes > 1)} each", "strategies", (strategies, processes))
    )
    found += [Part(f"speed of {size}, {family}", "speed", (size, family)) for size in sizes for family in FAMILIES]
    return [*found, Part("steps of 0.5 M tokens", "steps"), Part("kernels of the loss", "losses")]


def _prepare(settings: GpuCheckSettings) -> Place:
    """The demo corpus, prepared in the check's own folder."""
    from mup_lightning.data.card import load_card
    from mup_lightning.data.prepare import prepare

    tokenizer = "bytes" if settings.rehearse else "gpt2"
    corpus = settings.out / f"corpus-{tokenizer}"
    prepare(load_card(Path("data/austen.yaml")), corpus, tokenizer, progress=False)
    return Place(settings.out, str(corpus), tokenizer, settings.rehearse)


def _measure(place: Place, part: Part) -> list[Row] | str:
    """The rows of a part, or why there are none."""
    from mup_lightning.studies.gpu import parts as measurements

    try:
        return getattr(measurements, part.measure)(place, *part.arguments)
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


def write(out: Path, device: str, gpus: int, todo: Sequence[Part], found: Found) -> None:
    """Write what was found so far as JSON and Markdown."""
    left = [part.name for part in todo if part.name not in found]
    plain: dict[str, Any] = {"device": device, "gpus": gpus, "versions": versions(), "left_out": left}
    rows = {
        name: rows if isinstance(rows, str) else [asdict(row) | {"verdict": row.verdict} for row in rows]
        for name, rows in found.items()
    }
    write_json(out / "gpu_check.json", plain | {"parts": rows})
    head = f"# GPU check\n\n{device}, {gpus} in all; versions {plain['versions']}\n"
    tail = f"\nNot measured, for want of time: {', '.join(left)}.\n" if left else ""
    write_atomic(out / "gpu_check.md", f"{head}\n{tables.markdown(lines(found))}\n{tail}")
