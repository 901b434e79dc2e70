"""The spectral norms of weights and of what a step does to them, the matrices divided among the processes.

Each matrix is measured by one process, which keeps a copy of it from before the update to after it. Where ZeRO has
partitioned the weights, they are gathered there, one parameter at a time.

Shapes: b matrices in a batch, k blocks of one parameter (3 for a fused QKV), r rows, s columns.
"""

from collections import defaultdict
from collections.abc import Iterator

import torch

from mup_lightning.distributed.collectives import gather, rank_and_world
from mup_lightning.distributed.layout import assign
from mup_lightning.optim.optimizer import HybridOptimizer
from mup_lightning.optim.rule import split_blocks
from mup_lightning.optim.spectral_norm import largest_singular_values

Place = tuple[str, int]
"""A matrix: its parameter's name, and which of the matrices stacked in it."""


class SpectralShare:
    """Measures ‖W‖₂ and ‖ΔW‖₂ of some parameters' matrices; all processes call all methods.

    Args:
        optimizer: that steps them; already wrapped by its strategy, so that it knows the layouts, if there are any.
        names: of the parameters, matrices all.

    Attributes:
        places: the matrices, in the order of the norms.
    """

    def __init__(self, optimizer: HybridOptimizer, names: list[str]) -> None:
        self._optimizer, self._names = optimizer, names
        self._infos = {name: optimizer.held[name].info for name in names}
        self.places: list[Place] = [(name, block) for name in names for block in range(self._infos[name].blocks)]
        self._rank, world_size = rank_and_world()
        numels = {name: counts for layout in optimizer.layouts.values() for name, counts in layout.held.items()}
        costs = {name: float(info.numel) for name, info in self._infos.items()}
        self._owners = assign(costs, world_size, numels or None)
        self._batches: dict[tuple[int, int], list[str]] = defaultdict(list)
        for name, info in self._infos.items():
            if self._owners[name] == self._rank:
                self._batches[info.block_shape].append(name)
        self._copies: dict[tuple[int, int], torch.Tensor] = {}

    @torch.no_grad()
    def before(self) -> torch.Tensor:
        """Copy this process's weights; just before the update, when the memory of the backward pass is free again.

        Returns:
            (places,) ‖W‖₂ of them; 0 of the matrices that others measure.
        """
        for shape, names in self._batches.items():
            blocks = sum(self._infos[name].blocks for name in names)
            self._copies[shape] = self._like.new_empty(blocks, *shape)
        copies = self._views()
        for name, weight_krs in self._whole():
            copies[name].copy_(weight_krs)
        return self._measure()

    @torch.no_grad()
    def after(self) -> torch.Tensor:
        """After the update: (places,) ‖ΔW‖₂ as in `before`, whose copies become ΔW and are freed."""
        copies = self._views()
        for name, weight_krs in self._whole():
            torch.sub(weight_krs, copies[name], out=copies[name])
        norms = self._measure()
        self._copies.clear()
        return norms

    @property
    def _like(self) -> torch.Tensor:
        """A tensor of the dtype and device of what is measured."""
        return next(iter(self._optimizer.layouts), next(iter(self._optimizer.held.values())).tensor).detach()

    def _whole(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every parameter that this process measures, (k, r, s), as it is now; one at a time."""
        for name in self._names:
            held, owner = self._optimizer.held[name], self._owners[name]
            if held.flat is not None:
                weight = gather(self._optimizer.layouts[held.flat], name, owner, held.flat.detach())
            else:
                weight = held.tensor.detach() if owner == self._rank else None
            if weight is not None:
                yield name, split_blocks(weight.view(held.info.shape), held.info.blocks)

    def _views(self) -> dict[str, torch.Tensor]:
        """This process's parameters -> their views (k, r, s) of the copies."""
        views: dict[str, torch.Tensor] = {}
        for shape, names in self._batches.items():
            cuts = self._copies[shape].split([self._infos[name].blocks for name in names])
            views |= dict(zip(names, cuts, strict=True))
        return views

    def _measure(self) -> torch.Tensor:
        """The spectral norms of the copies in the order of `places`; 0 for those of other processes."""
        result = torch.zeros(len(self.places), device=self._like.device)
        order = {place: index for index, place in enumerate(self.places)}
        for shape, names in self._batches.items():
            mine = [order[name, block] for name in names for block in range(self._infos[name].blocks)]
            norms = largest_singular_values(self._copies[shape])
            result[torch.tensor(mine, device=result.device)] = norms.to(result)
        return result
