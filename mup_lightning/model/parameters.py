"""What is known about each parameter, recorded once when the model is built.

Wrappers later flatten, shard or rename parameters; nothing after this point guesses a role from a name or an ndim.
"""

import hashlib
from typing import Any

import torch
from torch import nn

from mup_lightning.spectral.roles import Declaration, ParameterInfo, Role


def collect(model: nn.Module) -> dict[str, ParameterInfo]:
    """Parameter name -> its info, in order, from all modules that declare what they own: relative name -> declaration.

    Raises RuntimeError unless they cover every parameter exactly once: a mistake in the model's code, not the user's.
    """
    declared: dict[str, Declaration] = {}
    for prefix, module in model.named_modules():
        if not hasattr(module, "declarations"):
            continue
        for name, declaration in module.declarations().items():
            full = f"{prefix}.{name}" if prefix else name
            if full in declared:
                raise RuntimeError(f"parameter {full} is declared twice")
            declared[full] = declaration
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    if declared.keys() != shapes.keys():
        missing, extra = sorted(shapes.keys() - declared.keys()), sorted(declared.keys() - shapes.keys())
        raise RuntimeError(f"every parameter needs exactly one declaration; undeclared: {missing}; not there: {extra}")
    return {name: ParameterInfo(name=name, shape=shape, **vars(declared[name])) for name, shape in shapes.items()}


def linear(layer: nn.Linear, name: str, label: str = "", **declaration: bool | int | str) -> dict[str, Declaration]:
    """Declare a hidden linear layer inside a residual branch, with its bias where it has one."""
    result = {f"{name}.weight": Declaration(Role.HIDDEN, label, **declaration)}  # type: ignore[arg-type]
    if layer.bias is not None:
        side: Any = declaration.get("side", "")
        result[f"{name}.bias"] = Declaration(Role.HIDDEN_BIAS, "bias", constant=0.0, side=side)
    return result


def norm(layer: nn.Module, name: str, role: Role) -> dict[str, Declaration]:
    """Declare a norm's gain and bias; an identity in its place has nothing to declare."""
    if isinstance(layer, nn.Identity):
        return {}
    result = {f"{name}.weight": Declaration(role, "gain", constant=1.0)}
    if getattr(layer, "bias", None) is not None:
        result[f"{name}.bias"] = Declaration(role, "bias", constant=0.0)
    return result


@torch.no_grad()
def initialise(parameter: torch.Tensor, info: ParameterInfo, std: float, seed: int) -> None:
    """Fill one parameter: vectors with their constant, matrices with N(0, std²).

    The values are a pure function of (seed, name, shape). They depend neither on the order in which parameters are
    made nor on the device, so a model built in shards or on another machine starts from the same weights.
    """
    if info.constant is not None:
        parameter.fill_(info.constant)
        return
    generator = torch.Generator().manual_seed(stable_seed(f"{seed}:{info.name}"))
    parameter.copy_(torch.randn(info.shape, generator=generator, dtype=torch.float32).mul_(std))


def stable_seed(text: str) -> int:
    """A 63-bit seed from a text, the same in all processes (unlike `hash`)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
