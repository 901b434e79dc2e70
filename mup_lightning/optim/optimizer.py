"""One torch Optimizer that holds many rules, one per parameter group: DeepSpeed and Lightning take exactly one."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from mup_lightning.distributed.collectives import broadcast, rank_and_world, update_at_owners
from mup_lightning.distributed.layout import Layout, assign
from mup_lightning.model.parameters import ParameterInfo
from mup_lightning.optim.registry import RULES
from mup_lightning.optim.rule import Group, Item, Rule, State

Watch = Callable[[Group, list[ParameterInfo], list[Item], list[torch.Tensor]], None]
"""Called with a group, the parameters that were stepped, as the rule saw them, and their values before the step."""


@dataclass
class Held:
    """All that the optimizer knows of one parameter.

    Attributes:
        tensor: the parameter as the model holds it.
        info: recorded when the model was built.
        rule: that steps it.
        cost: operations of a step where the rule takes whole matrices: processes get equal shares of them.
        flat: ZeRO's flat tensor that has taken its place in its group; None where the group holds the tensor itself.
        owner: rank of the process that steps it and keeps its state; None: all of them do, each what it holds.
    """

    tensor: torch.Tensor
    info: ParameterInfo
    rule: Rule
    cost: float = 0.0
    flat: torch.Tensor | None = None
    owner: int | None = None

    @property
    def stepped(self) -> torch.Tensor:
        """What its group holds: itself, or the flat tensor."""
        return self.tensor if self.flat is None else self.flat


class HybridOptimizer(Optimizer):
    """Steps every group by the rule that its key "rule" names, in one process or in many.

    Where all processes hold all parameters, each process works on its share of the matrices and sends the others the
    new weights; a matrix's state is kept by its owner alone. Where ZeRO has replaced a group's parameters by a flat
    partition of them (`set_layout`), elementwise rules step that partition, and matrices come together at their owners.

    Args:
        groups: see `registry.make_groups`.

    Attributes:
        check: refuse gradients that are not finite before any rule sees one. That is one pass over them; a caller that
            has checked them already may leave it out.
        held: every parameter by name.
        layouts: flat tensor -> its layout; empty where groups hold the parameters themselves.
        before_update: called in every step when gradients are there, just before weights change. (torch's pre-hooks
            come before the closure, which Lightning trains in.)
        watch: if set, called after every step of whole parameters, in the process that made it.
    """

    def __init__(self, groups: list[Group]) -> None:
        super().__init__(groups, defaults={})
        self.check = True
        # Recorded before any wrapper flattens them.
        self.held: dict[str, Held] = {}
        for group in self.param_groups:
            rule = RULES[group["rule"]]
            for parameter, info in zip(group["params"], group["infos"], strict=True):
                cost = sum(rule.work(group, info).values()) if rule.whole_matrix else 0.0
                self.held[info.name] = Held(parameter, info, rule, cost)
        self.layouts: dict[torch.Tensor, Layout] = {}
        self.before_update: Callable[[], None] | None = None
        self.watch: Watch | None = None
        self._assigned = False
        # Estimates of the Hessian's diagonal for the coming step, by the tensors that are stepped.
        self._hessians: dict[torch.Tensor, torch.Tensor] = {}

    def set_layout(self, flat: torch.Tensor, layout: Layout) -> None:
        """Record the layout of a flat tensor, which has taken the place of a group's parameters."""
        self.layouts[flat] = layout
        for name in layout.held:
            self.held[name].flat = flat
        self._assigned = False

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
            self._refuse_not_finite(self._gradients())
        self._refuse_without_hessian()
        self._assign_owners()
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
        rank, _ = rank_and_world()
        present = [
            (self.held[info.name], parameter)
            for info, parameter in zip(group["infos"], group["params"], strict=True)
            if parameter.grad is not None
        ]
        self._update(group, [(held, p, p.grad) for held, p in present if held.owner in (None, rank)])
        broadcast([(parameter, held.owner) for held, parameter in present if held.owner is not None])

    def _step_flat(self, group: Group, flat: torch.Tensor) -> None:
        """Step a flat partition of a group, as ZeRO hands it over."""
        rule, layout = RULES[group["rule"]], self.layouts[flat]
        assert flat.grad is not None
        if not rule.whole_matrix:
            rule.update(group, [Item(flat, flat.grad, self.state[flat], hessian=self._hessians.pop(flat, None))])
            return

        def update(weights: dict[str, torch.Tensor], gradients: dict[str, torch.Tensor]) -> None:
            mine = []
            for name in weights:
                held = self.held[name]
                mine.append((held, weights[name].view(held.info.shape), gradients[name].view(held.info.shape)))
            self._update(group, mine)

        owners = {name: self.held[name].owner or 0 for name in layout.held}
        update_at_owners(layout, owners, flat, flat.grad, update)

    def _update(self, group: Group, mine: list[tuple[Held, torch.Tensor, torch.Tensor]]) -> None:
        """Let the rule step whole parameters, given with weights and gradients, under the eyes of `watch`."""
        items = []
        for held, weight, gradient in mine:
            blocks, hessian = held.rule.blocks(group, held.info), self._hessians.pop(held.tensor, None)
            state = self.state[held.tensor]
            items.append(Item(weight, gradient, state, blocks, held.info.transposed, hessian))
        if not items:
            return
        before = [item.parameter.clone() for item in items] if self.watch else []
        RULES[group["rule"]].update(group, items)
        if self.watch:
            self.watch(group, [held.info for held, _, _ in mine], items, before)

    def _assign_owners(self) -> None:
        """Decide who steps which matrix, once: an owner keeps the state, so it must not change.

        Over all parameters of a group or of a flat tensor, with a gradient or without; the same in all processes.
        """
        if self._assigned:
            return
        _, world_size = rank_and_world()
        shares = [(layout.held, layout.held) for layout in self.layouts.values()]
        whole = [(dict.fromkeys(info.name for info in group["infos"]), None) for group in self.param_groups]
        for names, counts in shares or whole:
            if self.held[next(iter(names))].rule.whole_matrix:
                for name, owner in assign({name: self.held[name].cost for name in names}, world_size, counts).items():
                    self.held[name].owner = owner
        self._assigned = True

    def kept(self, rank: int, *, once: bool = False) -> dict[str, tuple[torch.Tensor, State]]:
        """The parameters whose whole state this process keeps: name -> the parameter as the model holds it, its state.

        Args:
            rank: this process's.
            once: leave out, except on rank 0, what every process keeps.
        """
        self._assign_owners()
        mine = (None, rank) if rank == 0 or not once else (rank,)
        return {
            name: (held.tensor, self.state[held.tensor])
            for name, held in self.held.items()
            if held.owner in mine and (held.flat is None or held.owner is not None)
        }

    def wants_hessian(self) -> dict[str, torch.Tensor]:
        """The parameters whose rule needs an estimate of the Hessian's diagonal before the coming step; mostly none."""
        due = {}
        for group in self.param_groups:
            for info in group["infos"] if "hessian_every" in group else ():
                held = self.held[info.name]
                if self.state.get(held.stepped, {}).get("step", 0) % group["hessian_every"] == 0:
                    due[info.name] = held.tensor
        return due

    def give_hessian(self, estimates: Mapping[str, torch.Tensor]) -> None:
        """Hand in estimates for the coming step by the parameters' names, each of its parameter's shape.

        Raises:
            FloatingPointError: an estimate holds a NaN or an infinity; none was taken.
        """
        self._refuse_not_finite({f"the estimate of the Hessian of {name}": t for name, t in estimates.items()})
        rank, _ = rank_and_world()
        for name, estimate in estimates.items():
            held = self.held[name]
            if held.flat is None:
                self._hessians[held.tensor] = estimate
                continue
            partition = self._hessians.setdefault(held.flat, torch.zeros_like(held.flat))
            for fragment in self.layouts[held.flat].pieces[name][rank]:
                fragment.of_flat(partition).copy_(fragment.of_whole(estimate.flatten()))

    def _gradients(self) -> dict[str, torch.Tensor]:
        """Every gradient that is there, by what it is of."""
        found = {}
        for group in self.param_groups:
            for index, parameter in enumerate(group["params"]):
                names = self.layouts[parameter].held if parameter in self.layouts else [group["infos"][index].name]
                if parameter.grad is not None:
                    found[f"the gradient of {_listed(names)}"] = parameter.grad
        return found

    def _refuse_parts(self, group: Group) -> None:
        """Refuse to hand a rule anything but whole parameters, or flat ones whose layout is known.

        Raises:
            RuntimeError: a matrix rule would be another algorithm, and no rule's state would find its parameter.
        """
        found = [tuple(parameter.shape) for parameter in group["params"] if parameter not in self.layouts]
        if found and found != [info.shape for info in group["infos"]]:
            info = group["infos"][0]
            raise RuntimeError(
                f"{group['rule']} works on whole parameters, but {info.name} and others of its group have become "
                f"{found[0]}; they were {info.shape}. The strategy has to report its partitions (set_layout)"
            )

    def _refuse_without_hessian(self) -> None:
        """Without its estimate a step would be sign descent under another name."""
        # DeepSpeed steps one group after the other: only what is in a group now.
        stepped = {id(parameter) for group in self.param_groups for parameter in group["params"]}
        missing = [
            name
            for name, tensor in self.wants_hessian().items()
            if (held := self.held[name]).stepped not in self._hessians
            and (held.flat is not None or tensor.grad is not None)
            and id(held.stepped) in stepped
        ]
        if missing:
            raise RuntimeError(
                f"{_listed(missing)} need an estimate of the Hessian's diagonal before this step: make it with "
                f"sophia.estimate and hand it in with give_hessian"
            )

    @staticmethod
    def _refuse_not_finite(tensors: dict[str, torch.Tensor]) -> None:
        """Raise if a value is not finite. Only where the norm, the quickest pass, is not: it may have overflowed."""
        if torch.isfinite(get_total_norm(tensors.values())):
            return
        bad = [label for label, tensor in tensors.items() if not torch.isfinite(tensor).all()]
        if bad:
            raise FloatingPointError(
                f"{_listed(bad)}: NaN or infinity; expected finite numbers. No parameter and no state was changed: "
                f"lower the learning rate, or skip this batch"
            )


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    return ", ".join(every[:3]) + (f" and {len(every) - 3} more" if len(every) > 3 else "")
