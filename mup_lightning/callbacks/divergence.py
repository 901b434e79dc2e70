"""Loss spikes: seen, counted, told of, and if asked for the end of the run. (A loss that is NaN ends it at once.)"""

from __future__ import annotations

import math
import sys
from collections import deque
from itertools import pairwise
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

    The level is the median of the newer half of the window, so it follows a loss that falls. The spread is that of the
    differences between neighbours, 1.4826 times their median absolute deviation from their median, over √2, as a
    difference of two numbers scatters by √2 as much as each; but at least 1 % of the level. Differences do not know the
    trend: taken from the losses themselves, a loss that falls fast would have a spread so wide that nothing is a spike.
    A loss is a spike if it exceeds level + sigmas x spread. Spikes enter the window as every loss does: a few are
    outvoted, while a loss that stays high becomes the level, in a quarter of the window.

    Args:
        window: losses that are remembered; none is judged before half of them are there.
        sigmas: see above.
    """

    def __init__(self, window: int, sigmas: float) -> None:
        self.sigmas = sigmas
        self.losses: deque[float] = deque(maxlen=window)

    def limit(self) -> float | None:
        """What the next loss must exceed to be a spike; None while too few are known."""
        losses = list(self.losses)
        if len(losses) < max(2, (self.losses.maxlen or 0) // 2):
            return None
        level = median(losses[len(losses) // 2 :])
        changes = [after - before for before, after in pairwise(losses)]
        usual = median(changes)
        spread = MAD * median(abs(change - usual) for change in changes) / math.sqrt(2)
        return level + self.sigmas * max(spread, LEAST_SPREAD * abs(level))

    def is_spike(self, loss: float) -> bool:
        """Judge a loss by those before it, then remember it."""
        limit = self.limit()
        self.losses.append(loss)
        return limit is not None and loss > limit


class Divergence(StepCallback):
    """Judges every step's loss, where the losses of all processes come together: at points, and before a checkpoint.

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
        seen: list[tuple[int, float, float]] = []
        enough: tuple[int, int] | None = None
        for number, loss in enumerate(self.losses.new, start=step - len(self.losses.new) + 1):
            limit = self.level.limit()
            self._recent.append(self.level.is_spike(loss))
            if self._recent[-1] and limit is not None:
                seen.append((number, loss, limit))
                # Asked after every loss: by the next point some of these steps may have left the window.
                if self.stop and enough is None and sum(self._recent) >= self.stop:
                    enough = sum(self._recent), len(self._recent)
                    told = _told(seen[-1:])
        self.spikes += len(seen)
        if self.losses.recent and trainer.logger is not None:
            trainer.logger.log_metrics({"train/loss_spikes": float(self.spikes)}, step=step)
        if seen and trainer.is_global_zero:
            tqdm.write(f"warning: {_told(seen)}", file=sys.stderr)
        if enough:
            raise Diverged(
                f"{enough[0]} of the last {enough[1]} steps were loss spikes, and trainer.spike_stop is {self.stop}. "
                f"The last: {told}. Stopped after step {step}; every saved checkpoint is kept. Usual cures: a new run "
                f"with a lower recipe.lr or a longer schedule.warmup_steps; to go on all the same, resume without "
                f"trainer.spike_stop",
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
