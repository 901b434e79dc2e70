"""The spectral norms of weights and of what a step does to them, the matrices shared out over the processes.

Each matrix is measured by one process, which keeps a copy of it from before the update to after it. Where ZeRO has
parted the weights, they come together there, one parameter at a time.

Shapes: b matrices in a batch, k blocks of one parameter (3 for a fused QKV), r rows, s columns.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from mup_lightning.distributed.collectives import gather, rank_and_world
from mup_lightning.distributed.layout import assign
from mup_lightning.optim.matrices import part
from mup_lightning.optim.optimizer import HybridOptimizer
from mup_lightning.optim.spectral_norm import largest_singular_values

Place = tuple[str, int]
"""A matrix: its parameter's name, and which of the matrices stacked in it."""


@dataclass
class _Batch:
    """Parameters of equal block shape that this process measures.

    Attributes:
        names: of the parameters.
        copies_brs: the weights before the update, then what the update has added; None between measurements.
        weights_start: of `krylov`, from the last measurement; of the weights.
        updates_start: the same of the updates.
    """

    names: list[str]
    copies_brs: torch.Tensor | None = None
    weights_start: torch.Tensor | None = None
    updates_start: torch.Tensor | None = None


class SpectralShare:
    """Measures ‖W‖₂ and ‖ΔW‖₂ of some parameters' matrices; all processes call all methods.

    Args:
        optimizer: that steps them; a strategy has wrapped it and has told it the layouts, if there are any.
        names: of the parameters, matrices all.

    Attributes:
        places: the matrices, in the order of the norms.
    """

    def __init__(self, optimizer: HybridOptimizer, names: list[str]) -> None:
        self._optimizer, self._names = optimizer, names
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._blocks: dict[str, int] = {}
        for group in optimizer.param_groups:
            self._shapes |= dict(zip(group["names"], group["shapes"], strict=True))
            self._blocks |= dict(zip(group["names"], group["blocks"], strict=True))
        self.places: list[Place] = [(name, block) for name in names for block in range(self._blocks[name])]
        self._rank, world_size = rank_and_world()
        held = {name: counts for layout in optimizer.layouts.values() for name, counts in layout.held.items()}
        costs = {name: float(self._shapes[name][0] * self._shapes[name][1]) for name in names}
        self._owners = assign(costs, world_size, held or None)
        alike: dict[tuple[int, int], list[str]] = defaultdict(list)
        for name in names:
            if self._owners[name] == self._rank:
                rows, columns = self._shapes[name]
                alike[rows // self._blocks[name], columns].append(name)
        self._batches = [_Batch(same) for same in alike.values()]

    @torch.no_grad()
    def before(self) -> torch.Tensor:
        """Copy this process's weights; just before the update, when the memory of the backward pass is free again.

        Returns:
            (places,) ‖W‖₂ of them; 0 of the matrices that others measure.
        """
        rooms = self._rooms()
        for name, weight_krs in self._whole():
            rooms[name].copy_(weight_krs)
        norms = []
        for batch in self._batches:
            assert batch.copies_brs is not None
            values, batch.weights_start = largest_singular_values(batch.copies_brs, batch.weights_start)
            norms.append(values)
        return self._in_order(norms)

    @torch.no_grad()
    def after(self) -> torch.Tensor:
        """After the update: (places,) ‖ΔW‖₂ as in `before`, whose copies become ΔW and are given back."""
        rooms = self._views()
        for name, weight_krs in self._whole():
            torch.sub(weight_krs, rooms[name], out=rooms[name])
        norms = []
        for batch in self._batches:
            assert batch.copies_brs is not None
            values, batch.updates_start = largest_singular_values(batch.copies_brs, batch.updates_start)
            batch.copies_brs = None
            norms.append(values)
        return self._in_order(norms)

    def _whole(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every parameter that this process measures, (k, r, s), as it is now; one at a time."""
        flats = {name: (flat, layout) for flat, layout in self._optimizer.layouts.items() for name in layout.held}
        for name in self._names:
            owner = self._owners[name]
            if name in flats:
                flat, layout = flats[name]
                weight = gather(layout, name, owner, flat.detach())
            else:
                weight = self._optimizer.originals[name].detach() if owner == self._rank else None
            if weight is not None:
                yield name, part(weight.view(self._shapes[name]), self._blocks[name])

    def _rooms(self) -> dict[str, torch.Tensor]:
        """Memory for the copies, as `_views`."""
        for batch in self._batches:
            rows, columns = self._shapes[batch.names[0]]
            blocks = self._blocks[batch.names[0]]
            numbers = sum(self._blocks[name] for name in batch.names)
            like = next(iter(self._optimizer.layouts), self._optimizer.originals[batch.names[0]])
            batch.copies_brs = like.detach().new_empty(numbers, rows // blocks, columns)
        return self._views()

    def _views(self) -> dict[str, torch.Tensor]:
        """This process's parameters -> their places (k, r, s) among the copies."""
        views: dict[str, torch.Tensor] = {}
        for batch in self._batches:
            assert batch.copies_brs is not None
            cuts = batch.copies_brs.split([self._blocks[name] for name in batch.names])
            views |= dict(zip(batch.names, cuts, strict=True))
        return views

    def _in_order(self, norms: list[torch.Tensor]) -> torch.Tensor:
        """The norms of this process's batches in the order of `places`; 0 elsewhere."""
        first = next(iter(self._optimizer.layouts), next(iter(self._optimizer.originals.values())))
        result = torch.zeros(len(self.places), device=first.device)
        order = {place: index for index, place in enumerate(self.places)}
        for batch, values in zip(self._batches, norms, strict=True):
            mine = [order[name, block] for name in batch.names for block in range(self._blocks[name])]
            result[torch.tensor(mine, device=result.device)] = values.to(result)
        return result
