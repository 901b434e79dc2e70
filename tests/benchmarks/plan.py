"""Case `plan`: the seconds of a step that `plan`'s time model says of this CPU, against those that training takes.

In one process: the machine's figures, then training with the real trainer, then the figures once more. All of it counts
processor time of one thread, so that other programs hardly matter.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

import torch

from mup_lightning.callbacks.throughput import MATRIX_SIZES
from mup_lightning.plan.plan import plan
from mup_lightning.plan.time import Machine
from tests.benchmarks.harness import QUICK, Case, Settings, Turn, make_config
from tests.benchmarks.process import StepClock, measure
from tests.benchmarks.trainer import corpus_for
from tests.families import LLAMA, model

MEASURED, PREDICTED = "measured", "predicted"
SHARES = {"products": 0.9, "attention": 0.4, "passes": 0.5}
"""Of a CPU's matrix product and copy: round numbers from before the first measurement, and not fitted to it."""

SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "(256, 4), GPT-2's vocabulary": ({}, {}),
    "(256, 4), bytes": ({"tokenizer": "bytes", "batch": 4}, {}),
    "(512, 8), bytes": ({"width": 512, "depth": 8, "tokenizer": "bytes"}, {}),
    "(256, 4), bytes, Llama's blocks": ({"tokenizer": "bytes", "batch": 4}, LLAMA | {"heads_per_kv": 4}),
}
"""Changes of the settings, and of the model."""


def this_cpu(turns: int) -> Machine:
    """One thread's: FLOP/s of a product of two square matrices, and bytes/s of a copy of 128 MB, read and written."""
    side, source = MATRIX_SIZES["cpu"], torch.ones(1 << 25)
    first, second, target = torch.ones(side, side), torch.ones(side, side), torch.empty_like(source)
    product = torch.empty_like(first)

    def best(work: Callable[[], Any]) -> float:
        found = []
        for _ in range(turns):
            begin = time.process_time()
            work()
            found.append(time.process_time() - begin)
        return min(found)

    peak = 2 * side**3 / best(lambda: torch.mm(first, second, out=product))
    return Machine(peak, peak, 1e12, 2 * source.nbytes / best(lambda: target.copy_(source)), **SHARES)


QUIET = ("validate", "checkpoint", "feature_norms", "spectral_norms", "update_check", "noise_scale")
ALONE = {f"trainer.{name}_every": 0 for name in QUIET} | {"trainer.peak_flops": "off", "trainer.precision": "fp32"}
"""Training that logs, measures and saves nothing by itself."""


def take(s: Settings, quick: bool) -> dict[str, dict[str, float]]:
    """Shape -> milliseconds of a step, by the clock of this process and by the model; GFLOP/s and GB/s."""
    from mup_lightning.training.train import train

    found, turns = {}, 1 if quick else 12
    for name, (changes, blocks) in SHAPES.items():
        shape = s if quick else replace(s, **changes)
        with corpus_for(shape) as corpus:
            config, before = make_config(shape, corpus, ALONE | model(blocks)), this_cpu(turns)
            with StepClock(s.warmup, s.steps, time.process_time) as clock:
                train(config, progress=False, keep=False)
        after = this_cpu(turns)
        flops, bandwidth = max(before.flops, after.flops), max(before.bandwidth, after.bandwidth)
        machine = replace(before, flops=flops, plain_flops=flops, bandwidth=bandwidth)
        planned = plan(config, (1,), "cpu", machine=machine).time[0]
        found[name] = {MEASURED: 1e3 * median(clock.seconds), PREDICTED: 1e3 * planned.seconds}
        found[name] |= {"GFLOP/s": flops / 1e9, "GB/s": bandwidth / 1e9}
    return found


def turn(settings: Settings) -> Turn:
    """One round: every shape, in one process."""
    found: Turn = {}
    for name, one in measure(take, settings, quick=settings.width == QUICK.width)[0].items():
        found[f"{name}: a step (ms)"] = {who: one[who] for who in (PREDICTED, MEASURED)}
        found[f"{name}: the machine"] = {what: one[what] for what in ("GFLOP/s", "GB/s")}
    return found


PLAN = Case(
    "the time of a step that plan's model says of this CPU, one thread, against training's",
    Settings(width=256, depth=4, context=256, batch=2, tokenizer="gpt2", rounds=5, steps=6, warmup=2, threads=1),
    turn,
    {f"{name}: a step (ms)": [(PREDICTED, MEASURED, "within 20 % of 1")] for name in SHAPES},
)
