"""First steps of an unknown optimizer, always from the same start: what the looks at it compare."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from mup_lightning.errors import UserError
from mup_lightning.studies.probe.candidate import Stepper
from mup_lightning.studies.probe.measure import build_network
from mup_lightning.studies.probe.network import ResidualMLP
from mup_lightning.studies.probe.settings import ProbeSettings
from mup_lightning.studies.probe.task import batches


@dataclass(frozen=True)
class Move:
    """The first step that moved a matrix.

    Attributes:
        number: which step it was, from 1.
        before: parameter name -> its value before.
        change: parameter name -> what the step added.
        state: parameter name -> the tensors that the optimizer keeps for it, after the step.
    """

    number: int
    before: dict[str, torch.Tensor]
    change: dict[str, torch.Tensor]
    state: dict[str, dict[str, torch.Tensor]]


class Mover:
    """Makes first moves of one optimizer, always from the same start.

    Args:
        name: of the optimizer, for errors.
        settings: of the probe.
        build: (network, lr, weight decay) -> the optimizer on it.
    """

    def __init__(
        self, name: str, settings: ProbeSettings, build: Callable[[ResidualMLP, float, float], Stepper]
    ) -> None:
        self.name, self.settings, self.build = name, settings, build
        self._dtype: torch.dtype | None = None

    @property
    def precise(self) -> bool:
        """Whether its moves are made in float64. Known after the first."""
        return self._dtype == torch.float64

    def forget(self) -> None:
        """Choose the precision anew: the optimizer has been changed."""
        self._dtype = None

    def first(self, lr: float, decay: float = 0.0) -> Move:
        """The first move at this learning rate and weight decay.

        In float64, so that differences are seen; in float32 where the optimizer cannot do that.

        Raises:
            UserError: the optimizer fails, is not finite, or does not move within the probe's steps.
        """
        if self._dtype is None:
            try:
                move = self._first(lr, decay, torch.float64)
                self._dtype = torch.float64
                return move
            except UserError:
                move = self._first(lr, decay, torch.float32)
                self._dtype = torch.float32
                return move
        return self._first(lr, decay, self._dtype)

    def _first(self, lr: float, decay: float, dtype: torch.dtype) -> Move:
        settings = self.settings
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # for optimizers that draw numbers
            network = build_network(settings, *settings.base, seed=0).to(dtype)
            stepper = self.build(network, lr, decay)
            data = batches(0, settings.batch, settings.inputs, settings.classes)
            for number in range(1, settings.steps + 1):
                x, labels = next(data)
                network.zero_grad()
                F.cross_entropy(network(x.to(dtype)), labels).backward()
                before = {name: p.detach().clone() for name, p in network.named_parameters()}
                stepper.step(lambda: torch.zeros(()), settings.batch)
                change = {name: p.detach() - before[name] for name, p in network.named_parameters()}
                if not all(torch.isfinite(step).all() for step in change.values()):
                    raise UserError(
                        f"{self.name} made a step that is not finite: its step {number} at learning rate {lr:g}. It "
                        f"cannot be probed with these arguments; try others with --arguments"
                    )
                if any(step.ndim > 1 and step.abs().max() > 0 for step in change.values()):
                    return Move(number, before, change, _state(network, stepper))
        raise UserError(
            f"{self.name} changed no matrix in {settings.steps} steps, so there is nothing to measure. Does it warm "
            f"up? Give it more --steps, or other --arguments"
        )


def _state(network: ResidualMLP, stepper: Stepper) -> dict[str, dict[str, torch.Tensor]]:
    found: dict[str, dict[str, torch.Tensor]] = {}
    for optimizer in getattr(stepper, "optimizers", []):
        for name, parameter in network.named_parameters():
            state = optimizer.state.get(parameter, {})
            tensors = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
            if tensors:
                found[name] = {key: value.detach().clone() for key, value in tensors.items()}
    return found
