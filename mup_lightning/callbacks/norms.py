"""Norms while training: of features, of gradients before and after clipping, and of orthogonalised updates."""

from typing import Any, cast

import lightning.pytorch as pl
import torch

from mup_lightning.callbacks.step import StepCallback, WatchedModule, due, log
from mup_lightning.distributed.collectives import rank_and_world
from mup_lightning.errors import UserError
from mup_lightning.model.parameters import ParameterInfo
from mup_lightning.model.taps import NormRecorder
from mup_lightning.optim.muon import Muon
from mup_lightning.optim.optimizer import HybridOptimizer
from mup_lightning.optim.registry import RULES
from mup_lightning.optim.rule import Group, Item, split_blocks
from mup_lightning.optim.spectral_norm import largest_singular_values, total_norm

GRADIENT_NORM = "train/gradient_norm"
CLIPPED_NORM = f"{GRADIENT_NORM}/after_clipping"

BOUNDS = (0.6, 1.3)
"""Newton-Schulz with Muon's coefficients leaves the largest singular value between 0.68 and 1.21."""

SAMPLE = 2
"""Matrices of a group that are checked, in each process."""


class FeatureNorms(StepCallback):
    """Measures the first micro-batch of one step in every `every`, on the first process; see `tag`.

    The step of a point is the number of optimizer steps that the weights had seen: the first shows the initialisation.
    `written` is a step whose point is in the logs already: a run that went on past the checkpoint it resumes from has
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
        if recorder is not None and step - 1 != self.written:
            log(trainer, {tag(*place): norm for place, norm in recorder.norms().items()}, step - 1)


def tag(point: str, layer: int | None) -> str:
    """TensorBoard's name of a feature norm; layers are padded with zeros so that they sort by depth."""
    return f"features/{point}" if layer is None else f"features/{point}/layer_{layer:03d}"


class GradientNorms(StepCallback):
    """Logs the gradients that the rules were really given, every `every` steps.

    They are measured right after the optimizer's step, which changes no gradient. Clipping multiplies all gradients by
    one factor, so the norms by rule before it follow from the global norm. Where ZeRO shards the gradients, each
    process measures its shard, and one exchange adds up the squares.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self._measuring = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Hook into the optimizer's step."""
        hybrid = cast(WatchedModule, pl_module).hybrid
        zero = torch.zeros((), dtype=torch.float64, device=pl_module.device)
        self._zeros = {group["rule"]: zero for group in hybrid.param_groups}
        hybrid.register_step_post_hook(lambda optimizer, *_: self._measure(optimizer))

    def on_step_start(self, trainer: pl.Trainer, module: WatchedModule, step: int) -> None:
        """Decide whether this step is measured."""
        self._measuring = trainer.logger is not None and due(step, self.every, trainer.max_steps)
        self._squares = dict(self._zeros)

    def _measure(self, optimizer: Any) -> None:
        """Add up the squares of this process's gradients; DeepSpeed steps one group after the other."""
        for group in optimizer.param_groups if self._measuring else ():
            if gradients := _gradients(optimizer, group["params"]):
                self._squares[group["rule"]] = self._squares[group["rule"]] + total_norm(gradients).double() ** 2

    def on_step_end(self, trainer: pl.Trainer, module: WatchedModule, step: int) -> None:
        """Log the norms."""
        if not self._measuring:
            return
        squares = torch.stack(list(self._squares.values()))
        if module.hybrid.layouts:
            squares = trainer.strategy.reduce(squares, reduce_op="sum")
        before, *after = torch.cat([module.gradient_norm.double().view(1), squares.sqrt()]).tolist()
        after_all = sum(norm**2 for norm in after) ** 0.5
        values = {GRADIENT_NORM: before, CLIPPED_NORM: after_all}
        for rule, norm in zip(self._squares, after, strict=True):
            values[f"{CLIPPED_NORM}/{rule}"] = norm
            values[f"{GRADIENT_NORM}/{rule}"] = norm * before / after_all if after_all else 0.0
        log(trainer, values, step)


def _gradients(optimizer: HybridOptimizer, parameters: list[torch.Tensor]) -> list[torch.Tensor]:
    """This process's gradients of a group: whole ones, or its fragments of flat ones without their padding."""
    rank, _ = rank_and_world()
    found: list[torch.Tensor] = []
    for parameter in parameters:
        if (whole := parameter.grad) is not None:
            layout = optimizer.layouts.get(parameter)
            found += [part.of_flat(whole) for part in layout.ranks[rank]] if layout else [whole]
    return found


class UpdateCheck(StepCallback):
    """Every `every` steps, stops the run if an orthogonalised update is not orthogonal.

    A wrapper that flattens or shards parameters can turn Muon into another algorithm, and only a worse loss would show
    it. So the largest singular value of A = ((1 - ηλ)W - W')/η is compared with the one that the rule promises;
    `largest` is their quotient by parameter, at the last check.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.largest: dict[str, float] = {}

    def on_step_start(self, trainer: pl.Trainer, module: WatchedModule, step: int) -> None:
        """Watch the optimizer in the steps that are checked."""
        due = (step - 1) % self.every == 0
        module.hybrid.watch = self._measure if due else None
        self.largest = {} if due else self.largest

    def on_step_end(self, trainer: pl.Trainer, module: WatchedModule, step: int) -> None:
        """Stop all processes if one has found a wrong update."""
        if not module.hybrid.watch:
            return
        wrong = {name: size for name, size in self.largest.items() if not BOUNDS[0] < size < BOUNDS[1]}
        if trainer.strategy.reduce_boolean_decision(bool(wrong), all=False):
            seen = ", ".join(f"{name} {size:.3g}" for name, size in wrong.items()) or "in another process"
            raise UserError(
                f"step {step}: updates that should be orthogonal are not: their largest singular value over what it "
                f"should be is {seen}. Choose another trainer.strategy or rules.muon.dtype float32"
            )

    def _measure(self, group: Group, infos: list[ParameterInfo], items: list[Item], before: list[torch.Tensor]) -> None:
        rule = RULES[group["rule"]]
        if not isinstance(rule, Muon) or not group["lr"]:
            return
        kept = 1.0 - group["lr"] * group["weight_decay"]
        for info, item, old in list(zip(infos, items, before, strict=True))[:SAMPLE]:
            direction_krs = split_blocks((kept * old - item.parameter) / group["lr"], item.blocks)
            if item.gradient.any():
                size = rule.scale(*direction_krs.shape[1:])
                self.largest[info.name] = float(largest_singular_values(direction_krs).max()) / size
