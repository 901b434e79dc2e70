"""Case `depth`: what a layer costs in a training step of a deep model against a shallow one.

With t(L) for a whole step (forward, backward, clipping, update) at L blocks, two figures are told:

    time per layer          t(L) / L, as one feels it. Embedding and loss are in it, so shallow models look dear.
    time of a further layer (t(L) - t(1)) / (L - 1), the blocks alone: it would show anything that grows faster than L.

Taking t(1) away is steadier than (t(2L) - t(L)) / L: t(1) is the smallest time there is, so little noise comes in with
it, and it serves all depths.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from tests.benchmarks.process import measure
from tests.benchmarks.result import Quantity, quantity, ratio
from tests.benchmarks.rounds import take_rounds
from tests.benchmarks.settings import Settings

FUNCTION = "tests.benchmarks.depth:take_turn"
ONE = "L = 1"


@dataclass(frozen=True)
class DepthSettings(Settings):
    """`depth` is the deep model's; the timed steps are its own.

    Attributes:
        shallow: depth of the model to compare with.
    """

    shallow: int = 4

    @property
    def names(self) -> tuple[str, str, str]:
        """Deep, shallow, and shallow again (the control)."""
        return f"L = {self.depth}", f"L = {self.shallow}", f"L = {self.shallow} again"


DEFAULT = DepthSettings(width=64, depth=256, context=64, batch=8, tokenizer="bytes", rounds=5, steps=3, warmup=1)
QUICK = DepthSettings(width=32, depth=12, context=16, batch=2, tokenizer="bytes", rounds=2, steps=2, warmup=1)


def run(settings: Settings, say: Callable[[str], None]) -> list[Quantity]:
    """Measure time per layer; see the module's text.

    Args:
        settings: a `DepthSettings`.
        say: is told of every round.
    """
    assert isinstance(settings, DepthSettings)
    return quantities(take_rounds(settings, lambda: _take(settings), say), settings)


def _take(settings: DepthSettings) -> tuple[dict[str, Any], float, str]:
    """One round: what `take_turn` returned."""
    turn = measure(FUNCTION, {"settings": asdict(settings)}, settings.threads)
    layers = per_layer(turn["milliseconds"], settings)
    return turn, turn["others"], ", ".join(f"{value:.3f} ms a layer at {name}" for name, value in layers.items())


def take_turn(settings: dict[str, Any]) -> dict[str, Any]:
    """One round, all depths in turn: "milliseconds" of a step by name, and "others" (see `StepClock`)."""
    from mup_lightning.training.hardware import tune_allocator

    tune_allocator()
    from tests.benchmarks.depth_models import Stepper
    from tests.benchmarks.processor import OtherPrograms

    s = DepthSettings(**settings)
    deep, shallow, again = s.names
    depths = {deep: s.depth, shallow: s.shallow, ONE: 1}
    steppers = {name: Stepper(s, depth) for name, depth in depths.items()}
    for stepper in steppers.values():
        stepper.seconds(max(1, s.warmup))
    # As many layers are timed of the shallow models as of the deep one.
    counts = {deep: s.steps, shallow: s.steps * s.depth // s.shallow, ONE: s.steps * s.depth // s.shallow}
    order = [(shallow, shallow), (deep, deep), (again, shallow), (ONE, ONE)]
    processor = OtherPrograms()
    milliseconds = {name: 1e3 * steppers[model].seconds(counts[model]) for name, model in order}
    return {"milliseconds": milliseconds, "others": processor.cores()}


def per_layer(milliseconds: dict[str, float], settings: DepthSettings) -> dict[str, float]:
    """Milliseconds per layer by contender, from those of a step."""
    return {name: milliseconds[name] / depth for name, depth in _depths(settings).items()}


def further_layer(milliseconds: dict[str, float], settings: DepthSettings) -> dict[str, float]:
    """Milliseconds of a further layer by contender, from those of a step."""
    return {name: (milliseconds[name] - milliseconds[ONE]) / (depth - 1) for name, depth in _depths(settings).items()}


def quantities(rounds: list[dict[str, Any]], settings: DepthSettings) -> list[Quantity]:
    """The figures of all rounds: what `take_turn` returned, in order."""
    deep, shallow, again = settings.names
    times = [turn["milliseconds"] for turn in rounds]

    def figure(name: str, of: Callable[[dict[str, float], DepthSettings], dict[str, float]], aim: str) -> Quantity:
        layers = [of(milliseconds, settings) for milliseconds in times]
        each = {contender: [layer[contender] for layer in layers] for contender in settings.names}
        return quantity(name, "ms", each, [ratio(deep, shallow, each, aim), ratio(shallow, again, each)])

    return [
        quantity("time of a step", "ms", {name: [turn[name] for turn in times] for name in times[0]}, []),
        figure("time per layer", per_layer, "at most 1"),
        figure("time of a further layer", further_layer, ""),
        quantity("other programs", "cores", {"all depths": [turn["others"] for turn in rounds]}, []),
    ]


def _depths(settings: DepthSettings) -> dict[str, int]:
    deep, shallow, again = settings.names
    return {deep: settings.depth, shallow: settings.shallow, again: settings.shallow}
