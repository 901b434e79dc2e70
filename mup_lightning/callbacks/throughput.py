"""Training speed: step time, tokens per second, model FLOPs utilisation (MFU), without validation and checkpoints."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import lightning.pytorch as pl
import torch
from torch.utils.benchmark import Timer

from mup_lightning import signals
from mup_lightning.callbacks.step import StepCallback, WatchedModule, due, log
from mup_lightning.config.schema import TrainerConfig

MEASURE_SECONDS = 0.3
"""How long a measurement of the peak takes, about."""

MATRIX_SIZES = {"cpu": 1024, "cuda": 8192}
"""Side of the square matrices multiplied: large enough for their product to be bound by arithmetic."""


class Throughput(StepCallback):
    """Times steps, each from the end of the one before, and logs the speed every `trainer.log_every` steps.

    Waiting for data, logging and measuring count. No synchronisation is forced on a GPU, but every step's check of the
    gradient norm waits for the step before it: a mean is right up to a fraction of one step.

    MFU is FLOPs per token x tokens/s over the sum of all processes' peaks (Chowdhery et al. 2022, appendix B).
    `tokens_per_step` is over all processes. `seconds` is the time spent in `steps` so far, without the first one
    (warm-up, allocation, compilation).
    """

    def __init__(self, tokens_per_step: int, trainer: TrainerConfig, flops_per_token: float) -> None:
        self.tokens_per_step, self.flops_per_token = tokens_per_step, flops_per_token
        self.every, self.peak, self.precision = trainer.log_every, trainer.peak_flops, trainer.precision
        self.seconds, self.steps = 0.0, 0
        self._begin: float | None = None
        self._all_peaks: float | None = None
        self._logged = 0.0, 0

    @property
    def tokens_per_second(self) -> float:
        """Mean over all steps counted so far; 0 before the second step has ended."""
        return self.tokens_per_step * self.steps / self.seconds if self.seconds else 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the peaks: all processes at once, because CPU processes share the machine."""
        if self.peak != "off" and trainer.logger is not None:
            device = pl_module.device
            peak = measured_peak(device, self.precision) if self.peak == "measure" else float(self.peak)
            own = torch.tensor(peak, dtype=torch.float64, device=device)
            self._all_peaks = float(trainer.strategy.reduce(own, reduce_op="sum"))

    def on_step_end(self, trainer: pl.Trainer, module: WatchedModule, step: int) -> None:
        """Read the clock; log the speed since the last point, and the mean since this process started."""
        now = time.perf_counter()
        if self._begin is not None:
            self.seconds += now - self._begin
            self.steps += 1
        self._begin = now
        if trainer.logger is None or not due(step, self.every, trainer.max_steps):
            return
        seconds, steps = self.seconds - self._logged[0], self.steps - self._logged[1]
        self._logged = self.seconds, self.steps
        if steps:
            rate = self.tokens_per_step * steps / seconds
            values = {
                "train/step_seconds": seconds / steps,
                "train/tokens_per_second": rate,
                "train/tokens_per_second/mean": self.tokens_per_second,
            }
            if self._all_peaks:
                values["train/mfu"] = self.flops_per_token * rate / self._all_peaks
            log(trainer, values, step)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time spent inside: it belongs to no step, and may be long."""
        begin = time.perf_counter()
        try:
            with signals.unhurried():
                yield
        finally:
            if self._begin is not None:
                self._begin += time.perf_counter() - begin


@cache
def measured_peak(device: torch.device, precision: str) -> float:
    """FLOP/s of a product of two dense square matrices (fp32 or bf16), the quickest within `MEASURE_SECONDS`.

    On CPU with the threads of this process; measured once in a process. No product reaches a data sheet's figure.
    """
    side = MATRIX_SIZES[device.type]
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    a, b, c = torch.ones(3, side, side, dtype=dtype, device=device)
    timer = Timer("torch.mm(a, b, out=c)", globals={"a": a, "b": b, "c": c}, num_threads=torch.get_num_threads())
    return 2 * side**3 / min(timer.blocked_autorange(min_run_time=MEASURE_SECONDS).times)
