"""A large model's base value from small ones; here its options, in addition to those of the target model."""

from dataclasses import dataclass, field
from pathlib import Path

from mup_lightning.errors import UserError
from mup_lightning.typed import NonNegativeInt, PositiveFloat, Typed, key_of

SWEEP, LAW_SWEEP = Path("recipes/experiment/tune.yaml"), Path("recipes/experiment/tune_law.yaml")

FURTHER = 2  # powers of two by which the grid grows where the best value is the last one tried
ROUNDS = 4  # how often the sweep is run, each time with a larger grid


@dataclass
class TuneSettings(Typed, prefix="--"):
    """The learning rate, or another base value, is found by a sweep over small models.

    The options of `mup-lightning train` say what the large model is. The small ones are like it but for their size,
    which shows whether the best value stays where it is. The value and the large model's whole configuration are
    written as a recipe file. After a stop, the same command continues.

    Attributes:
        law: vary the tokens of the run and of a step, too, and fit one law of the best learning rate over width, depth,
            tokens and batch, which recipe.time_rule of the file written uses.
        budget: minutes that the runs of the law may take: sizes reach as far as these allow; null: as the file says.
        sweep: the small models; null: recipes/experiment/tune.yaml, or tune_law.yaml.
        results: folder of a finished sweep, or its results.csv: use these results, and run nothing.
        out: folder of all results; null: runs/tune/NAME, by run.name.
        set: KEY=VALUE, a fixed value of the small models; may be repeated.
        workers: processes; null: one for each core or GPU, as memory allows; 0: run in this process.
        dry_run: list the small models and what they cost, and run none.
    """

    law: bool = False
    budget: PositiveFloat | None = None
    sweep: Path | None = None
    results: Path | None = None
    out: Path | None = None
    set: list[str] = field(default_factory=list)
    workers: NonNegativeInt | None = None
    dry_run: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [name for name in ("sweep", "set", "workers", "dry_run", "budget") if getattr(self, name)]
        if self.results and names:
            options = ", ".join(key_of(TuneSettings, name) for name in names)
            raise UserError(f"--results uses what is there and runs nothing; leave out {options}")
        if self.budget and not self.law:
            raise UserError("--budget says how far the sizes of --law reach; give both, or neither")
