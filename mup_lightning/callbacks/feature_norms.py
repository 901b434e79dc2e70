"""RMS norms of the features at every tap, on screen while training: per layer, and across depth."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch.loggers import TensorBoardLogger

from mup_lightning.callbacks.step import StepCallback, WatchedModule
from mup_lightning.model.taps import LAYER_POINTS, POINTS, NormRecorder


class FeatureNorms(StepCallback):
    """Measures one forward pass in every `every` steps: the first micro-batch of the step, on the first process.

    Scalars are `features/<point>` outside blocks and `features/<point>/layer_<i>` inside; the tab "Custom Scalars" has
    one panel per point with all layers in it. The step of a point is the number of optimizer steps that the weights
    had seen when the features were measured, so the first point shows the initialisation.

    Args:
        every: steps between measurements.
        depth: number of blocks.
    """

    def __init__(self, every: int, depth: int) -> None:
        self.every, self.depth = every, depth
        self._recorder: NormRecorder | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the layout of the panels, once."""
        if isinstance(trainer.logger, TensorBoardLogger) and trainer.is_global_zero:
            panels = {point: ["Multiline", _tags(point, self.depth)] for point in POINTS}
            trainer.logger.experiment.add_custom_scalars({"Feature norms across depth": panels})

    def on_step_start(self, trainer: pl.Trainer, module: WatchedModule, step: int) -> None:
        """See `StepCallback`."""
        if (step - 1) % self.every == 0 and trainer.is_global_zero and trainer.logger is not None:
            self._recorder = module.recorder = NormRecorder()

    def on_step_end(self, trainer: pl.Trainer, module: WatchedModule, step: int) -> None:
        """See `StepCallback`."""
        recorder, self._recorder = self._recorder, None
        if recorder is None or trainer.logger is None:
            return
        values = {tag(point, layer): norm for (point, layer), norm in recorder.norms().items()}
        trainer.logger.log_metrics(values, step=step - 1)


def tag(point: str, layer: int | None) -> str:
    """TensorBoard's name of a feature norm; layers are padded with zeros so that they sort by depth."""
    return f"features/{point}" if layer is None else f"features/{point}/layer_{layer:03d}"


def _tags(point: str, depth: int) -> list[str]:
    return [tag(point, layer) for layer in range(depth)] if point in LAYER_POINTS else [tag(point, None)]
