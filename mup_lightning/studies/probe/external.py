"""Any torch optimizer class as a subject: found by its import path, and examined on its first update.

Before it is probed, its first update on the smallest network tells how parameters must be handed over, whether steps
are proportional to the learning rate, how weight decay enters, and whether it keeps its own copy of the weights.
"""

import importlib
import inspect
from collections import ChainMap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import packages_distributions, version
from itertools import product
from typing import Any, NamedTuple

import torch

from mup_lightning.errors import UserError
from mup_lightning.spectral.roles import Role
from mup_lightning.studies.probe import ProbeSettings
from mup_lightning.studies.probe.measure import LR, Step, Subject, Tensors, build_network, updates
from mup_lightning.studies.probe.network import ResidualMLP

ALL = "all parameters"
MARKED = "matrices and vectors, told apart by use_muon"
MATRICES = "matrices alone, vectors: AdamW"
"""How parameters are handed over, in the order that is tried. `use_muon` is the key that Muon's own code and its
descendants look for in parameter groups."""

DECAY = 0.1  # weight decay that is tried
SAME = 1e-3  # relative difference up to which two steps count as one

DECAY_MEANINGS = {
    "none": "it has no weight decay",
    "ignored": "weight decay changes nothing in the first step: the proposed one may not apply",
    "decoupled": "one step takes off lr x weight_decay of a weight: the proposal applies",
    "fixed": "one step takes off weight_decay of a weight, whatever lr: multiply the proposed factors by those of lr",
    "coupled": "weight decay goes through the optimizer's own scaling: the proposed exponents do not apply to it; use "
    "its decoupled option, or 0",
    "scaled": "one step takes off {factor:.3g} x lr x weight_decay of a weight at the base size: check how that factor "
    "depends on size before using the proposal",
}


class Update(NamedTuple):
    """The first step that moved a matrix: its number, from 1, and by parameter the value before, change and state."""

    number: int
    before: Tensors
    change: Tensors
    state: dict[str, Tensors]


class External:
    """A torch optimizer class that can be built on any network, and has been examined on the probe's smallest.

    It is given the parameters by the first `grouping` that works, in float64 if it can do that, so that small
    differences are seen. `once` is its first update at its own default learning rate, `lr`.
    """

    def __init__(self, path: str, arguments: dict[str, Any], settings: ProbeSettings) -> None:
        self.path, self.arguments, self.settings = path, arguments, settings
        module, _, name = path.partition(":")
        with self._own_words(f"cannot import {module}"):
            self.kind: Any = getattr(importlib.import_module(module), name, None)
        if not (isinstance(self.kind, type) and issubclass(self.kind, torch.optim.Optimizer)):
            raise self.refusal(f"{module} has no torch optimizer class {name!r}")
        parameters = inspect.signature(self.kind).parameters
        closure = inspect.signature(self.kind.step).parameters.get("closure")
        if "lr" not in parameters:
            raise self.refusal("its constructor has no argument lr")
        if closure is not None and closure.default is inspect.Parameter.empty:
            raise self.refusal("its step needs a closure that evaluates the loss again; the probe has gradients alone")
        default = parameters["lr"].default
        self.lr = float(default) if isinstance(default, (int, float)) and default > 0 else 1e-3
        similar = [name for name in parameters if "weight_decay" in name or name.endswith("_wd")]
        # Libraries have separate decays for vectors.
        self.decays = [n for n in similar if n == "weight_decay" or type(parameters[n].default) in (int, float)]
        if taken := sorted({"lr", *self.decays} & arguments.keys()):
            raise UserError(f"--arguments has {taken[0]!r}, which the probe sets itself; leave it out")
        errors = []
        for self.grouping, self.dtype in product((ALL, MARKED, MATRICES), (torch.float64, torch.float32)):
            try:
                self.once = self.first_update(self.lr)
                break
            except UserError as error:
                errors.append(error)
        else:
            raise errors[1]  # that in float64 may be about the precision
        for name, weight in self.once.before.items():
            for key, tensor in self.once.state[name].items():
                copies = (weight, weight + self.once.change[name]) if tensor.shape == weight.shape else ()
                if weight.ndim > 1 and any((tensor.to(weight) - one).norm() <= 1e-5 * one.norm() for one in copies):
                    raise self.refusal(
                        f"it keeps its own copy of the weights (its state {key!r}), as lookahead, averaging and "
                        f"schedule-free optimizers do, and does not see that the probe sets them after every step"
                    )

    def step_on(self, network: ResidualMLP, lr: float, decay: float = 0.0) -> tuple[Step, list[torch.optim.Optimizer]]:
        """Its step on a network, and the optimizers that make it: itself, and AdamW for vectors that it refuses."""
        matrices, vectors = ([p for p in network.parameters() if (p.ndim == 1) == flat] for flat in (False, True))
        given: Any = {
            ALL: [*matrices, *vectors],
            MARKED: [{"params": matrices, "use_muon": True}, {"params": vectors, "use_muon": False}],
            MATRICES: matrices,
        }[self.grouping]
        decays: dict[str, Any] = {name: decay if name == "weight_decay" else 0.0 for name in self.decays}
        with self._own_words("it cannot be built"):
            optimizers = [self.kind(given, lr=lr, **decays, **self.arguments)]
        if self.grouping == MATRICES:
            optimizers.append(torch.optim.AdamW(vectors, lr=lr, eps=1e-16, weight_decay=0.0))

        def step(*_: Any) -> None:
            for optimizer in optimizers:
                with self._own_words("its step fails"):
                    optimizer.step()

        return step, optimizers

    def first_update(self, lr: float, decay: float = 0.0) -> Update:
        """Its first update at this learning rate and weight decay, always from one start on the smallest network."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # for optimizers that draw numbers
            network = build_network(self.settings, *self.settings.base, seed=0).to(self.dtype)
            step, optimizers = self.step_on(network, lr, decay)
            steps = updates(self.path, network, step, self.settings, seed=0)
            for number, (_, before, change) in enumerate(steps, 1):
                if any(added.ndim > 1 and added.any() for added in change.values()):
                    held = ChainMap(*(optimizer.state for optimizer in optimizers))
                    state = {
                        name: {key: value for key, value in held.get(parameter, {}).items() if torch.is_tensor(value)}
                        for name, parameter in network.named_parameters()
                    }
                    return Update(number, before, change, state)
        raise self.refusal(f"it changed no matrix in {number} steps; does it warm up? Give it more --steps")

    def refusal(self, reason: str) -> UserError:
        """The error that says why it cannot be probed."""
        return UserError(f"--optimizer {self.path} cannot be probed: {reason}")

    @contextmanager
    def _own_words(self, what: str) -> Iterator[None]:
        """Whatever somebody else's code raises is news for the user, not our fault."""
        try:
            yield
        except Exception as error:
            words = f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]
            raise self.refusal(f"{what}: {words}") from error


