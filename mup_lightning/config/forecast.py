"""The forecast of a run's loss, as `mup-lightning forecast` writes it, and which run it is of. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from mup_lightning.config.schema import Config
from mup_lightning.errors import UserError, located
from mup_lightning.files import read_json
from mup_lightning.typed import build

CURVE_POINTS = 50
"""Equal parts of a run whose mean training losses are its curve: in a sweep's files of trials, and here."""

Point = tuple[float, float, float, float]
"""Share of the run that is done, the training loss there, and the ends of its 95 % prediction interval."""


@dataclass(frozen=True)
class Forecast:
    """What is expected of one run, and what it rests on.

    Attributes:
        parameters: of the model, of N `target_size` (12 depth width²).
        tokens: of the run.
        tokenizer: of the corpus.
        corpus: its hash; empty: unknown.
        loss: validation loss after the last step, nats per token.
        low: lower end of its 95 % prediction interval.
        high: upper end.
        widened: how many times wider the interval is than the fit's own, because the fit missed `held_out`.
        curve: points along the run, after the warm-up; empty: the ladder has no curves.
        flops: of the run, with those of the optimizer's iterations.
        hours: at the speed asked for; None: none was.
        beyond: how many times the ladder's largest FLOPs, N and tokens these are.
        law: E, A, alpha, B, beta, of those of N and D that vary in the ladder.
        held_out: the ladder's largest run, predicted from the others; None: too few.
        caveats: why it may be wrong, in words.
        cells: of the ladder, as fitted.
        sources: the tables.
    """

    parameters: int
    target_size: float
    tokens: int
    tokenizer: str
    corpus: str
    loss: float
    low: float
    high: float
    widened: float
    curve: list[Point]
    flops: float
    hours: float | None
    beyond: dict[str, float]
    law: dict[str, float]
    held_out: dict[str, float] | None
    caveats: list[str]
    cells: list[dict[str, Any]]
    sources: list[str]

    @classmethod
    def read(cls, file: Path) -> Self:
        """The contents of forecast.json. Raises UserError where it cannot be read, or is something else."""
        with located(file):
            return build(cls, read_json(file, "what mup-lightning forecast has written"))

    def refuse_other(self, config: Config, parameters: int, corpus: str = "") -> None:
        """Raise UserError unless this is a run of that many parameters, and on that corpus where both are known."""
        for name, own, theirs in (
            ("parameters", self.parameters, parameters),
            ("tokens", self.tokens, config.tokens),
            ("tokenizer", self.tokenizer, config.data.tokenizer),
            ("corpus", self.corpus, corpus),
        ):
            if own != theirs and own and theirs:
                texts = [f"{value:,}" if isinstance(value, int) else value for value in (own, theirs)]
                of = f"its {name} {texts[0]}, this run's {texts[1]}"
                raise UserError(f"the forecast is of another run: {of}; make one of this run (mup-lightning forecast)")

    def __str__(self) -> str:
        """The loss with its interval, for people."""
        return f"{self.loss:.3f} nats per token, 95 % between {self.low:.3f} and {self.high:.3f}"
