"""A run's TensorBoard event files as plain Python values."""

from __future__ import annotations

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

from mup_lightning.errors import UserError

Curve = list[tuple[int, float]]
"""(step, value) pairs in order of their steps, each step once."""


def read_scalars(folder: Path) -> dict[str, Curve]:
    """Every scalar of a finished or running run, without TensorBoard's thinning.

    What a killed run wrote after its last checkpoint is left out, as in TensorBoard; of a step that was written twice,
    the later value counts.

    Args:
        folder: holds the event files.

    Returns:
        Tag -> its curve.

    Raises:
        UserError: the folder holds no event file.
    """
    if not any(folder.glob("*tfevents*")):
        raise UserError(f"{folder} holds no TensorBoard event files; expected those that a run writes there")
    log = EventAccumulator(str(folder), size_guidance={SCALARS: 0}).Reload()
    return {tag: sorted({event.step: event.value for event in log.Scalars(tag)}.items()) for tag in log.Tags()[SCALARS]}
