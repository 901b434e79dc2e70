"""Compares a run with its forecast: a panel in TensorBoard, and a message when it leaves the interval or returns."""

import sys
from collections import deque
from statistics import fmean
from typing import ClassVar

import lightning.pytorch as pl
import numpy as np
from tqdm import tqdm

from mup_lightning.callbacks.losses import Losses, Validation
from mup_lightning.callbacks.step import SavedCallback, WatchedModule, due, log, tensorboard
from mup_lightning.config.forecast import CURVE_POINTS, Forecast
from mup_lightning.config.schema import TrainerConfig


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
            how = "is back in its forecast's interval" if inside else "has left its forecast's interval"
            kind = "note" if inside else "warning"
            _say(trainer, f"{kind}: the training loss, {smoothed:.4f}, {how}, {low:.4f} to {high:.4f}", step)
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
