"""A network whose assumptions are checked: what the measuring needs to know of it, and its recipe."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import nn

from mup_lightning.model.parameters import ParameterInfo
from mup_lightning.spectral.recipe import RecipeConfig
from mup_lightning.studies.assumptions.settings import BASE, BASE_EPS, BASE_LR
from mup_lightning.studies.assumptions.tape import Matrix, Tape


class Subject(Protocol):
    """A network with its data. Samples of a batch never see each other."""

    @property
    def model(self) -> nn.Module:
        """The network."""
        ...

    @property
    def infos(self) -> dict[str, ParameterInfo]:
        """What it recorded of its parameters."""
        ...

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """What is measured."""
        ...

    def batches(self) -> Iterator[Any]:
        """Endless batches, a pure function of the seed."""
        ...

    def loss(self, batch: Any, tape: Tape | None = None) -> torch.Tensor:
        """Mean loss over a batch's samples, all of equal weight; the tape is told of every matrix and stream."""
        ...


def recipe_config(network: str, optimizer: str, **changes: float) -> RecipeConfig:
    """The recipe of both networks: μP at k >= 2, without weight decay."""
    width, depth = BASE[network]
    eps = {"eps": BASE_EPS[optimizer]} if optimizer in BASE_EPS else {}
    return RecipeConfig(
        optimizer=optimizer,  # type: ignore[arg-type]
        lr=BASE_LR[network][optimizer],
        base_width=width,
        base_depth=depth,
        **(eps | changes),  # type: ignore[arg-type]
    )
