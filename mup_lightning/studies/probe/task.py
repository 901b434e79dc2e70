"""What the probed networks learn: the class that a small random network, the teacher, gives to a Gaussian sample.

Shapes: B batch, D inputs, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

_HIDDEN = 32
"""Units of the teacher."""


def batches(seed: int, batch: int, inputs: int, classes: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless fresh batches of one task. The same seed gives the same ones, whatever network learns them.

    Args:
        seed: of the teacher and of the samples.
        batch: B.
        inputs: D.
        classes: K.

    Yields:
        x (B, D) with entries of size 1, and labels (B,) int64.
    """
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(inputs, _HIDDEN, generator=generator) / inputs**0.5
    second = torch.randn(_HIDDEN, classes, generator=generator) / _HIDDEN**0.5
    while True:
        x_BD = torch.randn(batch, inputs, generator=generator)
        yield x_BD, (torch.tanh(x_BD @ first) @ second).argmax(-1)
