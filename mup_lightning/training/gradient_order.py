"""The order in which ZeRO 2 and 3 reduce gradients, the same on all processes.

DeepSpeed (0.19.8) puts gradients into buckets as the backward pass makes them, and adds up the processes' buckets
place by place. It takes for granted that they come in the same order everywhere. They do in eager mode. A compiled
block hands out all its gradients at once, in an order that differs from process to process: gradients of different
parameters are then added to each other, without a word. At stage 3 a bucket is sorted, but which gradients are in it
depends on the order too.
"""

from __future__ import annotations

from typing import Any

import torch


class InOrder:
    """Lets DeepSpeed reduce gradients in the backward order of the parameters, whatever order they come in.

    One that comes early waits until those before it have come; where blocks are compiled, those of one block. What
    still waits when the backward pass is over (a parameter without a gradient holds up the rest) goes then, in order.

    Args:
        wrapped: DeepSpeed's optimizer of stage 2 or 3; is made to use this.
        parameters: of the model, in the order of the forward pass.
    """

    def __init__(self, wrapped: Any, parameters: list[torch.Tensor]) -> None:
        self._order = {id(parameter): place for place, parameter in enumerate(reversed(parameters))}
        self._waiting: dict[int, tuple[Any, ...]] = {}
        self._next = 0
        self._reduce = wrapped.reduce_ready_partitions_and_remove_grads
        self._finish = wrapped.overlapping_partition_gradients_reduce_epilogue
        wrapped.reduce_ready_partitions_and_remove_grads = self._come
        wrapped.overlapping_partition_gradients_reduce_epilogue = self._end

    def _come(self, parameter: torch.Tensor, *more: Any) -> None:
        """A parameter's gradient is there."""
        self._waiting[self._order[id(parameter)]] = (parameter, *more)
        while self._next in self._waiting:
            self._reduce(*self._waiting.pop(self._next))
            self._next += 1

    def _end(self) -> None:
        """The backward pass is over."""
        for place in sorted(self._waiting):
            self._reduce(*self._waiting.pop(place))
        self._next = 0
        self._finish()
