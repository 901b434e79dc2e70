"""Cases `optimizers` and `optimizer_memory`: what a step of our update rules costs, and what it takes.

Each comparison is a fresh process a round, in which the contenders take turns: ours, the others, ours again (the
control). Only the optimizer's step is timed. Each contender has its own copy of the same weights, and the same
gradients; the libraries' matrix rules know no blocks, so they are given Q, K and V as three matrices, and ours the
fused one. Settings are such that equal rules do equal work (see docs/method/benchmarks.md); no weight decays.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from mup_lightning.model.gpt2 import build
from mup_lightning.optim.optimizer import HybridOptimizer
from mup_lightning.optim.registry import make_groups
from mup_lightning.spectral.families import FAMILIES
from mup_lightning.spectral.roles import Role
from tests.benchmarks.harness import Case, Settings, Turn, make_config
from tests.benchmarks.process import MAPPED, measure, peak_of

OURS, AGAIN = "ours", "ours again"
ALL_RULES = "a step of the whole model"
LR = 2**-8
DRAWS = 6
"""Sets of gradients, taken in turn: sums of GGᵀ then have full rank even where a side is four times the other."""

Which = Callable[[int, int], bool]
"""Which hidden matrices take part, by the rows and columns of a block."""
Make = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]


class Contender:
    """An optimizer, its parameters and sets of gradients; all that happens outside its step is outside the clock."""

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
    """A model's parameters, or the hidden matrices that `which` takes, and sets of random gradients for them."""

    def __init__(self, settings: Settings, which: Which | None = None, draws: int = DRAWS) -> None:
        self.settings, config = settings, make_config(settings)
        self.model = build(config.model, config.derive(), seed=0)
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
        changes = {"recipe.optimizer": rule, "recipe.eps": FAMILIES[rule].base_eps}
        recipe = make_config(self.settings, changes=changes).derive()
        named = dict(zip(self.blocks, parameters, strict=True))
        optimizer = HybridOptimizer(make_groups(named, self.model.parameter_info, recipe, options or {}))
        optimizer.check = False
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
        """One step of all matrices: X <- aX + (bA + cA²)X with A = XXᵀ on the shorter side, five times."""
        for parameter in self.param_groups[0]["params"]:
            momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
            G = parameter.grad.add(momentum.mul_(0.95).add_(parameter.grad), alpha=0.95)
            X = G.mT if G.shape[0] > G.shape[1] else G
            X = X / X.norm()
            for _ in range(5):
                A = X @ X.mT
                X = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X
            parameter.add_(X.mT if G.shape[0] > G.shape[1] else X, alpha=-LR)


def _library(name: str, **options: Any) -> Make:
    """A class of pytorch_optimizer, which is imported where it takes part."""

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
_SOAP = {"betas": (0.95, 0.95), "weight_decay": 0.0, "precondition_frequency": 10, "max_precondition_dim": 10000}

OTHERS: dict[str, Make] = {
    "torch fused": lambda p: torch.optim.AdamW(p, lr=LR, betas=(0.9, 0.95), eps=1e-16, weight_decay=0.0, fused=True),
    "torch": lambda p: torch.optim.Muon(p, lr=LR, momentum=0.95, weight_decay=0.0),  # computes in bfloat16
    "plain": PlainMuon,
    "Shampoo": _library("Shampoo", **_SHAMPOO),  # of 2018: sums, SVD, no momentum
    "ScalableShampoo, SVD": _library("ScalableShampoo", use_svd=True, **_SCALABLE),
    "ScalableShampoo": _library("ScalableShampoo", use_svd=False, **_SCALABLE),
    "SOAP": _library("SOAP", eps=1e-8, **_SOAP),
}
"""Contender -> how it is made; those after "plain" are pytorch_optimizer's."""


@dataclass(frozen=True)
class Comparison:
    """Contenders that do the same work."""

    rule: str  # ours
    others: dict[str, tuple[int, str]]  # contender -> (steps, what its ratio should be)
    steps: int  # of ours
    which: Which | None = lambda rows, columns: True  # None for the whole model's parameters
    options: dict[str, Any] | None = None  # of our rules

    def contenders(self, settings: Settings) -> dict[str, tuple[Contender, int]]:
        """Name -> (contender, steps), in the order of their turns; the control is ours once more."""
        workload = Workload(settings, self.which)
        ours = workload.ours(self.rule, self.options)
        others = {other: (workload.theirs(OTHERS[other]), steps) for other, (steps, _) in self.others.items()}
        return {OURS: (ours, self.steps), **others, AGAIN: (ours, self.steps)}


