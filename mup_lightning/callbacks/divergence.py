"""Detects and counts loss spikes, and stops the run if asked to. (A loss that is NaN stops it at once.)"""

import math
import sys
from collections import deque
from itertools import pairwise
from statistics import median
from typing import Any

import lightning.pytorch as pl
from tqdm import tqdm

from mup_lightning.callbacks.losses import Losses
from mup_lightning.callbacks.step import StepCallback, WatchedModule, due, log
from mup_lightning.config.schema import TrainerConfig
from mup_lightning.errors import Diverged

MAD = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""

LEAST_SPREAD = 0.01
"""Smallest spread, as a share of the level."""


class RunningLevel:
    """Level and spread of the last losses by ranks, so that spikes among them hardly move either.

    A loss is a spike if it exceeds level + sigmas x spread. The level is the median of the newer half of the window, so
    it follows a falling loss. The spread is that of the differences between neighbours, which do not contain the trend:
    1.4826 times their median absolute deviation, over √2 because a difference of two values scatters √2 as much as
    each; but at least 1 % of the level. Spikes enter the window like every loss: a few are outvoted, while a loss that
    stays high becomes the level within a quarter of the window. None is judged before half of the window is there.
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

    def exceeded(self, loss: float) -> float | None:
        """Judge a loss by those before it, then remember it: the limit where the loss is a spike, else None."""
        limit = self.limit()
        self.losses.append(loss)
        return limit if limit is not None and loss > limit else None


class Divergence(StepCallback):
    """Judges every step's loss, where the losses of all processes come together: at points, and before a checkpoint.

    `trainer.spike_stop` spikes within the window end the run; `spikes` are those so far, over all resumes.
    """

    def __init__(self, losses: Losses, trainer: TrainerConfig) -> None:
        self.losses, self.every, self.stop, self.spikes = losses, trainer.log_every, trainer.spike_stop, 0
        self.level = RunningLevel(trainer.spike_window, trainer.spike_sigmas)
        self._recent: deque[bool] = deque(maxlen=trainer.spike_window)

    def on_step_end(self, trainer: pl.Trainer, module: WatchedModule, step: int) -> None:
        """Judge, log and warn; all processes see the same losses. Raises Diverged where there are too many spikes."""
        found: list[tuple[int, float, float]] = []
        enough = False
        for number, loss in enumerate(self.losses.new, start=step - len(self.losses.new) + 1):
            limit = self.level.exceeded(loss)
            self._recent.append(limit is not None)
            if limit is not None:
                found.append((number, loss, limit))
                # Counted after every spike: by the next point some of these steps may have left the window.
                enough = 0 < self.stop <= sum(self._recent)
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

    def state_dict(self) -> dict[str, Any]:
        """For Lightning's part of a checkpoint."""
        return {"spikes": self.spikes, "losses": list(self.level.losses), "recent": list(self._recent)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.spikes = state_dict["spikes"]
        self.level.losses.extend(state_dict["losses"])
        self._recent.extend(state_dict["recent"])


def _describe(spikes: list[tuple[int, float, float]]) -> str:
    """The largest of some spikes, given as (step, loss, limit)."""
    step, loss, limit = max(spikes, key=lambda spike: spike[1])
    more = f" (the largest of {len(spikes)} since step {spikes[0][0]})" if len(spikes) > 1 else ""
    return f"the loss spiked to {loss:.4g} in step {step}{more}; above {limit:.4g} counts as a spike"
