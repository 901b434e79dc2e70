"""Case `plan`: the seconds of a step that `plan`'s time model says of this CPU, against those that training takes.

In one process: the machine's figures, then training with the real trainer, then the figures once more. All of it counts
processor time of one thread, so that other programs hardly matter.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from mup_lightning.callbacks.throughput import MATRIX_SIZES
from mup_lightning.config.schema import Config
from mup_lightning.plan.plan import plan
from mup_lightning.plan.time import Machine
from tests.benchmarks.harness import QUICK, Case, Settings, Turn
from tests.benchmarks.process import measure
from tests.benchmarks.trainer import corpus_for

MEASURED, PREDICTED = "measured", "predicted"
SHARES = {"products": 0.9, "attention": 0.4, "passes": 0.5}
"""Of a CPU's matrix product and copy: round numbers from before the first measurement, and not fitted to it."""

LLAMA: dict[str, Any] = {
    **{"position": "rope", "norm": "rmsnorm", "bias": False, "activation": "silu", "gated": True},
    **{"mlp_ratio": 3.5, "heads_per_kv": 4},
}
SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "(256, 4), GPT-2's vocabulary": ({}, {}),
    "(256, 4), bytes": ({"tokenizer": "bytes", "batch": 4}, {}),
    "(512, 8), bytes": ({"width": 512, "depth": 8, "tokenizer": "bytes"}, {}),
    "(256, 4), bytes, Llama's blocks": ({"tokenizer": "bytes", "batch": 4}, LLAMA),
}
"""Changes of the settings, and of the model."""


def this_cpu() -> Machine:
    """One thread's: FLOP/s of a product of two square matrices, and bytes/s of a copy of 128 MB, read and written."""
    side, source = MATRIX_SIZES["cpu"], torch.ones(1 << 25)
    first, second, target = torch.ones(side, side), torch.ones(side, side), torch.empty_like(source)
    product = torch.empty_like(first)

    def best(work: Callable[[], Any]) -> float:
        found = []
        for _ in range(12):
            begin = time.process_time()
            work()
            found.append(time.process_time() - begin)
        return min(found)

    peak = 2 * side**3 / best(lambda: torch.mm(first, second, out=product))
    return Machine(peak, peak, 1e12, 2 * source.nbytes / best(lambda: target.copy_(source)), **SHARES)


def make_config(s: Settings, corpus: str, blocks: dict[str, Any]) -> Config:
    """A run that logs, measures and saves nothing by itself."""
    quiet = ("validate", "checkpoint", "feature_norms", "spectral_norms", "update_check", "noise_scale")
    trainer = {f"{name}_every": 0 for name in quiet} | {"accelerator": "cpu", "peak_flops": "off", "precision": "fp32"}
    return Config.from_plain(
        {
            "model": {"width": s.width, "depth": s.depth, "context": s.context} | blocks,
            "recipe": {"optimizer": "adamw", "lr": 2**-8},
            "data": {"path": corpus, "tokenizer": s.tokenizer, "batch_size": s.batch, "micro_batch": s.batch},
            "trainer": trainer | {"max_steps": s.warmup + s.steps + 1},
        }
    )


def take(s: Settings, quick: bool) -> dict[str, dict[str, float]]:
    """Shape -> milliseconds of a step, by the clock of this process and by the model; GFLOP/s and GB/s."""
    from mup_lightning.training.train import train

    found = {}
    for name, (changes, blocks) in SHAPES.items():
        shape = s if quick else replace(s, **changes)
        with corpus_for(shape) as corpus:
            config, before, ticks = make_config(shape, corpus, blocks), this_cpu(), []
            handle = register_optimizer_step_pre_hook(lambda *_, ticks=ticks: ticks.append(time.process_time()))
            train(config, progress=False, keep=False)
            handle.remove()
        after, steps = this_cpu(), [end - begin for begin, end in pairwise(ticks[s.warmup :])]
        flops, bandwidth = max(before.flops, after.flops), max(before.bandwidth, after.bandwidth)
        machine = replace(before, flops=flops, plain_flops=flops, bandwidth=bandwidth)
        planned = plan(config, (1,), "cpu", machine=machine).time[0]
        found[name] = {MEASURED: 1e3 * median(steps), PREDICTED: 1e3 * planned.seconds}
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
