"""What a coordinate check measures and concludes, and the JSON file that keeps it. Imports no torch."""

from dataclasses import asdict, dataclass
from pathlib import Path

from mup_lightning.config.schema import Config
from mup_lightning.errors import UserError
from mup_lightning.files import read_json, write_json
from mup_lightning.studies.coordinates.settings import CheckSettings, Shape
from mup_lightning.studies.fit import Judgement, Verdict
from mup_lightning.typed import build

FILE = "coordinates.json"


@dataclass(frozen=True)
class Run:
    """The measurements of one training.

    Attributes:
        parametrization: sp or mup.
        shape: (width, depth).
        seed: of the weights and of the order of samples.
        norms: feature -> ‖h‖_R after 0, 1, ... steps, for as long as everything is finite.
        changes: feature -> ‖h − h₀‖_R likewise.
        losses: training loss of each of these steps, nats per token.
        diverged: None, or the step at which training diverged and what was seen there.
    """

    parametrization: str
    shape: Shape
    seed: int
    norms: dict[str, list[float]]
    changes: dict[str, list[float]]
    losses: list[float]
    diverged: str | None


@dataclass(frozen=True)
class Finding:
    """The conclusion about one parametrization.

    Attributes:
        verdict: of all exponents together.
        sentence: the verdict and its reason.
        exponents: one for every quantity and feature, labelled (feature, quantity); none if too few sizes are sound.
        worst: label of the exponent that decides; None if a divergence decides.
        seeds: repetitions of every size.
        lost: sizes where a training diverged, which the exponents are not fitted to.
        diverged: a line for every training that diverged.
    """

    verdict: Verdict
    sentence: str
    exponents: list[Judgement]
    worst: tuple[str, ...] | None
    seeds: int
    lost: list[Shape]
    diverged: list[str]

    def exponent(self, feature: str, quantity: str) -> Judgement | None:
        """One of the exponents."""
        return next((one for one in self.exponents if one.label == (feature, quantity)), None)


@dataclass(frozen=True)
class CheckResult:
    """A finished coordinate check: its options, conclusions by parametrization, and everything measured."""

    settings: CheckSettings
    config: Config
    findings: dict[str, Finding]
    runs: list[Run]
    versions: dict[str, str | None]
    seconds: float

    @property
    def asked(self) -> Finding:
        """The conclusion about the parametrization that was asked for."""
        return self.findings[self.config.recipe.parametrization]

    @property
    def sizes(self) -> dict[Shape, float]:
        """(width, depth) -> what exponents are fitted against, from small to large."""
        return self.settings.sizes(self.config.model.width, self.config.model.depth)


def write_check(result: CheckResult, file: Path) -> None:
    """Write everything as JSON."""
    write_json(file, asdict(result))


def read_check(file: Path) -> CheckResult:
    """Read what `write_check` wrote.

    Raises:
        UserError: the file is missing, damaged, or not the result of such a check.
    """
    expected = "a result of this version of mup-lightning coord-check"
    content = read_json(file, expected)
    try:
        return build(CheckResult, content)
    except UserError as error:
        raise UserError(f"{file} is not {expected}: {error}") from None