def external_subject(path: str, arguments: dict[str, Any], settings: ProbeSettings) -> Subject:
    """The torch optimizer class "package.module:Class", built with these arguments. UserError: it cannot be probed."""
    external = External(path, arguments, settings)
    learning_rate = _learning_rate(external)
    # If steps are proportional, the same large rate as for our own. If not its own rate, in float64, or the weight's
    # last digits would drown a small step.
    rate, dtype = (LR, torch.float32) if learning_rate["proportional"] else (external.lr, torch.float64)
    names = packages_distributions().get(external.kind.__module__.partition(".")[0])
    facts = {
        "arguments": arguments,
        "learning_rate": learning_rate,
        "weight_decay": _weight_decay(external),
        "grouping": external.grouping,
        "package": f"{names[0]} {version(names[0])}" if names else None,
    }
    roles = tuple(role for role in Role if external.grouping != MATRICES or not role.is_vector)
    return Subject(path, lambda network, r_n, r_L: external.step_on(network, rate)[0], rate, dtype, roles, facts=facts)


def _learning_rate(external: External) -> dict[str, Any]:
    """Whether twice the rate, and a very large one, give the same direction at that multiple; in plain values."""
    matrices, vectors = _differences(external, 2 * external.lr)
    proportional = False
    if matrices > SAME:
        meaning = "not proportional to the learning rate: the proposed factors on it are only a first guess, "
        meaning += "and exponents hold for this rate"
    else:
        with suppress(UserError):
            proportional = _differences(external, LR)[0] <= SAME
        own = "; those of vectors are not (does it have another rate for them?)" * (vectors > SAME)
        meaning = "proportional to the learning rate"
        meaning += own if proportional else ", but not up to very large ones; probed at this rate"
    return {
        "default": external.lr,
        "first_moving_step": external.once.number,
        "proportional": proportional,
        "difference": matrices,
        "meaning": f"steps are {meaning}",
    }


def _differences(external: External, lr: float) -> list[float]:
    """The largest relative difference of a step at this rate, scaled back, from the first: of matrices, of vectors."""
    change, worst = external.first_update(lr).change, [0.0, 0.0]
    for name, step in external.once.change.items():
        difference = float((change[name] / (lr / external.lr) - step).norm())
        relative = difference / float(step.norm()) if step.any() else (float("inf") if difference else 0.0)
        worst[step.ndim < 2] = max(worst[step.ndim < 2], relative)
    return worst


def _weight_decay(external: External) -> dict[str, Any]:
    """How weight decay enters a step, in plain values: is the difference that it makes -lr · decay · W?"""
    kind, factor = "none", None
    if "weight_decay" in external.decays:
        # At a small rate, where float64 allows it: many classes take the decay off the stepped weight, W + ΔW.
        lr, same = (1e-3 * external.lr, 0.01) if external.dtype == torch.float64 else (external.lr, 0.05)
        without, decayed = (external.first_update(lr, decay) for decay in (0.0, DECAY))
        # If the numbers differ, it moved by decay alone before it moved by gradients.
        moved = 1.0 if decayed.number == without.number else 0.0
        names = [name for name, weight in without.before.items() if weight.ndim > 1]
        W = torch.cat([decayed.before[name].flatten() for name in names])
        D = torch.cat([(decayed.change[name] - moved * without.change[name]).flatten() for name in names])
        expected = -lr * DECAY * W
        factor = float(D @ expected / (expected @ expected))
        if D.norm() <= 1e-6 * expected.norm():
            kind, factor = "ignored", 0.0
        elif float((D - factor * expected).norm() / D.norm()) > same:
            kind, factor = "coupled", None
        else:
            kind = "decoupled" if abs(factor - 1) <= same else "fixed" if abs(factor * lr - 1) <= same else "scaled"
    return {"kind": kind, "factor": factor, "meaning": DECAY_MEANINGS[kind].format(factor=factor)}
