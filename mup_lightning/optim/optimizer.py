"""One torch Optimizer that holds many rules, one per parameter group: DeepSpeed and Lightning take exactly one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from mup_lightning.distributed import collectives as exchange
from mup_lightning.distributed.layout import Layout, assign
from mup_lightning.optim.adamw import AdamW
from mup_lightning.optim.lion import Lion
from mup_lightning.optim.muon import Muon
from mup_lightning.optim.muon_kimi import MuonKimi
from mup_lightning.optim.rule import Group, Item, Rule, State
from mup_lightning.optim.sgd import SGD
from mup_lightning.optim.shampoo import Shampoo
from mup_lightning.optim.soap import SOAP
from mup_lightning.optim.sophia import Sophia
from mup_lightning.optim.sso import SSO

RULES: dict[str, Rule] = {
    rule.name: rule for rule in (AdamW(), MuonKimi(), Muon(), SGD(), Lion(), Sophia(), Shampoo(), SOAP(), SSO())
}


Watch = Callable[[Group, list[str], list[Item], list[torch.Tensor]], None]
"""Told of a group, the names of parameters, what was stepped, and the parameters before."""


class HybridOptimizer(Optimizer):
    """Steps every group by the rule that its key "rule" names, in one process or in many.

    Where all processes hold all parameters, each process works on its share of the matrices and sends the others the
    new weights; a matrix's state lives at its owner alone. Where ZeRO has replaced a group's parameters by a flat part
    of them (`set_layout`), elementwise rules step that part, and matrices come together at their owners.

    Args:
        groups: from `groups.make_groups`: dicts with "params", "names", "blocks", "transposed", "rule", "lr",
            "weight_decay", "eps" and the rule's own hyper-parameters.
        check: refuse gradients that are not finite before any rule sees one. That is one pass over them; whoever has
            checked them already may leave it out.
        share_work: whether processes share the work on matrices; without it each does all of it.

    Attributes:
        originals: parameter by name, as the model holds it.
        before_update: called in every step when gradients are there, just before weights change. (torch's pre-hooks
            come before the closure, which Lightning trains in.)
        watch: if set, told of every step of whole parameters, in the process that made it.
        layouts: flat tensor -> its layout; empty where groups hold the parameters themselves.
        matrix_states: a matrix's state by name, where groups hold flat tensors.
    """

    def __init__(self, groups: list[dict[str, Any]], *, check: bool = True, share_work: bool = True) -> None:
        super().__init__(groups, defaults={})
        self.check, self.share_work = check, share_work
        for group in self.param_groups:
            # Recorded before any wrapper flattens them.
            group["shapes"] = [tuple(parameter.shape) for parameter in group["params"]]
            group.setdefault("transposed", [False] * len(group["params"]))
        self.originals: dict[str, torch.Tensor] = {
            name: parameter
            for group in self.param_groups
            for name, parameter in zip(group["names"], group["params"], strict=True)
        }
        self.before_update: Callable[[], None] | None = None
        self.watch: Watch | None = None
        self.layouts: dict[torch.Tensor, Layout] = {}
        self.matrix_states: dict[str, State] = {}
        self._hessians: dict[torch.Tensor, torch.Tensor] = {}
        self._owners: dict[Any, dict[str, int]] = {}

    def set_layout(self, flat: torch.Tensor, layout: Layout) -> None:
        """Say what a flat tensor, which has taken the place of a group's parameters, is made of."""
        self.layouts[flat] = layout

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of all groups. Parameters without a gradient stay as they are.

        Raises:
            FloatingPointError: a gradient holds a NaN or an infinity; no parameter and no state has changed.
            RuntimeError: an estimate of the Hessian is due and was not given, or a whole-matrix rule would get
                something else than whole matrices; nothing has changed either.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._refuse_parts(group)
        if self.check:
            self._refuse({p: p.grad for group in self.param_groups for p in group["params"] if p.grad is not None})
        missing = [
            original
            for original, held in self._due()
            if original not in self._hessians and (held in self.layouts or held.grad is not None)
            if any(held is parameter for group in self.param_groups for parameter in group["params"])
        ]
        if missing:
            raise RuntimeError(
                f"{self._names(missing)} need an estimate of the Hessian's diagonal before this step: make it with "
                f"hessian.estimate and hand it in with give_hessian"
            )
        if self.before_update:
            self.before_update()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter in self.layouts:
                    self._step_flat(group, parameter)
            if group["params"] and group["params"][0] not in self.layouts:
                self._step_whole(group)
        return loss

    def _step_whole(self, group: Group) -> None:
        """Step parameters that all processes hold, each process its share where the rule works on matrices."""
        rank, _ = exchange.rank_and_world()
        owners = self._owners_in(group, None)
        present = [index for index, parameter in enumerate(group["params"]) if parameter.grad is not None]
        mine = [index for index in present if owners is None or owners[group["names"][index]] == rank]
        items = [
            Item(
                parameter,
                parameter.grad,
                self.state[parameter],
                group["blocks"][index],
                group["transposed"][index],
                self._hessians.pop(parameter, None),
            )
            for index, parameter in ((index, group["params"][index]) for index in mine)
        ]
        self._update(group, [group["names"][index] for index in mine], items)
        if owners is not None:
            parameters = [group["params"][index] for index in present]
            exchange.share(parameters, [owners[group["names"][index]] for index in present])

    def _step_flat(self, group: Group, flat: torch.Tensor) -> None:
        """Step a flat part of a group, as ZeRO hands it over."""
        rule, layout = RULES[group["rule"]], self.layouts[flat]
        assert flat.grad is not None
        if not rule.whole_matrix:
            rule.update(group, [Item(flat, flat.grad, self.state[flat], 1, False, self._flat_hessian(group, flat))])
            return
        owners = self._owners_in(group, flat)
        assert owners is not None
        places = {name: index for index, name in enumerate(group["names"])}

        def update(names: list[str], weights: list[torch.Tensor], gradients: list[torch.Tensor]) -> None:
            items = [
                Item(
                    weight,
                    gradient,
                    self.matrix_states.setdefault(name, {}),
                    group["blocks"][places[name]],
                    group["transposed"][places[name]],
                )
                for name, weight, gradient in zip(names, weights, gradients, strict=True)
            ]
            self._update(group, names, items)

        shapes = dict(zip(group["names"], group["shapes"], strict=True))
        exchange.with_whole(layout, owners, flat, flat.grad, shapes, update)

    def _update(self, group: Group, names: list[str], items: list[Item]) -> None:
        """Let the rule step whole parameters, under the eyes of `watch`."""
        if not items:
            return
        before = [item.parameter.clone() for item in items] if self.watch else []
        RULES[group["rule"]].update(group, items)
        if self.watch:
            self.watch(group, names, items, before)

    def _owners_in(self, group: Group, flat: torch.Tensor | None) -> dict[str, int] | None:
        """Who works on which matrix of a group, or of a flat part of it; None: every process steps all that it has."""
        rule, world_size = RULES[group["rule"]], exchange.rank_and_world()[1]
        if not rule.whole_matrix or (flat is None and not (self.share_work and world_size > 1)):
            return None
        # Over all parameters, with a gradient or without: an owner keeps the state, so it must not change.
        held = None if flat is None else self.layouts[flat].held
        names = group["names"] if held is None else list(held)
        key = (flat, names[0])
        if key not in self._owners:
            costs = {name: _cost(rule, group, group["names"].index(name)) for name in names}
            self._owners[key] = assign(costs, world_size, held)
        return self._owners[key]

    def kept(self, rank: int, *, once: bool = False) -> dict[str, tuple[torch.Tensor, State]]:
        """The parameters whose whole state this process keeps: name -> the parameter as the model holds it, its state.

        Args:
            rank: this process's.
            once: leave out, but on rank 0, what every process keeps.
        """
        kept: dict[str, tuple[torch.Tensor, State]] = {}
        for group in self.param_groups if not self.layouts else ():
            owners = self._owners_in(group, None)
            for name, parameter in zip(group["names"], group["params"], strict=True):
                if (not once or rank == 0) if owners is None else owners[name] == rank:
                    kept[name] = (parameter, self.state[parameter])
        for flat in self.layouts:
            for name, owner in (self._owners_in(self._group_of(flat), flat) or {}).items():
                if owner == rank:
                    kept[name] = (self.originals[name], self.matrix_states.setdefault(name, {}))
        return kept

    def elementwise_flats(self) -> dict[torch.Tensor, Layout]:
        """The flat tensors that elementwise rules step; their states are as flat."""
        return {f: layout for f, layout in self.layouts.items() if not RULES[self._group_of(f)["rule"]].whole_matrix}

    def _group_of(self, flat: torch.Tensor) -> Group:
        some = next(iter(self.layouts[flat].held))
        return next(group for group in self.param_groups if some in group["names"])

    def _flat_hessian(self, group: Group, flat: torch.Tensor) -> torch.Tensor | None:
        """The estimate of the Hessian's diagonal for this process's part, if one was given."""
        originals = {name: self.originals[name] for name in self.layouts[flat].held}
        if not any(original in self._hessians for original in originals.values()):
            return None
        part = torch.zeros_like(flat)
        for fragment in self.layouts[flat].ranks[exchange.rank_and_world()[0]]:
            diagonal = self._hessians[originals[fragment.name]].flatten()
            part[fragment.offset : fragment.offset + fragment.length] = diagonal[fragment.start :][: fragment.length]
        for original in originals.values():
            self._hessians.pop(original, None)
        return part

    def wants_hessian(self) -> list[torch.Tensor]:
        """The parameters whose rule needs an estimate of the Hessian's diagonal before the coming step; mostly none."""
        return [original for original, _ in self._due()]

    def _due(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The parameters of `wants_hessian`, each with the tensor that is stepped in its place."""
        return [
            (original, held)
            for group in self.param_groups
            if "hessian_every" in group
            for original, held in self._members(group)
            if self.state.get(held, {}).get("step", 0) % group["hessian_every"] == 0
        ]

    def _members(self, group: Group) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """A group's parameters as the model holds them, each with the tensor that is stepped in its place."""
        if not self.layouts:
            return [(parameter, parameter) for parameter in group["params"]]
        flats = {name: flat for flat, layout in self.layouts.items() for name in layout.held}
        return [(self.originals[name], flats[name]) for name in group["names"]]

    def give_hessian(self, parameters: list[torch.Tensor], diagonals: list[torch.Tensor]) -> None:
        """Hand in estimates for the coming step, each of its parameter's shape.

        Raises:
            FloatingPointError: an estimate holds a NaN or an infinity; none was taken.
        """
        estimates = dict(zip(parameters, diagonals, strict=True))
        self._refuse(estimates)
        self._hessians = estimates

    def _refuse_parts(self, group: Group) -> None:
        """Refuse to hand a whole-matrix rule anything but whole matrices: it would be another algorithm."""
        found = [tuple(parameter.shape) for parameter in group["params"] if parameter not in self.layouts]
        if RULES[group["rule"]].whole_matrix and found and found != group["shapes"]:
            raise RuntimeError(
                f"{group['rule']} works on whole matrices, but {group['names'][0]} and others of its group have become "
                f"{found[0]}; they were {group['shapes'][0]}. The strategy has to say how it parts them (set_layout)"
            )

    def _refuse(self, tensors: dict[torch.Tensor, torch.Tensor]) -> None:
        """Raise if a value is not finite. Only where the norm, the quickest pass, is not: it may have overflowed."""
        if torch.isfinite(get_total_norm(tensors.values())):
            return
        bad = [parameter for parameter, tensor in tensors.items() if not torch.isfinite(tensor).all()]
        if not bad:
            return
        raise FloatingPointError(
            f"the gradient, or the estimate of the Hessian, of {self._names(bad)} holds a NaN or an infinity; expected "
            f"finite numbers. No parameter and no state was changed: lower the learning rate, or skip this batch"
        )

    def _names(self, parameters: list[torch.Tensor]) -> str:
        names = [name for name, original in self.originals.items() if any(original is p for p in parameters)]
        return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _cost(rule: Rule, group: Group, index: int) -> float:
    rows, columns = group["shapes"][index]
    blocks = group["blocks"][index]
    return blocks * rule.cost(rows // blocks, columns)
