"""Norms of the gradients before and after clipping, in all and by rule, under every strategy."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from mup_lightning.callbacks.panels import Panels
from mup_lightning.callbacks.step import StepCallback, WatchedModule, due
from mup_lightning.distributed.collectives import rank_and_world
from mup_lightning.optim.optimizer import HybridOptimizer

TAG = "train/gradient_norm"
AFTER = f"{TAG}/after_clipping"


class GradientNorms(StepCallback):
    """Logs every `every` steps, of that very step.

    Measured is what the rules were really handed, after clipping: right after the optimizer's step, which changes no
    gradient. Clipping multiplies all gradients by one number, so the norms by rule before it follow from the norm of
    all, which the clipping itself needs. Where ZeRO parts the gradients, each process measures its part, and one
    exchange of a few numbers adds up the squares. Costs one pass over the gradients in a step that is logged.

    Args:
        every: steps between points.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self._squares: dict[str, torch.Tensor] = {}
        self._measuring = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Ask to be told of the optimizer's steps."""
        assert isinstance(pl_module, WatchedModule)
        if trainer.logger is not None:
            self._rules = list(dict.fromkeys(group["rule"] for group in pl_module.hybrid.param_groups))
            pl_module.hybrid.register_step_post_hook(self._look)

    def on_step_start(self, trainer: pl.Trainer, module: WatchedModule, step: int) -> None:
        """See `StepCallback`."""
        self._measuring = trainer.logger is not None and due(step, self.every, trainer.max_steps)
        self._squares = {}

    def _look(self, optimizer: Optimizer, *_: Any) -> None:
        """Add up the squares of this process's gradients; DeepSpeed steps one group after the other."""
        if not self._measuring:
            return
        assert isinstance(optimizer, HybridOptimizer)
        for group in optimizer.param_groups:
            pieces = _gradients(optimizer, group["params"])
            if pieces:
                square = get_total_norm(pieces).double() ** 2
                self._squares[group["rule"]] = self._squares.get(group["rule"], 0.0) + square

    def on_step_end(self, trainer: pl.Trainer, module: WatchedModule, step: int) -> None:
        """See `StepCallback`."""
        if not self._measuring:
            return
        assert trainer.logger is not None
        none = torch.zeros((), dtype=torch.float64, device=module.device)
        squares = torch.stack([self._squares.get(rule, none) for rule in self._rules])
        if module.hybrid.layouts:
            squares = trainer.strategy.reduce(squares, reduce_op="sum")
        before, *after = torch.cat([module.gradient_norm.double().view(1), squares.sqrt()]).tolist()
        after_all = sum(norm**2 for norm in after) ** 0.5
        values = {TAG: before, AFTER: after_all}
        for rule, norm in zip(self._rules, after, strict=True):
            values[f"{AFTER}/{rule}"] = norm
            values[f"{TAG}/{rule}"] = norm * before / after_all if after_all else 0.0
        trainer.logger.log_metrics(values, step=step)

    def panels(self) -> Panels:
        """See `panels`."""
        charts = {
            "gradient norm: no growth over time": [f"{TAG}$"],
            "gradient norm after clipping: at most trainer.gradient_clip": [f"{AFTER}$"],
            "gradient norm before clipping, a curve for each update rule": [rf"{TAG}/(?!after_clipping)\w+$"],
        }
        return {"Is it stable?": {title: ["Multiline", tags] for title, tags in charts.items()}}


def _gradients(optimizer: HybridOptimizer, parameters: list[torch.Tensor]) -> list[torch.Tensor]:
    """This process's gradients of a group: whole ones, or its parts of flat ones without their padding."""
    pieces = []
    for parameter in parameters:
        if parameter.grad is None:
            continue
        if parameter not in optimizer.layouts:
            pieces.append(parameter.grad)
            continue
        for fragment in optimizer.layouts[parameter].ranks[rank_and_world()[0]]:
            pieces.append(parameter.grad[fragment.offset : fragment.offset + fragment.length])
    return pieces
