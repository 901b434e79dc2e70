"""One torch Optimizer that holds many rules, one per parameter group: DeepSpeed and Lightning take exactly one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from mup_lightning.optim.adamw import AdamW
from mup_lightning.optim.lion import Lion
from mup_lightning.optim.muon import Muon
from mup_lightning.optim.muon_kimi import MuonKimi
from mup_lightning.optim.rule import Item, Rule
from mup_lightning.optim.sgd import SGD
from mup_lightning.optim.shampoo import Shampoo
from mup_lightning.optim.soap import SOAP
from mup_lightning.optim.sophia import Sophia
from mup_lightning.optim.sso import SSO

RULES: dict[str, Rule] = {
    rule.name: rule for rule in (AdamW(), MuonKimi(), Muon(), SGD(), Lion(), Sophia(), Shampoo(), SOAP(), SSO())
}


class HybridOptimizer(Optimizer):
    """Steps every group by the rule that its key "rule" names.

    Args:
        groups: from `groups.make_groups`: dicts with "params", "names", "blocks", "rule", "lr", "weight_decay", "eps"
            and the rule's own hyper-parameters.
        check: refuse gradients that are not finite before any rule sees one. That is one pass over them; whoever has
            checked them already may leave it out.
    """

    def __init__(self, groups: list[dict[str, Any]], *, check: bool = True) -> None:
        super().__init__(groups, defaults={})
        self.check = check
        self._hessians: dict[torch.Tensor, torch.Tensor] = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of all groups. Parameters without a gradient stay as they are.

        Raises:
            FloatingPointError: a gradient holds a NaN or an infinity; no parameter and no state has changed.
            RuntimeError: an estimate of the Hessian is due and was not given; nothing has changed either.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self.check:
            self._refuse({p: p.grad for group in self.param_groups for p in group["params"] if p.grad is not None})
        missing = [p for p in self.wants_hessian() if p.grad is not None and p not in self._hessians]
        if missing:
            raise RuntimeError(
                f"{self._names(missing)} need an estimate of the Hessian's diagonal before this step: make it with "
                f"hessian.estimate and hand it in with give_hessian"
            )
        for group in self.param_groups:
            items = [
                Item(parameter, parameter.grad, self.state[parameter], blocks, self._hessians.pop(parameter, None))
                for parameter, blocks in zip(group["params"], group["blocks"], strict=True)
                if parameter.grad is not None
            ]
            if items:
                RULES[group["rule"]].update(group, items)
        return loss

    def wants_hessian(self) -> list[torch.Tensor]:
        """The parameters whose rule needs an estimate of the Hessian's diagonal before the coming step; mostly none."""
        return [
            parameter
            for group in self.param_groups
            if "hessian_every" in group
            for parameter in group["params"]
            if self.state.get(parameter, {}).get("step", 0) % group["hessian_every"] == 0
        ]

    def give_hessian(self, parameters: list[torch.Tensor], diagonals: list[torch.Tensor]) -> None:
        """Hand in estimates for the coming step, each of its parameter's shape.

        Raises:
            FloatingPointError: an estimate holds a NaN or an infinity; none was taken.
        """
        estimates = dict(zip(parameters, diagonals, strict=True))
        self._refuse(estimates)
        self._hessians = estimates

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
        wanted = set(parameters)
        pairs = [pair for group in self.param_groups for pair in zip(group["params"], group["names"], strict=True)]
        names = [name for parameter, name in pairs if parameter in wanted]
        return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