_AIM = "at most 1.2"
COMPARISONS = {
    "AdamW, all parameters": Comparison("adamw", {"torch fused": (20, "at most 1.1")}, steps=20, which=None),
    "Muon, hidden matrices": Comparison(
        "muon", {"torch": (1, "at most 1/25 on a processor without bfloat16"), "plain": (5, "")}, steps=5
    ),
    "Muon in bfloat16, hidden matrices": Comparison(
        "muon", {"torch": (1, "")}, steps=1, options={"muon": {"dtype": "bfloat16"}}
    ),
    "Muon, square matrices": Comparison(
        "muon", {"plain": (20, "at most 1")}, 20, lambda rows, columns: rows == columns
    ),
    "Muon, 1:4 matrices": Comparison("muon", {"plain": (20, "below 1")}, 20, lambda rows, columns: rows != columns),
    "Shampoo, hidden matrices": Comparison(
        "shampoo", dict.fromkeys(("Shampoo", "ScalableShampoo, SVD", "ScalableShampoo"), (1, _AIM)), steps=1
    ),
    "SOAP, hidden matrices": Comparison("soap", {"SOAP": (10, _AIM)}, steps=10),
}


def times(settings: Settings) -> Turn:
    """One round: milliseconds of a step."""
    return {f"{name} (ms)": measure(take_turn, settings, name=name)[0] for name in (*COMPARISONS, ALL_RULES)}


def take_turn(s: Settings, name: str) -> dict[str, float]:
    """One round of one comparison, or of every rule as in training: milliseconds of a step by contender."""
    if name == ALL_RULES:
        workload = Workload(s, draws=4)
        timed = {rule: (workload.ours(rule), 1 if rule == "shampoo" else 10) for rule in FAMILIES}
    else:
        timed = COMPARISONS[name].contenders(s)
    for contender, _ in dict(timed.values()).items():
        contender.seconds(max(1, s.warmup))
    return {key: 1e3 * contender.seconds(s.steps * steps) for key, (contender, steps) in timed.items()}


def memory(settings: Settings) -> Turn:
    """State, and what a step makes, over the parameters' bytes."""
    found = {rule: measure(take_memory, settings, environment=MAPPED, rule=rule)[0] for rule in FAMILIES}
    return {
        f"{key} (of parameter bytes)": {rule: turn[key] / turn["parameters"] for rule, turn in found.items()}
        for key in ("state", "made in a step", "largest parameter")
    }


def take_memory(s: Settings, rule: str) -> dict[str, float]:
    """Bytes of "parameters", of the "state", "made in a step" at the peak of some, and of the "largest parameter".

    What exceeds, at the peak, weights, gradients and the state that stays was made in a step.
    """
    steps = 11 if rule == "soap" else 3  # SOAP refreshes its bases in the eleventh
    Workload(replace(s, width=32, depth=1, context=8, tokenizer="bytes"), draws=1).ours(rule).seconds(steps)
    contender = Workload(s, draws=1).ours(rule)  # libraries are loaded
    contender.prepare()

    def stepping(count: int) -> None:
        for _ in range(count):
            contender.optimizer.step()

    first = 1e6 * peak_of(stepping, 1)[1]
    held = [value for values in contender.optimizer.state.values() for value in values.values()]
    state = sum(value.nbytes for value in held if torch.is_tensor(value))
    sizes = [parameter.nbytes for parameter in contender.parameters]
    made = max(0.0, first - state, 1e6 * peak_of(stepping, steps - 1)[1])  # the first step makes the state, too
    return {"parameters": sum(sizes), "state": state, "made in a step": made, "largest parameter": max(sizes)}


# Steps are counted in the settings' `steps`: one of the slowest contender's, more of the quick ones.
TIMES = Case(
    "what a step of each optimizer costs, against others' code",
    Settings(width=256, depth=4, context=1024, batch=1, tokenizer="gpt2", rounds=5, steps=1, warmup=1, threads=1),
    times,
    {
        f"{ALL_RULES} (ms)": [(rule, "adamw", "") for rule in FAMILIES if rule != "adamw"],
        **{
            f"{name} (ms)": [*((OURS, other, aim) for other, (_, aim) in comparison.others.items()), (OURS, AGAIN, "")]
            for name, comparison in COMPARISONS.items()
        },
    },
)
MEMORY = Case("what each optimizer keeps and makes in a step", replace(TIMES.default, rounds=1), memory)
