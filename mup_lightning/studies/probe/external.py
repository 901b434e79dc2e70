"""Any torch optimizer class as a candidate: found by its import path, built without weight decay, looked at first."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from importlib.metadata import packages_distributions, version
from typing import Any

import torch

from mup_lightning.errors import UserError
from mup_lightning.spectral.roles import Role
from mup_lightning.studies.probe.candidate import Candidate, Stepper
from mup_lightning.studies.probe.checks import check_decay, check_lr, check_state
from mup_lightning.studies.probe.mover import Mover
from mup_lightning.studies.probe.network import ResidualMLP
from mup_lightning.studies.probe.ours import LR
from mup_lightning.studies.probe.settings import ProbeSettings

ADAMW_EPS = 1e-16
"""Of the AdamW that vectors get where the class takes matrices alone."""

ALL, MARKED, MATRICES = (
    "all parameters",
    "matrices and vectors, told apart by use_muon",
    "matrices alone, vectors: AdamW",
)
"""How parameters are handed over, in the order that is tried. `use_muon` is the key that Muon's own code and its
descendants look for in parameter groups."""


def foreign_candidate(path: str, arguments: dict[str, Any], settings: ProbeSettings) -> Candidate:
    """A torch optimizer class as a candidate, after a look at how it uses its learning rate and weight decay.

    Args:
        path: "package.module:Class".
        arguments: for its constructor, beside parameters, lr and weight decay.
        settings: of the probe; its smallest network is what the looks are taken on.

    Raises:
        UserError: there is no such class, or it cannot be probed; says why.
    """
    kind = load_class(path)
    build = _Builder(kind, path, arguments)
    seen = Mover(path, settings, lambda network, lr, decay: build(network, lr, decay))
    _choose_grouping(seen, build)
    lr = check_lr(seen, build.default_lr(), LR)
    check_state(seen, lr.default)
    decay = check_decay(seen, lr.default) if build.has_decay else None
    # Proportional: the same large rate as for our own. Otherwise its own rate, in float64, or the weight's last digits
    # would drown a small step.
    rate, dtype = (LR, torch.float32) if lr.proportional else (lr.default, torch.float64)
    roles = tuple(role for role in Role if build.grouping != MATRICES or not role.is_vector)
    facts = {
        "arguments": arguments,
        "learning_rate": lr.as_plain(),
        "weight_decay": decay.as_plain() if decay else {"kind": "none", "meaning": "it has no weight decay"},
        "grouping": build.grouping,
        "package": _package(kind),
    }
    return Candidate(
        path,
        lambda network, r_n, r_L: build(network, rate, 0.0),
        rate,
        lambda role, r_n, r_L: lr.default,
        dtype,
        roles,
        {},
        facts,
    )


def load_class(path: str) -> type[torch.optim.Optimizer]:
    """Import a torch optimizer class.

    Raises:
        UserError: naming the part of the path that is wrong.
    """
    module_name, _, name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(
            f"--optimizer {path}: cannot import {module_name} ({error}). Expected package.module:Class of an installed "
            f"package, such as torch.optim:RMSprop"
        ) from error
    kind = getattr(module, name, None)
    if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
        raise UserError(f"--optimizer {path}: {module_name} has no torch optimizer class {name!r}")
    if "lr" not in inspect.signature(kind).parameters:
        raise UserError(f"--optimizer {path}: its constructor has no argument lr, so the probe cannot set it")
    closure = inspect.signature(kind.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise UserError(
            f"--optimizer {path}: its step needs a closure that evaluates the loss again; the probe steps from "
            f"gradients alone and cannot measure it"
        )
    return kind


class _Builder:
    """Makes steppers of one class on any network.

    Attributes:
        grouping: how it is given the parameters.
        has_decay: whether its constructor knows weight_decay.
    """

    def __init__(self, kind: type[torch.optim.Optimizer], path: str, arguments: dict[str, Any]) -> None:
        self.kind, self.path, self.arguments = kind, path, arguments
        self.grouping = ALL
        self.parameters = inspect.signature(kind).parameters
        self.has_decay = "weight_decay" in self.parameters
        for name in ("lr", *self._decays()):
            if name in arguments:
                raise UserError(f"--arguments has {name!r}, which the probe sets itself; leave it out")

    def default_lr(self) -> float:
        """The constructor's own learning rate; 1e-3 where it has none."""
        default = self.parameters["lr"].default
        return float(default) if isinstance(default, (int, float)) and default > 0 else 1e-3

    def _decays(self) -> list[str]:
        """Constructor arguments that are weight decays; libraries have others for vectors."""
        return [
            name
            for name, parameter in self.parameters.items()
            if ("weight_decay" in name or name.endswith("_wd"))
            and isinstance(parameter.default, (int, float))
            and not isinstance(parameter.default, bool)
        ]

    def __call__(self, network: ResidualMLP, lr: float, decay: float) -> Stepper:
        matrices = [parameter for parameter in network.parameters() if parameter.ndim > 1]
        vectors = [parameter for parameter in network.parameters() if parameter.ndim == 1]
        mine: Any = {
            ALL: [*matrices, *vectors],
            MARKED: [{"params": matrices, "use_muon": True}, {"params": vectors, "use_muon": False}],
            MATRICES: matrices,
        }[self.grouping]
        decays: dict[str, Any] = dict.fromkeys(self._decays(), 0.0)
        if self.has_decay:
            decays["weight_decay"] = decay
        try:
            optimizer = self.kind(mine, lr=lr, **decays, **self.arguments)  # type: ignore[call-arg]
        except Exception as error:  # whatever a stranger's constructor raises is news for the user, not our fault
            raise UserError(f"--optimizer {self.path}: it cannot be built: {_words(error)}") from error
        alone = self.grouping == MATRICES
        others = [torch.optim.AdamW(vectors, lr=lr, eps=ADAMW_EPS, weight_decay=0.0)] if alone else []
        return ForeignStepper(self.path, [optimizer, *others])


class ForeignStepper:
    """See `candidate.Stepper`."""

    def __init__(self, path: str, optimizers: list[torch.optim.Optimizer]) -> None:
        self.path, self.optimizers = path, optimizers

    def step(self, loss_on_own_labels: Callable[[], torch.Tensor], draws: int) -> None:
        """See `candidate.Stepper`."""
        for optimizer in self.optimizers:
            try:
                optimizer.step()
            except Exception as error:  # as above
                raise UserError(f"--optimizer {self.path}: it cannot be probed; its step: {_words(error)}") from error


def _choose_grouping(seen: Mover, build: _Builder) -> None:
    """Take the first grouping that works. Raises the first one's error if none does."""
    first_error: UserError | None = None
    for build.grouping in (ALL, MARKED, MATRICES):
        seen.forget()
        try:
            seen.first(build.default_lr())
            return
        except UserError as error:
            first_error = first_error or error
    assert first_error is not None
    raise first_error


def _words(error: Exception) -> str:
    """An exception as one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]


def _package(kind: type) -> str | None:
    """The distribution that a class comes from, with its version."""
    names = packages_distributions().get(kind.__module__.partition(".")[0])
    return f"{names[0]} {version(names[0])}" if names else None
