"""Weights and optimizer states in a checkpoint: every process writes what it holds, any number of processes reads.

The keys of all processes' safetensors files together name every element once:

    weight/NAME                a whole parameter              QUANTITY/NAME        a whole state of one, or a scalar
    weight/NAME@START          its elements from START on     QUANTITY/NAME@START  the same of a state

So a checkpoint does not depend on the strategy or the number of processes that wrote it: one saved by two processes at
ZeRO 2 continues in eight at ZeRO 1, or in one. No pickle: loading runs no code.
"""

import hashlib
import json
from bisect import insort
from collections import defaultdict
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from mup_lightning.files import sync
from mup_lightning.optim.optimizer import HybridOptimizer

WEIGHT = "weight"

DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64"}


def file_name(rank: int) -> str:
    """Name of the file that a process writes."""
    return f"rank_{rank:05d}.safetensors"


def write(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> dict[str, Any]:
    """Write tensors, on any device, in the safetensors format, and force them to disk; {"bytes", "sha256"} of the file.

    Not by the library, which first copies all tensors into one more piece of memory, and does not hash.
    """
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for key, tensor in tensors.items():
        end = offset + tensor.numel() * tensor.element_size()
        header[key] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        in_bytes = (t.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data for t in tensors.values())
        piece: Any
        for piece in chain([len(text).to_bytes(8, "little"), text], in_bytes):
            file.write(piece)
            digest.update(piece)
        sync(file)
    return {"bytes": 8 + len(text) + offset, "sha256": digest.hexdigest()}


def held(optimizer: HybridOptimizer, rank: int) -> dict[str, torch.Tensor]:
    """What the process of this rank has to save, by key: all processes together save everything once."""
    tensors: dict[str, torch.Tensor] = {}
    if not optimizer.layouts and rank == 0:
        tensors |= {f"{WEIGHT}/{name}": held.tensor for name, held in optimizer.held.items()}
    for flat, layout in optimizer.layouts.items():
        mine = layout.ranks[rank]
        for quantity, value in {WEIGHT: flat, **optimizer.state.get(flat, {})}.items():
            if isinstance(value, torch.Tensor) and value.shape == flat.shape:
                tensors |= {f"{quantity}/{part.name}@{part.start}": part.of_flat(value) for part in mine}
            else:  # one value for all parameters in it; each parameter's is saved by who holds its beginning
                tensors |= {f"{quantity}/{part.name}": _as_tensor(value) for part in mine if part.start == 0}
    for name, (_, state) in optimizer.kept(rank, once=True).items():
        tensors |= {f"{quantity}/{name}": _as_tensor(value) for quantity, value in state.items()}
    return tensors


class Shards:
    """The files of all processes in a checkpoint's folder, read as if one process had written them.

    `quantities`: parameter -> what was saved of it.
    """

    def __init__(self, folder: Path) -> None:
        files = [safe_open(path, framework="pt") for path in sorted(folder.glob(f"rank_{'[0-9]' * 5}.safetensors"))]
        self._file = {key: file for file in files for key in file.keys()}  # noqa: SIM118
        self._pieces: dict[tuple[str, str], list[tuple[int, str]]] = defaultdict(list)
        self.quantities: dict[str, dict[str, None]] = defaultdict(dict)
        for key in self._file:
            quantity, _, place = key.partition("/")
            name, _, start = place.partition("@")
            self.quantities[name][quantity] = None
            insort(self._pieces[quantity, name], (int(start) if start else -1, key))

    def read(self, quantity: str, name: str) -> torch.Tensor:
        """A whole quantity of a parameter: in its own shape where one process held it whole, else flat."""
        pieces = [self._file[key].get_tensor(key) for _, key in self._pieces[quantity, name]]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def read_part(self, quantity: str, name: str, start: int, length: int) -> torch.Tensor:
        """`length` elements of a flattened quantity from `start` on, wherever they lie; nothing else is read."""
        found = []
        for begin, key in self._pieces[quantity, name]:
            if begin < 0:  # whole
                return self.read(quantity, name).flatten()[start : start + length]
            end = begin + self._shape(key)[0]
            if begin < start + length and end > start:
                low, high = max(begin, start), min(end, start + length)
                found.append(self._file[key].get_slice(key)[low - begin : high - begin])
        return torch.cat(found)

    def _shape(self, key: str) -> list[int]:
        return list(self._file[key].get_slice(key).get_shape())

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
                value, is_whole = self.read(quantity, name), self._pieces[quantity, name][0][0] < 0
                state[quantity] = _restored(value if is_whole else value.view(parameter.shape), parameter)
        for flat, layout in optimizer.layouts.items():
            some = next(iter(layout.held))
            if optimizer.held[some].rule.whole_matrix:  # else the states are as flat
                continue
            for quantity in self._states_of(some):
                if not self._shape(self._pieces[quantity, some][0][1]):
                    optimizer.state[flat][quantity] = _restored(self.read(quantity, some), flat)
                    continue
                optimizer.state[flat][quantity] = value = torch.zeros_like(flat)
                for part in layout.ranks[rank]:
                    part.of_flat(value).copy_(self.read_part(quantity, part.name, part.start, part.length))

    def _states_of(self, name: str) -> list[str]:
        return [quantity for quantity in self.quantities[name] if quantity != WEIGHT]


def _as_tensor(value: Any) -> torch.Tensor:
    """Counts are saved as 0-dim int64."""
    return value if isinstance(value, torch.Tensor) else torch.tensor(value, dtype=torch.int64)


def _restored(value: torch.Tensor, like: torch.Tensor) -> Any:
    """Inverse of `_as_tensor`, on the parameter's device."""
    return int(value) if value.dtype == torch.int64 and not value.shape else value.to(like.device)
