"""Optimizers to be timed against each other: each on its own copy of the same weights, with the same gradients.

The libraries' matrix rules know no blocks; so they are given Q, K and V as three matrices, and ours the fused one.
Settings are such that equal rules do equal work (see docs/method/benchmarks.md); no weight decays.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch

from mup_lightning.config.schema import VOCABULARIES, ModelConfig
from mup_lightning.model.gpt2 import build
from mup_lightning.optim.optimizer import HybridOptimizer, build_optimizer
from mup_lightning.spectral.families import FAMILIES
from mup_lightning.spectral.recipe import RecipeConfig, derive
from mup_lightning.spectral.roles import Role
from tests.benchmarks.harness import Settings

LR = 2**-8
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
DRAWS = 6
"""Sets of gradients, taken in turn: sums of GGᵀ then have full rank even where a side is four times the other."""

Which = Callable[[int, int], bool]
"""Which hidden matrices take part, by the rows and columns of a block."""
Make = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]


class Contender:
    """An optimizer; all that happens outside its step is outside the clock.

    Args:
        parameters: of the optimizer.
        draws: sets of gradients, each in the parameters' order.
        optimizer: ours or another.
    """

    def __init__(
        self, parameters: Sequence[torch.Tensor], draws: list[list[torch.Tensor]], optimizer: torch.optim.Optimizer
    ) -> None:
        self.parameters, self.draws, self.optimizer = parameters, draws, optimizer
        self._done = 0

    def seconds(self, steps: int) -> float:
        """Mean seconds of a step over so many steps."""
        total = 0.0
        for _ in range(steps):
            self.prepare()
            begin = time.perf_counter()
            self.optimizer.step()
            total += time.perf_counter() - begin
        return total / steps

    def prepare(self) -> None:
        """Put the next gradients in place, as copies: some libraries write into them. Sophia also gets an estimate."""
        for parameter, gradient in zip(self.parameters, self.draws[self._done % len(self.draws)], strict=True):
            parameter.grad = gradient.clone() if parameter.grad is None else parameter.grad.copy_(gradient)
        self._done += 1
        if isinstance(self.optimizer, HybridOptimizer):
            due = self.optimizer.wants_hessian()
            self.optimizer.give_hessian({name: p.grad.square() for name, p in due.items() if p.grad is not None})


class Workload:
    """A model's parameters, or some of its hidden matrices, and random gradients for them.

    Args:
        settings: shape of the model.
        which: hidden matrices to take; None for all parameters.
        draws: sets of gradients.
    """

    def __init__(self, settings: Settings, which: Which | None = None, draws: int = DRAWS) -> None:
        tokens = VOCABULARIES[settings.tokenizer].size
        self.width, self.depth = settings.width, settings.depth
        config = ModelConfig(width=self.width, depth=self.depth, context=settings.context, vocab_size=tokens)
        self.model = build(config, derive(RecipeConfig(), self.width, self.depth), seed=0)
        self.blocks = {
            name: info.blocks
            for name, info in self.model.parameter_info.items()
            if which is None or (info.role is Role.HIDDEN and which(*info.block_shape))
        }
        generator = torch.Generator().manual_seed(0)
        self.draws = [
            [torch.randn(weight.shape, generator=generator) for weight in self._weights()] for _ in range(draws)
        ]

    def ours(self, rule: str, options: dict[str, Any] | None = None) -> Contender:
        """Our optimizer as in training, where clipping has checked the gradients already."""
        parameters = [torch.nn.Parameter(weight) for weight in self._weights()]
        config = RecipeConfig(optimizer=cast(Any, rule), lr=LR, eps=FAMILIES[rule].base_eps)
        recipe = derive(config, self.width, self.depth)
        named = dict(zip(self.blocks, parameters, strict=True))
        optimizer = build_optimizer(named, self.model.parameter_info, recipe, options or {}, check=False)
        return Contender(parameters, self.draws, optimizer)

    def theirs(self, make: Make) -> Contender:
        """Another optimizer, which is given every block as a parameter of its own."""
        parameters = [torch.nn.Parameter(weight) for weight in self._split(self._weights())]
        return Contender(parameters, [self._split(draw) for draw in self.draws], make(parameters))

    def _weights(self) -> list[torch.Tensor]:
        named = dict(self.model.named_parameters())
        return [named[name].detach().clone() for name in self.blocks]

    def _split(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        pairs = zip(tensors, self.blocks.values(), strict=True)
        return [block.clone() for tensor, blocks in pairs for block in tensor.chunk(blocks)]


class PlainMuon(torch.optim.Optimizer):
    """Muon as one writes it down: one matrix at a time, Newton-Schulz on the whole of it, in its own float32."""

    def __init__(self, parameters: list[torch.nn.Parameter]) -> None:
        super().__init__(parameters, {"lr": LR, "momentum": 0.95})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of all matrices."""
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum = state["momentum"].mul_(group["momentum"]).add_(parameter.grad)
                source = parameter.grad.add(momentum, alpha=group["momentum"])
                parameter.add_(newton_schulz(source), alpha=-group["lr"])


def newton_schulz(G: torch.Tensor) -> torch.Tensor:
    """Five steps X <- aX + (bA + cA²)X with A = XXᵀ on the shorter side."""
    a, b, c = COEFFICIENTS
    X = G.mT if G.shape[0] > G.shape[1] else G
    X = X / X.norm()
    for _ in range(5):
        A = X @ X.mT
        X = a * X + (b * A + c * A @ A) @ X
    return X.mT if G.shape[0] > G.shape[1] else X


def _library(name: str, **options: Any) -> Make:
    """A class of pytorch_optimizer."""

    def make(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        import pytorch_optimizer
        from pytorch_optimizer.optimizer.utils.graft import LayerWiseGrafting

        given = {"graft_type": LayerWiseGrafting.NONE} if name == "ScalableShampoo" else {}
        return getattr(pytorch_optimizer, name)(parameters, lr=LR, **given, **options)

    return make


_SHAMPOO: dict[str, Any] = {"matrix_eps": 1e-8, "preconditioning_compute_steps": 1}
_SCALABLE = _SHAMPOO | {
    "betas": (0.95, 0.95),
    "moving_average_for_momentum": True,
    "start_preconditioning_step": 1,
    "block_size": 20000,  # each matrix is one block
    "no_preconditioning_for_layers_with_dim_gt": 20000,
    "shape_interpretation": False,
    "nesterov": False,
}

OTHERS: dict[str, Make] = {
    "torch fused": lambda p: torch.optim.AdamW(p, lr=LR, betas=(0.9, 0.95), eps=1e-16, weight_decay=0.0, fused=True),
    "torch": lambda p: torch.optim.Muon(p, lr=LR, momentum=0.95, weight_decay=0.0),  # computes in bfloat16
    "plain": PlainMuon,
    "pytorch_optimizer Shampoo": _library("Shampoo", **_SHAMPOO),  # of 2018: sums, SVD, no momentum
    "pytorch_optimizer Scalable, SVD": _library("ScalableShampoo", use_svd=True, **_SCALABLE),
    "pytorch_optimizer Scalable": _library("ScalableShampoo", use_svd=False, **_SCALABLE),
    "pytorch_optimizer SOAP": _library(
        "SOAP",
        betas=(0.95, 0.95),
        weight_decay=0.0,
        precondition_frequency=10,
        max_precondition_dim=10000,
        eps=1e-8,
    ),
}
"""Contender -> how it is made."""
