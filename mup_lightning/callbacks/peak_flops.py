"""The FLOP/s that a device can do at the most, measured: what MFU divides by where no data sheet's number is given."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import torch

SECONDS = 0.3
"""That a measurement takes, about."""

SIDES = {"cpu": 1024, "cuda": 8192}
"""Of the square matrices: large enough that their products are bound by arithmetic."""


@cache
def measure(device: torch.device, precision: str) -> float:
    """FLOP/s of a product of two dense square matrices, the quickest of as many as fit into `SECONDS`.

    On CPU with the threads of this process: 1024 x 1024 matrices; on GPU 8192 x 8192. In float32 or bfloat16, as the
    run multiplies. A data sheet promises more than any product reaches, so an MFU against this is higher than one
    against the data sheet. Measured once in a process; the device is waited for here and nowhere else.

    Args:
        device: this process's.
        precision: fp32 or bf16.
    """
    side = SIDES[device.type]
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    first, second = (torch.ones(side, side, dtype=dtype, device=device) for _ in range(2))
    product = torch.empty_like(first)
    best, begin = float("inf"), time.perf_counter()
    while best == float("inf") or time.perf_counter() - begin < SECONDS:
        _wait(device)
        start = time.perf_counter()
        torch.mm(first, second, out=product)
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_of(setting: float | str, precision: str) -> Callable[[torch.device], float] | None:
    """What trainer.peak_flops means: a function from a process's device to its peak FLOP/s; None: off.

    Args:
        setting: trainer.peak_flops.
        precision: fp32 or bf16.
    """
    if setting == "off":
        return None
    return lambda device: measure(device, precision) if setting == "measure" else float(setting)
