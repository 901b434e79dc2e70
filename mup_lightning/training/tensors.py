"""Weights and optimizer states in a checkpoint: every process writes what it holds, any number of processes reads.

The keys of all processes' files together name every number once:

    weight/NAME                a whole parameter            QUANTITY/NAME        a whole state of one, or a number
    weight/NAME@START          its numbers from START on    QUANTITY/NAME@START  the same of a state

So a checkpoint does not depend on the strategy or the number of processes that wrote it: one saved by two processes at
ZeRO 2 continues in eight at ZeRO 1, or in one.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mup_lightning.distributed.layout import Layout
from mup_lightning.optim.optimizer import HybridOptimizer
from mup_lightning.training.tensor_files import TensorFiles

WEIGHT = "weight"


def file_name(rank: int) -> str:
    """Of the file that a process writes."""
    return f"rank_{rank:05d}.safetensors"


def held(optimizer: HybridOptimizer, rank: int) -> dict[str, torch.Tensor]:
    """What this process has to save, by key: all processes together save everything once.

    Args:
        optimizer: of the run.
        rank: this process's.
    """
    tensors: dict[str, torch.Tensor] = {}
    if not optimizer.layouts and rank == 0:
        tensors |= {f"{WEIGHT}/{name}": parameter for name, parameter in optimizer.originals.items()}
    for flat, layout in optimizer.layouts.items():
        tensors |= _cut(WEIGHT, flat, layout, rank)
        for quantity, value in optimizer.state.get(flat, {}).items():
            if isinstance(value, torch.Tensor) and value.shape == flat.shape:
                tensors |= _cut(quantity, value, layout, rank)
            else:  # one number for all parameters in it; each parameter's is saved by who holds its beginning
                begun = [fragment.name for fragment in layout.ranks[rank] if fragment.start == 0]
                tensors |= {f"{quantity}/{name}": _as_tensor(value) for name in begun}
    for name, (_, state) in optimizer.kept(rank, once=True).items():
        tensors |= {f"{quantity}/{name}": _as_tensor(value) for quantity, value in state.items()}
    return tensors


def _cut(quantity: str, flat: torch.Tensor, layout: Layout, rank: int) -> dict[str, torch.Tensor]:
    return {
        f"{quantity}/{fragment.name}@{fragment.start}": flat[fragment.offset : fragment.offset + fragment.length]
        for fragment in layout.ranks[rank]
    }


class Shards:
    """The files of all processes of a checkpoint, read as if one process had written them.

    Args:
        folder: of the checkpoint.

    Attributes:
        quantities: parameter -> what was saved of it.
    """

    def __init__(self, folder: Path) -> None:
        self._files = TensorFiles(sorted(folder.glob("rank_*.safetensors")))
        self._pieces: dict[tuple[str, str], list[tuple[int, str]]] = defaultdict(list)
        self.quantities: dict[str, list[str]] = defaultdict(list)
        for key in sorted(self._files.keys()):
            quantity, _, place = key.partition("/")
            name, _, start = place.partition("@")
            if quantity not in self.quantities[name]:
                self.quantities[name].append(quantity)
            self._pieces[quantity, name].append((int(start) if start else -1, key))
        for pieces in self._pieces.values():
            pieces.sort()

    def read(self, quantity: str, name: str) -> torch.Tensor:
        """A whole quantity of a parameter: of its own shape where one process held it whole, else flat."""
        pieces = self._pieces[quantity, name]
        if pieces[0][0] < 0:
            return self._files.read(pieces[0][1])
        return torch.cat([self._files.read(key) for _, key in pieces])

    def read_part(self, quantity: str, name: str, start: int, length: int) -> torch.Tensor:
        """`length` numbers of a flattened quantity from `start` on, wherever they lie."""
        first = self._pieces[quantity, name][0]
        if first[0] < 0:
            return self._files.read(first[1]).flatten()[start : start + length]
        found = []
        for begin, key in self._pieces[quantity, name]:
            end = begin + self._files.shape(key)[0]
            if begin < start + length and end > start:
                low, high = max(begin, start), min(end, start + length)
                found.append(self._files.read_part(key, low - begin, high - begin))
        return torch.cat(found)

    @torch.no_grad()
    def load_weights(self, model: nn.Module) -> None:
        """Overwrite a model's parameters."""
        for name, parameter in model.named_parameters():
            parameter.copy_(self.read(WEIGHT, name).view_as(parameter))

    @torch.no_grad()
    def load_states(self, optimizer: HybridOptimizer, rank: int) -> None:
        """Fill in the optimizer states that this process keeps."""
        for name, (parameter, state) in optimizer.kept(rank).items():
            for quantity in self._states_of(name):
                value = self.read(quantity, name)
                cut = self._pieces[quantity, name][0][0] >= 0
                state[quantity] = _restored(value.view_as(parameter) if cut else value, parameter)
        for flat, layout in optimizer.elementwise_flats().items():
            some = next(iter(layout.held))
            for quantity in self._states_of(some):
                if self._files.shape(self._pieces[quantity, some][0][1]):
                    value = torch.zeros_like(flat)
                    for fragment in layout.ranks[rank]:
                        part = self.read_part(quantity, fragment.name, fragment.start, fragment.length)
                        value[fragment.offset : fragment.offset + fragment.length] = part
                    optimizer.state[flat][quantity] = value
                else:
                    optimizer.state[flat][quantity] = _restored(self.read(quantity, some), flat)

    def _states_of(self, name: str) -> list[str]:
        return [quantity for quantity in self.quantities[name] if quantity != WEIGHT]


def _as_tensor(value: Any) -> torch.Tensor:
    """Counts are saved as 0-dim int64."""
    return value if isinstance(value, torch.Tensor) else torch.tensor(value, dtype=torch.int64)


def _restored(value: torch.Tensor, like: torch.Tensor) -> Any:
    """What `_as_tensor` was given, on the parameter's device."""
    return int(value) if value.dtype == torch.int64 and not value.shape else value.to(like.device)
