"""What a case is measured at."""

from __future__ import annotations

from dataclasses import dataclass

from mup_lightning.config.schema import TokenizerName
from mup_lightning.errors import UserError


@dataclass(frozen=True)
class Settings:
    """Shape, batch and amount of measuring; a case may add to it.

    Attributes:
        width: of the model.
        depth: blocks of the model.
        context: tokens in a sequence.
        batch: sequences in a step.
        tokenizer: gpt2 (50304 rows in the embedding) or bytes (256).
        rounds: how often all contenders take turns; each round gives one figure per contender.
        steps: timed in each turn.
        warmup: steps before them.
        threads: CPU threads of torch.
        patience: minutes for which rounds that other programs disturbed are repeated.
    """

    width: int
    depth: int
    context: int
    batch: int
    tokenizer: TokenizerName
    rounds: int
    steps: int
    warmup: int
    threads: int = 2
    patience: float = 0.0

    def __post_init__(self) -> None:
        """Raise UserError for what cannot be measured."""
        for key in ("rounds", "steps", "threads"):
            if getattr(self, key) < 1:
                raise UserError(f"--{key} is {getattr(self, key)}; expected a whole number of at least 1")

    @property
    def tokens(self) -> int:
        """Trained on in one step."""
        return self.batch * self.context
