"""The spectral condition, live: the norms of all weight matrices and of one step's updates, while training."""

from __future__ import annotations

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from mup_lightning.callbacks.panels import Panels
from mup_lightning.callbacks.spectral_quantities import Values, matrices, panels, quantities, scalars
from mup_lightning.callbacks.spectral_shard import SpectralShare
from mup_lightning.callbacks.step import StepCallback, WatchedModule
from mup_lightning.model.gpt2 import GPT2

_LARGEST_IN_HISTOGRAM = 1e20
"""TensorBoard's bins end there, and it raises where all values lie beyond, or one is NaN."""


class SpectralNorms(StepCallback):
    """Measures one step in every `every`, under every strategy; see `spectral_quantities` for what, and its names.

    The step of a point is the number of optimizer steps that the weights had seen, as with the feature norms: W is the
    weights before a step, ΔW what that step adds to them, schedule and weight decay included. Nothing that is trained
    changes. Each matrix is measured by one process, from just before the update to the end of the step: that costs it a
    copy of its share of the matrices while activations are not there. (The copy is made when the optimizer is about
    to change weights, so after Sophia's estimate of the Hessian, which is one more backward pass.) The vectors to start
    from are kept from one measurement to the next, but not in checkpoints: the first one after a resume starts anew.

    Args:
        every: steps between measurements.
        model: that is trained, before a strategy wraps it.
        branch_depth: k, which says how the products scale with depth.
        written: see `FeatureNorms`.
    """

    def __init__(self, every: int, model: GPT2, branch_depth: int, written: int | None = None) -> None:
        self.every, self.branch_depth, self.written = every, branch_depth, written
        self._multipliers = model.multipliers
        self._matrices = matrices(model)
        self._share: SpectralShare | None = None
        self._weights: torch.Tensor | None = None
        self._due = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Ask to be told when weights are about to change."""
        assert isinstance(pl_module, WatchedModule)
        if trainer.logger is not None:
            pl_module.hybrid.before_update = self._look

    def on_step_start(self, trainer: pl.Trainer, module: WatchedModule, step: int) -> None:
        """See `StepCallback`."""
        self._due = trainer.logger is not None and (step - 1) % self.every == 0
        if self._due and self._share is None:
            names = list(dict.fromkeys(matrix.place[0] for matrix in self._matrices))
            self._share = SpectralShare(module.hybrid, names)

    def _look(self) -> None:
        """Before the first group is stepped; DeepSpeed steps one after the other, and hides the rest meanwhile."""
        if self._due:
            assert self._share is not None
            self._due, self._weights = False, self._share.before()

    def on_step_end(self, trainer: pl.Trainer, module: WatchedModule, step: int) -> None:
        """See `StepCallback`."""
        weights, self._weights = self._weights, None
        if weights is None:
            return
        assert self._share is not None
        both = trainer.strategy.reduce(torch.stack([weights, self._share.after()]), reduce_op="sum")
        if trainer.is_global_zero and step - 1 != self.written:
            of_weights, of_updates = (dict(zip(self._share.places, row, strict=True)) for row in both.tolist())
            found = quantities(self._matrices, of_weights, of_updates, self._multipliers, self.branch_depth)
            _log(trainer, found, step - 1)

    def panels(self) -> Panels:
        """See `callbacks.panels`."""
        return panels(self.branch_depth)


def _log(trainer: pl.Trainer, values: Values, step: int) -> None:
    """Scalars, and in TensorBoard a histogram over the layers of whatever every layer has."""
    assert trainer.logger is not None
    trainer.logger.log_metrics(scalars(values), step=step)
    if isinstance(trainer.logger, TensorBoardLogger):
        for tag, layers in values.items():
            if isinstance(layers, list) and all(number < _LARGEST_IN_HISTOGRAM for number in layers):
                trainer.logger.experiment.add_histogram(tag, np.array(layers), step)
