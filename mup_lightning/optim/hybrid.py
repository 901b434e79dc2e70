"""One torch Optimizer that holds many rules, one per parameter group: DeepSpeed and Lightning take exactly one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

from mup_lightning.optim.adamw import AdamW
from mup_lightning.optim.muon_kimi import MuonKimi
from mup_lightning.optim.rule import Item, Rule

RULES: dict[str, Rule] = {rule.name: rule for rule in (AdamW(), MuonKimi())}


class HybridOptimizer(Optimizer):
    """Steps every group by the rule that its key "rule" names.

    Args:
        groups: from `groups.make_groups`: dicts with "params", "names", "blocks", "rule", "lr", "weight_decay", "eps"
            and the rule's own hyper-parameters.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, defaults={})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of all groups. Parameters without a gradient stay as they are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            items = [
                Item(parameter, parameter.grad, self.state[parameter], blocks)
                for parameter, blocks in zip(group["params"], group["blocks"], strict=True)
                if parameter.grad is not None
            ]
            if items:
                RULES[group["rule"]].update(group, items)
        return loss
