"""Judges the training loss: counts spikes, which may end the run, and compares it with the run's forecast."""

import math
import sys
from collections import deque
from itertools import pairwise
from statistics import fmean, median
from typing import ClassVar

import lightning.pytorch as pl
import numpy as np
from tqdm import tqdm

from mup_lightning.callbacks.losses import Losses, Validation
from mup_lightning.callbacks.step import SavedCallback, WatchedModule, due, log, tensorboard
from mup_lightning.config.forecast import CURVE_POINTS, Forecast
from mup_lightning.config.schema import TrainerConfig
from mup_lightning.errors import Diverged

MAD = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""

LEAST_SPREAD = 0.01
"""Smallest spread, as a share of the level."""


def spike_limit(window: deque[float], sigmas: float) -> float:
    """What the next loss must exceed to be a spike, by the last ones; infinity before half of the window is there.

    That is level + sigmas x spread, both by ranks, so that spikes among the last losses hardly move either. The level
    is the median of the newer half of the window, so it follows a falling loss. The spread is that of the differences
    between neighbours, which do not contain the trend: 1.4826 times their median absolute deviation, over √2 because a
    difference of two values scatters √2 as much as each; but at least 1 % of the level. A few spikes are outvoted,
    while a loss that stays high becomes the level within a quarter of the window.
    """
    losses = list(window)
    if len(losses) < max(2, (window.maxlen or 0) // 2):
        return math.inf
    level = median(losses[len(losses) // 2 :])
    changes = [after - before for before, after in pairwise(losses)]
    usual = median(changes)
    spread = MAD * median(abs(change - usual) for change in changes) / math.sqrt(2)
    return level + sigmas * max(spread, LEAST_SPREAD * abs(level))


class Divergence(SavedCallback):
    """Judges every step's loss, where the losses of all processes come together: at points, and before a checkpoint.

    `trainer.spike_stop` spikes within the window end the run; `spikes` are those so far, over all resumes.
    """

    saved: ClassVar = {"spikes": "spikes", "losses": "_window", "recent": "_recent"}

    def __init__(self, losses: Losses, trainer: TrainerConfig) -> None:
        self.losses, self.every, self.stop, self.spikes = losses, trainer.log_every, trainer.spike_stop, 0
        self.sigmas, self._window = trainer.spike_sigmas, deque[float](maxlen=trainer.spike_window)
        self._recent: deque[bool] = deque(maxlen=trainer.spike_window)

    def on_step_end(self, trainer: pl.Trainer, module: WatchedModule, step: int) -> None:
        """Judge, log and warn; all processes see the same losses. Raises Diverged where there are too many spikes."""
        found: list[tuple[int, float, float]] = []
        enough = False
        for number, loss in enumerate(self.losses.new, start=step - len(self.losses.new) + 1):
            limit = spike_limit(self._window, self.sigmas)
            self._window.append(loss)
            self._recent.append(loss > limit)
            found += [(number, loss, limit)] * (loss > limit)
            # Counted after every spike: by the next point some of these steps may have left the window.
            enough = loss > limit and 0 < self.stop <= sum(self._recent)
            if enough:
                break
        self.spikes += len(found)
        if due(step, self.every, trainer.max_steps):
            log(trainer, {"train/loss_spikes": float(self.spikes)}, step)
        if found and trainer.is_global_zero:
            tqdm.write(f"warning: {_describe(found)}", file=sys.stderr)
        if enough:
            raise Diverged(
                f"{sum(self._recent)} of the last {len(self._recent)} steps were loss spikes, and trainer.spike_stop "
                f"is {self.stop}. The last: {_describe(found[-1:])}. Stopped after step {step}; every saved checkpoint "
                f"is kept. Usual remedies: a new run with a lower recipe.lr or a longer schedule.warmup_steps; to "
                f"continue regardless, resume without trainer.spike_stop",
                step,
            )


def _describe(spikes: list[tuple[int, float, float]]) -> str:
    """The largest of some spikes, given as (step, loss, limit)."""
    step, loss, limit = max(spikes, key=lambda spike: spike[1])
    more = f" (the largest of {len(spikes)} since step {spikes[0][0]})" if len(spikes) > 1 else ""
    return f"the loss spiked to {loss:.4g} in step {step}{more}; above {limit:.4g} counts as a spike"


class BesideForecast(SavedCallback):
    """Logs the forecast at the points of the training loss, and judges the run by it.

    The training loss is smoothed as those of the small models were, over a fiftieth of the run. The first point is that
    of the forecast's curve, after the warm-up; without a curve the final loss is a level line, and only the validation
    loss at the end is judged. `inside` says whether the last judged loss was in the interval.
    """

    saved: ClassVar = {"window": "window", "inside": "inside"}

    def __init__(self, forecast: Forecast, losses: Losses, validation: Validation, trainer: TrainerConfig) -> None:
        self.forecast, self.losses, self.validation, self.every = forecast, losses, validation, trainer.log_every
        self.window: deque[float] = deque(maxlen=max(1, round(trainer.max_steps / CURVE_POINTS)))
        self.inside = True

    def on_step_end(self, trainer: pl.Trainer, module: WatchedModule, step: int) -> None:
        """Log and judge where a point is due, and the validation loss after the last step."""
        self.window.extend(self.losses.new)
        made, share = self.forecast, step / trainer.max_steps
        curve = np.array(made.curve or [(0.0, made.loss, made.low, made.high)])
        if not due(step, self.every, trainer.max_steps) or share < curve[0, 0]:
            return
        loss, low, high = (float(np.interp(share, curve[:, 0], column)) for column in curve.T[1:])
        smoothed = fmean(self.window)
        values = {"loss": loss, "low": low, "high": high, "smoothed": smoothed}
        log(trainer, {f"forecast/{name}": value for name, value in values.items()}, step)
        inside = low <= smoothed <= high or not made.curve
        if inside != self.inside:
            kind, how = ("note", "is back in") if inside else ("warning", "has left")
            where = f"its forecast's interval, {low:.4f} to {high:.4f}"
            _say(trainer, f"{kind}: the training loss, {smoothed:.4f}, {how} {where}", step)
        self.inside = inside
        if step == trainer.max_steps and self.validation.last is not None:
            loss = self.validation.last
            where = "inside" if made.low <= loss <= made.high else "OUTSIDE"
            _say(trainer, f"validation loss {loss:.4f}; the forecast was {made}: {where}", step)


def _say(trainer: pl.Trainer, text: str, step: int) -> None:
    if trainer.is_global_zero:
        tqdm.write(f"{text} (step {step})", file=sys.stderr)
        if writer := tensorboard(trainer):
            writer.add_text("4_forecast", text, global_step=step)
