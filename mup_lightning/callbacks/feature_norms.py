"""RMS norms of the features at every tap, on screen while training: per layer, and across depth."""

from __future__ import annotations

import lightning.pytorch as pl

from mup_lightning.callbacks.panels import Panels
from mup_lightning.callbacks.step import StepCallback, WatchedModule
from mup_lightning.model.taps import (
    ATTENTION,
    ATTENTION_SCALED,
    EMBEDDING,
    FINAL_NORM,
    LAYER_POINTS,
    LOGITS,
    MLP,
    MLP_SCALED,
    POINTS,
    RESIDUAL,
    NormRecorder,
)

TITLES = {
    EMBEDDING: "embedding, what enters the first block: Θ(1)",
    ATTENTION: "attention branch, a curve a layer: Θ(1)",
    ATTENTION_SCALED: "attention branch times its multiplier, a curve a layer: Θ(1/L)",
    MLP: "MLP branch, a curve a layer: Θ(1)",
    MLP_SCALED: "MLP branch times its multiplier, a curve a layer: Θ(1/L)",
    RESIDUAL: "residual stream, a curve a layer: Θ(1)",
    FINAL_NORM: "after the final LayerNorm: Θ(1)",
    LOGITS: "logits: Θ(1)",
}
"""Of the panels: what is measured, and how it scales under the recipe with k >= 2."""


class FeatureNorms(StepCallback):
    """Measures one forward pass in every `every` steps: the first micro-batch of the step, on the first process.

    Scalars are `features/<point>` outside blocks and `features/<point>/layer_<i>` inside; the tab "Custom Scalars" has
    one panel per point with all layers in it. The step of a point is the number of optimizer steps that the weights
    had seen when the features were measured, so the first point shows the initialisation.

    Args:
        every: steps between measurements.
        depth: number of blocks.
        written: step of a point that stands in the logs already. A run that went on after the checkpoint that it
            resumes from has written the point of that step; one that was stopped there has not.
    """

    def __init__(self, every: int, depth: int, written: int | None = None) -> None:
        self.every, self.depth, self.written = every, depth, written
        self._recorder: NormRecorder | None = None

    def on_step_start(self, trainer: pl.Trainer, module: WatchedModule, step: int) -> None:
        """See `StepCallback`."""
        if (step - 1) % self.every == 0 and trainer.is_global_zero and trainer.logger is not None:
            self._recorder = module.recorder = NormRecorder()

    def on_step_end(self, trainer: pl.Trainer, module: WatchedModule, step: int) -> None:
        """See `StepCallback`."""
        recorder, self._recorder = self._recorder, None
        if recorder is None or trainer.logger is None or step - 1 == self.written:
            return
        values = {tag(point, layer): norm for (point, layer), norm in recorder.norms().items()}
        trainer.logger.log_metrics(values, step=step - 1)

    def panels(self) -> Panels:
        """See `panels`."""
        charts = {TITLES[point]: ["Multiline", _tags(point, self.depth)] for point in POINTS}
        return {"Do features keep their size? RMS norms, the same for every width and depth": charts}


def tag(point: str, layer: int | None) -> str:
    """TensorBoard's name of a feature norm; layers are padded with zeros so that they sort by depth."""
    return f"features/{point}" if layer is None else f"features/{point}/layer_{layer:03d}"


def _tags(point: str, depth: int) -> list[str]:
    return [tag(point, layer) for layer in range(depth)] if point in LAYER_POINTS else [f"{tag(point, None)}$"]
