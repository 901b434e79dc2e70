"""The run's page in TensorBoard: the panels of all callbacks, and texts that explain them."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch.loggers import TensorBoardLogger

from mup_lightning.callbacks.panels import HasPanels, merge


class Dashboard(pl.Callback):
    """Writes the layout of the tab "Custom Scalars" and the pages of the tab "Text", when the run begins.

    A resumed run needs neither again: leave it out there.

    Args:
        pages: title -> Markdown, in order.
    """

    def __init__(self, pages: dict[str, str]) -> None:
        self.pages = pages

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write."""
        if not isinstance(trainer.logger, TensorBoardLogger) or not trainer.is_global_zero:
            return
        writer = trainer.logger.experiment
        layout = merge(callback.panels() for callback in trainer.callbacks if isinstance(callback, HasPanels))  # type: ignore[attr-defined]
        writer.add_custom_scalars(layout)
        for title, text in self.pages.items():
            writer.add_text(title, text, global_step=0)
