"""RMS norms of the features at every tap, logged while training: per layer, and across depth."""

import lightning.pytorch as pl

from mup_lightning.callbacks.step import StepCallback, WatchedModule
from mup_lightning.model.taps import NormRecorder


class FeatureNorms(StepCallback):
    """Measures the first micro-batch of one step in every `every`, on the first process.

    Scalars are `features/<point>` outside blocks and `features/<point>/layer_<i>` inside. The step of a point is the
    number of optimizer steps that the weights had seen, so the first point shows the initialisation.

    Args:
        every: steps between measurements.
        written: step whose point is in the logs already. A run that went on past the checkpoint it resumes from has
            written the point of that step; one that was stopped there has not.
    """

    def __init__(self, every: int, written: int | None = None) -> None:
        self.every, self.written = every, written
        self._recorder: NormRecorder | None = None

    def on_step_start(self, trainer: pl.Trainer, module: WatchedModule, step: int) -> None:
        """Have the next forward pass recorded where a measurement is due."""
        if (step - 1) % self.every == 0 and trainer.is_global_zero and trainer.logger is not None:
            self._recorder = module.recorder = NormRecorder()

    def on_step_end(self, trainer: pl.Trainer, module: WatchedModule, step: int) -> None:
        """Log what was recorded."""
        recorder, self._recorder = self._recorder, None
        if recorder is None or trainer.logger is None or step - 1 == self.written:
            return
        values = {tag(point, layer): norm for (point, layer), norm in recorder.norms().items()}
        trainer.logger.log_metrics(values, step=step - 1)


def tag(point: str, layer: int | None) -> str:
    """TensorBoard's name of a feature norm; layers are padded with zeros so that they sort by depth."""
    return f"features/{point}" if layer is None else f"features/{point}/layer_{layer:03d}"
