"""Keeping Lightning's count of batches in step with ours when a run is resumed."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch.loops.progress import _ProcessedTracker

from mup_lightning.errors import UserError


def align_progress(trainer: pl.Trainer, max_steps: int, accumulation: int) -> None:
    """Check the Trainer's settings against the data's, and set its batch count to finished steps x accumulation.

    Lightning stores how many micro-batches are done and steps whenever that count is a multiple of the accumulation.
    After a resume with another world size or micro-batch, or from a checkpoint written in the middle of a step, the
    stored count is wrong by our reckoning: it would end the run early, or step on part of a batch. Called from
    `train_dataloader`, which Lightning asks for after it has restored its loops. Raises UserError.
    """
    if trainer.accumulate_grad_batches != accumulation:
        raise UserError(
            f"Trainer(accumulate_grad_batches={trainer.accumulate_grad_batches}), but the batch size needs "
            f"{accumulation} micro-batches a step on {trainer.world_size} processes. Pass accumulation_steps(...)."
        )
    if trainer.max_steps > max_steps:
        raise UserError(f"Trainer(max_steps={trainer.max_steps}), but the data was set up for {max_steps} steps.")
    connector = getattr(trainer, "_accelerator_connector", None)
    if trainer.world_size > 1 and getattr(connector, "use_distributed_sampler", False):
        raise UserError("Trainer(use_distributed_sampler=True) would shuffle the data again; set it to False.")
    loop = trainer.fit_loop.epoch_loop
    current = loop.batch_progress.current
    done = trainer.global_step * accumulation
    if loop.restarting and isinstance(current, _ProcessedTracker) and current.ready != done:
        # Lightning reads from `processed - completed` whether the checkpoint was written inside a batch's end hook.
        inside = current.processed - current.completed
        current.ready = current.started = current.processed = done
        current.completed = done - inside
