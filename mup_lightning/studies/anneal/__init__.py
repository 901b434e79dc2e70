"""One trunk, many horizons: runs of several lengths that share a trunk; here the options."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from mup_lightning.typed import Bound, NonNegativeInt, OpenUnitInterval, PositiveInt, Share, Typed

Steps = Annotated[tuple[PositiveInt, ...], Bound("one number of steps or more, such as 400,800,1600", bool)]


@dataclass
class AnnealSettings(Typed, prefix="--"):
    """Runs of several lengths for little more than the longest.

    Each is a branch of one trunk: it continues from the trunk's newest checkpoint before its decay begins, and equals
    to the bit a whole run of that length with schedule.kind wsd and the trunk's warm-up. Branches train in one process
    each, several at a time, in run folders of their own. After a stop, the same command continues and repeats none.

    Attributes:
        run: the trunk's folder: a run of schedule.kind constant, or wsd. Its trainer.checkpoint_every and
            trainer.keep_checkpoints say which checkpoints there are: best where the decays begin.
        steps: lengths of the branches, warm-up and decay included.
        decay: share of a branch that its decay takes.
        floor: where decays end, as a share of the peak; null: as the trunk's schedule says.
        out: folder of the branches and their table, results.csv; null: that of the trunk, with -anneal added.
        workers: processes; null: one for each core or GPU, as memory allows; 0: run in this process.
    """

    run: Path
    steps: Steps
    decay: OpenUnitInterval = 0.2
    floor: Share | None = None
    out: Path | None = None
    workers: NonNegativeInt | None = None
