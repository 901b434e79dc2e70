"""The gradient noise scale B_simple = tr(Σ)/|G|² while training (McCandlish et al. 2018, arXiv 1812.06162, appendix A).

G is the gradient of the expected loss, Σ the covariance of one sample's gradient. The gradient g_b over b samples has

    E|g_b|² = |G|² + tr(Σ)/b,

so that its squared length at two sizes, b and B, gives an unbiased estimate of each:

    |G|² ≈ (B|g_B|² - b|g_b|²) / (B - b),    tr(Σ) ≈ (|g_b|² - |g_B|²) / (1/b - 1/B).

B is the step's batch, whose gradient is there; b are its first sequences, whose gradient takes a second pass. That they
are among the B biases nothing. Sizes are counted in tokens. Well below B_simple, twice the batch saves almost half the
steps; well above, hardly any.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import ClassVar

import lightning.pytorch as pl
import torch

from mup_lightning.callbacks.step import SavedCallback, WatchedModule, log
from mup_lightning.config.schema import Config

WINDOW = 20
"""Measurements that are averaged: a single one is mostly noise itself."""

SHARE = 4
"""The second pass takes at most this part of a step's sequences, and so of its time."""


class NoiseScale(SavedCallback):
    """Measures the noise scale every `trainer.noise_scale_every` steps, and logs it.

    |G|² and tr(Σ) are averaged over the last measurements, each on its own: the mean of their quotients would be
    biased, and some are negative. Which sequences are measured depends on data.batch_size and data.micro_batch alone,
    so every strategy finds the same. Checkpoints hold the measurements. Nothing that is trained depends on it.
    """

    saved: ClassVar = {"found": "_found"}

    def __init__(self, config: Config) -> None:
        size = config.data.batch_size
        self.every, self.batch = config.trainer.noise_scale_every, config.tokens_per_step
        self.sequences = min(config.data.sequences, max(1, size // SHARE)) if size > 1 else 0
        self.part = self.sequences * config.model.context
        self._found: deque[tuple[float, float]] = deque(maxlen=WINDOW)

    @property
    def means(self) -> tuple[float, float]:
        """|G|² and tr(Σ) of one token, each the mean of the last estimates; NaN before the first."""
        count = len(self._found) or math.nan
        return sum(square for square, _ in self._found) / count, sum(trace for _, trace in self._found) / count

    @property
    def tokens(self) -> float | None:
        """B_simple; None where it is unknown: not measured yet, or beyond what so few estimates tell from infinity."""
        square, trace = self.means
        return trace / square if square > 0 and 0 <= trace < math.inf else None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say where there is nothing to compare."""
        if self.every and not self.sequences and trainer.is_global_zero:
            print("note: data.batch_size is 1, and the gradient noise scale needs two sequences: it is not measured")

    def on_step_start(self, trainer: pl.Trainer, module: WatchedModule, step: int) -> None:
        """Have the second gradient taken in this step, where it is due."""
        module.noise_sequences = self.sequences if self.every and step % self.every == 0 else 0

    def on_step_end(self, trainer: pl.Trainer, module: WatchedModule, step: int) -> None:
        """Log the quotient of the means, and both."""
        if not module.noise_sequences:
            return
        squares = torch.stack([module.noise_square.double(), module.gradient_norm.double().square()]).tolist()
        self._found.append(estimate(self.part, self.batch, *squares))
        square, trace = self.means
        values = {"gradient_square": square, "variance": trace, "batch": float(self.batch), "tokens": self.tokens}
        log(trainer, {f"noise_scale/{name}": value for name, value in values.items() if value is not None}, step)


def estimate(small: float, large: float, small_square: float, large_square: float) -> tuple[float, float]:
    """Unbiased estimates of |G|² and of tr(Σ), of one token, from the squared gradient over `small` and `large` tokens.

    Either may be negative.
    """
    square = (large * large_square - small * small_square) / (large - small)
    return square, (small_square - large_square) / (1 / small - 1 / large)


def gradient_square(loss_fn: Callable[[], torch.Tensor], parameters: Iterable[torch.Tensor]) -> torch.Tensor:
    """The squared length of the gradient of a loss by all parameters, 0-dim, float64.

    It touches no .grad, and so none of the hooks that average gradients over processes. Each parameter's gradient is
    freed as soon as it is squared: at no time are there two whole gradients. A parameter that is used twice (tied
    embeddings) has one gradient, the sum.
    """
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    squares: list[torch.Tensor] = []

    def square(gradient: torch.Tensor) -> torch.Tensor:
        squares.append(torch.linalg.vector_norm(gradient).double().square())
        return gradient.new_zeros(()).expand_as(gradient)  # in its place, without memory

    with torch.enable_grad(), ExitStack() as hooks:
        for parameter in wanted:
            hooks.enter_context(parameter.register_hook(square))
        torch.autograd.grad(loss_fn(), wanted, allow_unused=True)
    return torch.stack(squares).sum()
