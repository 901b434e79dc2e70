"""Gradient norms before and after clipping, in all and by rule, under every strategy."""

from typing import Any, cast

import lightning.pytorch as pl
import torch
from torch.nn.utils import get_total_norm

from mup_lightning.callbacks.step import StepCallback, WatchedModule, due
from mup_lightning.distributed.collectives import rank_and_world
from mup_lightning.optim.optimizer import HybridOptimizer

TAG = "train/gradient_norm"
AFTER = f"{TAG}/after_clipping"


class GradientNorms(StepCallback):
    """Logs the gradients that the rules were really given, every `every` steps.

    They are measured right after the optimizer's step, which changes no gradient, at the cost of one pass over them.
    Clipping multiplies all gradients by one factor, so the norms by rule before it follow from the global norm, which
    the clipping itself needs. Where ZeRO shards the gradients, each process measures its shard, and one exchange of a
    few values adds up the squares.

    Args:
        every: steps between points.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self._squares: dict[str, torch.Tensor] = {}
        self._measuring = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Hook into the optimizer's step."""
        hybrid = cast(WatchedModule, pl_module).hybrid
        if trainer.logger is not None:
            self._rules = list(dict.fromkeys(group["rule"] for group in hybrid.param_groups))
            hybrid.register_step_post_hook(lambda optimizer, *_: self._measure(optimizer))

    def on_step_start(self, trainer: pl.Trainer, module: WatchedModule, step: int) -> None:
        """Decide whether this step is measured."""
        self._measuring = trainer.logger is not None and due(step, self.every, trainer.max_steps)
        self._squares = {}

    def _measure(self, optimizer: Any) -> None:
        """Add up the squares of this process's gradients; DeepSpeed steps one group after the other."""
        if not self._measuring:
            return
        for group in optimizer.param_groups:
            gradients = _gradients(optimizer, group["params"])
            if gradients:
                square = get_total_norm(gradients).double() ** 2
                self._squares[group["rule"]] = self._squares.get(group["rule"], 0.0) + square

    def on_step_end(self, trainer: pl.Trainer, module: WatchedModule, step: int) -> None:
        """Log the norms."""
        if not self._measuring:
            return
        assert trainer.logger is not None
        zero = torch.zeros((), dtype=torch.float64, device=module.device)
        squares = torch.stack([self._squares.get(rule, zero) for rule in self._rules])
        if module.hybrid.layouts:
            squares = trainer.strategy.reduce(squares, reduce_op="sum")
        before, *after = torch.cat([module.gradient_norm.double().view(1), squares.sqrt()]).tolist()
        after_all = sum(norm**2 for norm in after) ** 0.5
        values = {TAG: before, AFTER: after_all}
        for rule, norm in zip(self._rules, after, strict=True):
            values[f"{AFTER}/{rule}"] = norm
            values[f"{TAG}/{rule}"] = norm * before / after_all if after_all else 0.0
        trainer.logger.log_metrics(values, step=step)


def _gradients(optimizer: HybridOptimizer, parameters: list[torch.Tensor]) -> list[torch.Tensor]:
    """This process's gradients of a group: whole ones, or its fragments of flat ones without their padding."""
    found = []
    for parameter in parameters:
        if parameter.grad is None:
            continue
        if parameter not in optimizer.layouts:
            found.append(parameter.grad)
            continue
        for fragment in optimizer.layouts[parameter].ranks[rank_and_world()[0]]:
            found.append(fragment.of_flat(parameter.grad))
    return found
