"""The loss of a large model, forecast from small ones; here its options, in addition to those of the large model."""

from dataclasses import dataclass
from pathlib import Path

from mup_lightning.typed import PositiveFloat, Typed


@dataclass
class ForecastSettings(Typed, prefix="--"):
    """Fits a law of the loss over model size N and tokens D to a ladder of small models, and evaluates it.

    The options of `mup-lightning train` say what the large model is. The small ones are a sweep's, or several sweeps',
    over widths or depths and lengths, at several base values each. The largest is predicted from the others first,
    which shows what a forecast is worth. Written are forecast.json, for `train --run.forecast` and `plan --forecast`,
    and a figure.

    Attributes:
        results: folder of a sweep, or its results.csv; may be repeated.
        out: folder for what is written; null: runs/forecast/NAME, by run.name.
        speed: FLOP/s that the training will reach, all devices together; null: no hours are given.
    """

    results: list[Path]
    out: Path | None = None
    speed: PositiveFloat | None = None
