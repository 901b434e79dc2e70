"""FSDP2 (torch's `fully_shard`) under Lightning: weights, gradients and optimizer states are sharded by rows.

What a process holds of a group's parameters also lies in one flat tensor, as under ZeRO, and its layout is recorded in
the optimizer: rules, clipping, checkpoints and callbacks are the same code. Parameters are float32; with precision bf16
the forward pass runs under autocast, as in every other strategy.
"""

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from mup_lightning.distributed.layout import Fragment, each_cut
from mup_lightning.training.module import GPT2Module


class FSDPStrategy(DDPStrategy):
    """`fully_shard` around every block and around the whole, with one `HybridOptimizer`."""

    def __init__(self) -> None:
        super().__init__()
        self._flats: dict[torch.Tensor, dict[Fragment, DTensor]] = {}

    def configure_ddp(self) -> None:
        """Shard the model, and give the optimizer flat tensors in place of its parameters."""
        module = cast(GPT2Module, self.model)
        mesh = init_device_mesh(self.root_device.type, (self.world_size,))
        for block in module.model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(module, mesh=mesh)
        register_fsdp_forward_method(module, "training_step")
        sharded, hybrid = dict(module.model.named_parameters()), module.hybrid
        for group in hybrid.param_groups:
            shapes = {info.name: info.shape for info in group["infos"]}
            layout = each_cut(
                {name: (shape[0], math.prod(shape[1:])) for name, shape in shapes.items()}, self.world_size
            )
            mine = {part: cast(DTensor, sharded[part.name]) for part in layout.ranks[self.global_rank]}
            flat = torch.zeros(max((part.offset + part.length for part in mine), default=0), device=self.root_device)
            for part, parameter in mine.items():
                part.of_flat(flat).copy_(parameter.to_local().detach().flatten())
            for name in shapes:
                hybrid.held[name].tensor = sharded[name]
            group["params"] = [flat]
            hybrid.set_layout(flat, layout)
            self._flats[flat] = mine

    def optimizer_step(self, optimizer: Optimizer, closure: Callable[[], Any], model: Any = None, **kwargs: Any) -> Any:
        """See `Strategy`: the gradients go into the flat tensors before clipping, and the new weights come back."""

        def collect() -> Any:
            result = closure()
            for flat, mine in self._flats.items():
                flat.grad = torch.zeros_like(flat)
                for part, parameter in mine.items():
                    if parameter.grad is not None:
                        part.of_flat(flat.grad).copy_(cast(DTensor, parameter.grad).to_local().flatten())
            self._forget()
            return result

        result = super().optimizer_step(optimizer, collect, model, **kwargs)
        with torch.no_grad():
            for flat, mine in self._flats.items():
                for part, parameter in mine.items():
                    parameter.to_local().view(-1).copy_(part.of_flat(flat))
        return result

    def gradient(self, loss: torch.Tensor, parameters: list[torch.Tensor], *, whole: bool = True) -> list[torch.Tensor]:
        """As `torch.autograd.grad`, but the mean over the processes; where not `whole`, this process's shards of it."""
        loss.backward()
        found = [cast(DTensor, parameter.grad) for parameter in parameters]
        self._forget()
        return [gradient.full_tensor() if whole else gradient.to_local() for gradient in found]

    def _forget(self) -> None:
        for mine in self._flats.values():
            for parameter in mine.values():
                parameter.grad = None

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Nothing: every process saves its own states (`tensors.held`)."""
        return {}
