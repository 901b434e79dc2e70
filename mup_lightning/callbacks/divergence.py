"""Loss spikes: seen, counted, told of, and if asked for the end of the run. (A loss that is NaN ends it at once.)"""

from __future__ import annotations

import sys
from collections import deque
from statistics import median
from typing import Any

import lightning.pytorch as pl
from tqdm import tqdm

from mup_lightning.callbacks.losses import StepLosses
from mup_lightning.callbacks.panels import Panels
from mup_lightning.callbacks.step import StepCallback, WatchedModule
from mup_lightning.errors import Diverged

MAD = 1.4826
"""Standard deviations of a normal distribution in its median absolute deviation."""

LEAST_SPREAD = 0.01
"""Of the level: a loss so smooth that its spread is less does not spike by a hundredth."""


class RunningLevel:
    """The level and the spread of the last losses, by ranks, so that spikes among them hardly move either.

    The level is the median of the window, the spread 1.4826 times the median absolute deviation from it, but at least
    1 % of the level. A loss is a spike if it exceeds level + sigmas x spread. Spikes enter the window as every loss
    does: a few are outvoted, while a loss that stays high becomes the level, in half a window.

    Args:
        window: losses that are remembered; none is judged before half of them are there.
        sigmas: see above.
    """

    def __init__(self, window: int, sigmas: float) -> None:
        self.sigmas = sigmas
        self.losses: deque[float] = deque(maxlen=window)

    def limit(self) -> float | None:
        """What the next loss must exceed to be a spike; None while too few are known."""
        if len(self.losses) < max(2, (self.losses.maxlen or 0) // 2):
            return None
        level = median(self.losses)
        spread = MAD * median(abs(loss - level) for loss in self.losses)
        return level + self.sigmas * max(spread, LEAST_SPREAD * abs(level))

    def is_spike(self, loss: float) -> bool:
        """Judge a loss by those before it, then remember it."""
        limit = self.limit()
        self.losses.append(loss)
        return limit is not None and loss > limit


class Divergence(StepCallback):
    """Judges every step's loss, at the points where the losses of all processes have come together.

    Args:
        losses: where the losses of the steps are read.
        sigmas: of `RunningLevel`.
        window: of `RunningLevel`; also the steps over which `stop` counts.
        stop: so many spikes among the last `window` steps end the run; 0: never.

    Attributes:
        spikes: so far, over all resumes.
    """

    def __init__(self, losses: StepLosses, sigmas: float, window: int, stop: int) -> None:
        self.losses, self.stop, self.spikes = losses, stop, 0
        self.level = RunningLevel(window, sigmas)
        self._recent: deque[bool] = deque(maxlen=window)

    def on_step_end(self, trainer: pl.Trainer, module: WatchedModule, step: int) -> None:
        """See `StepCallback`; all processes see the same losses.

        Raises:
            Diverged: too many spikes.
        """
        recent = self.losses.recent
        if not recent:
            return
        seen: list[tuple[int, float, float]] = []
        for number, loss in enumerate(recent, start=step - len(recent) + 1):
            limit = self.level.limit()
            self._recent.append(self.level.is_spike(loss))
            if self._recent[-1] and limit is not None:
                seen.append((number, loss, limit))
        self.spikes += len(seen)
        if trainer.logger is not None:
            trainer.logger.log_metrics({"train/loss_spikes": float(self.spikes)}, step=step)
        if seen and trainer.is_global_zero:
            tqdm.write(f"warning: {_told(seen)}", file=sys.stderr)
        if self.stop and seen and sum(self._recent) >= self.stop:
            raise Diverged(
                f"{sum(self._recent)} of the last {len(self._recent)} steps were loss spikes, and "
                f"trainer.spike_stop is {self.stop}. The last: {_told(seen[-1:])}. Stopped after step {step}; every "
                f"saved checkpoint is kept. Usual cures: a lower recipe.lr, a longer schedule.warmup_steps, an earlier "
                f"checkpoint",
                step,
            )

    def state_dict(self) -> dict[str, Any]:
        """See Lightning."""
        return {"spikes": self.spikes, "losses": list(self.level.losses), "recent": list(self._recent)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See Lightning."""
        self.spikes = state_dict["spikes"]
        self.level.losses.extend(state_dict["losses"])
        self._recent.extend(state_dict["recent"])

    def panels(self) -> Panels:
        """See `panels`."""
        return {"Is it stable?": {"loss spikes so far: a level line": ["Multiline", ["train/loss_spikes$"]]}}


def _told(spikes: list[tuple[int, float, float]]) -> str:
    """Spikes, as (step, loss, limit), in words."""
    step, loss, limit = max(spikes, key=lambda spike: spike[1])
    more = f" (the largest of {len(spikes)} since step {spikes[0][0]})" if len(spikes) > 1 else ""
    return f"the loss spiked to {loss:.4g} in step {step}{more}; above {limit:.4g} counts as a spike"
