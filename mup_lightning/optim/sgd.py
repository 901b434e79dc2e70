"""SGD with momentum, as torch.optim.SGD, but with decoupled weight decay.

    M <- μM + G
    A  = M      (with Nesterov G + μM)
    W <- W - η(A + λW)

The arithmetic is torch's own fused kernel. Decay is decoupled because the recipe's λ is derived for it; without
momentum both kinds are the same.
"""

from torch.optim.sgd import sgd

from mup_lightning.errors import UserError
from mup_lightning.optim.rule import Group, Item, Rule
from mup_lightning.typed import UnitInterval


class SGD(Rule):
    """State of a parameter: `momentum` of its shape; none where the momentum is 0.

    Attributes:
        momentum: decay of the gradient's accumulation; 0: none.
        nesterov: look one step ahead along the momentum.
    """

    name = "sgd"
    chunks_made = 0  # the kernel is fused

    momentum: UnitInterval = 0.9
    nesterov: bool = False

    def __post_init__(self) -> None:
        """Raise UserError for Nesterov without momentum."""
        super().__post_init__()
        if self.nesterov and not self.momentum:
            raise UserError("rules.sgd.nesterov is true, but rules.sgd.momentum is 0; expected a momentum above 0")

    def start(self, group: Group, item: Item) -> None:
        """A momentum of zero, where there is one."""
        if group["momentum"]:
            super().start(group, item)

    def step(self, group: Group, items: list[Item]) -> None:
        """Decay first, then the fused kernel."""
        for item in items:
            if group["weight_decay"]:
                item.parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
        sgd(
            [item.parameter for item in items],
            [item.gradient for item in items],
            [item.state.get("momentum") for item in items],
            fused=True,
            weight_decay=0.0,
            momentum=group["momentum"],
            lr=group["lr"],
            dampening=0.0,
            nesterov=group["nesterov"],
            maximize=False,
        )
