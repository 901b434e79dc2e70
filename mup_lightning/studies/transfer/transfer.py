"""The transfer report: for each group of a table, does the best base value stay where it is while the model grows?"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mup_lightning.errors import UserError
from mup_lightning.studies.transfer.estimate import Noise, level
from mup_lightning.studies.transfer.losses import Run, read_runs
from mup_lightning.studies.transfer.transfer_curves import Group, group_runs
from mup_lightning.studies.transfer.transfer_optimum import Optimum, optimum
from mup_lightning.studies.transfer.transfer_regret import Regret, regrets
from mup_lightning.studies.transfer.transfer_slope import Slope, slope_of
from mup_lightning.studies.transfer.verdict import Evidence, Tolerance, judge


@dataclass(frozen=True)
class Finding:
    """What the curves of one group say.

    Attributes:
        group: the curves, levelled.
        noise: of their losses.
        optima: of the sizes where anything trained, small to large.
        slope: of the optima; None: fewer than two.
        regrets: of every size.
        verdict: a sentence.
    """

    group: Group
    noise: Noise
    optima: tuple[Optimum, ...]
    slope: Slope | None
    regrets: tuple[Regret, ...]
    verdict: str

    def of(self, size: str) -> Optimum | None:
        """The optimum of a size; None where nothing trained."""
        return next((o for o in self.optima if o.size == size), None)


def transfer(
    path: Path,
    tolerance: Tolerance | None = None,
    noise: float | None = None,
    keep: Callable[[Run], bool] | None = None,
) -> list[Finding]:
    """Read a table and judge every group of it.

    Args:
        path: see `read_runs`.
        tolerance: what still counts as transfer.
        noise: standard deviation between seeds, nats, for groups that have one seed.
        keep: which rows to look at; None: all.

    Raises:
        UserError: the table cannot be read, or holds what cannot be compared.
    """
    if noise is not None and not 0 <= noise < math.inf:
        raise UserError(f"--noise is {noise}; expected a standard deviation in nats, 0 or more")
    runs = [run for run in read_runs(path) if keep is None or keep(run)]
    found = [find(group, tolerance or Tolerance(), noise) for group in group_runs(runs, path)]
    # However a sweep was run, its parametrizations stand in one order: SP, k >= 2, k = 1.
    return [finding for family in families(found) for finding in sorted(family, key=_place)]


def find(group: Group, tolerance: Tolerance, given_noise: float | None = None) -> Finding:
    """Judge one group."""
    curves, noise = level(group.curves, given_noise)
    group = replace(group, curves=curves)
    optima = tuple(o for curve in group.curves if (o := optimum(curve, noise)) is not None)
    slope = slope_of(optima, noise) if len(optima) > 1 else None
    costs = tuple(regrets(group.curves, optima, noise))
    sizes = [curve.size for curve in group.curves]
    verdict = judge(Evidence(group.axis, sizes, optima, slope, costs, noise), tolerance)
    return Finding(group, noise, optima, slope, costs, verdict)


def families(findings: list[Finding]) -> list[list[Finding]]:
    """The findings that differ in the parametrization alone, together."""
    found: dict[object, list[Finding]] = defaultdict(list)
    for finding in findings:
        found[finding.group.family].append(finding)
    return list(found.values())


def _place(finding: Finding) -> int:
    label = finding.group.label
    return 0 if label == "SP" else 2 if label.endswith("k = 1") else 1


def as_plain(findings: list[Finding]) -> dict[str, Any]:
    """Ready for JSON; None stands for what there is not. docs/method/transfer.md lists the keys."""
    return {"groups": [_plain(finding) for finding in findings], "comparisons": _comparisons(findings)}


def _plain(finding: Finding) -> dict[str, Any]:
    group, slope, noise, optima = finding.group, finding.slope, finding.noise, finding.optima
    largest = finding.regrets[-1]
    known = slope is not None and slope.low is not None
    sizes = [curve.size for curve in group.curves]
    return group.settings | {
        "axis": group.axis,
        "label": group.label,
        "sizes": sizes,
        "seeds": group.seeds,
        "steps": round(float(group.steps)) if group.steps else None,
        "optimum": {size: _of(finding, size, "value") for size in sizes},
        "optimum_ci": {
            o.size: [o.value - half, o.value + half] if (half := o.reach(noise.freedom)) else None for o in optima
        },
        "best_value": {size: _of(finding, size, "grid") for size in sizes},
        "best_loss": {size: _of(finding, size, "loss") for size in sizes},
        "slope": slope.slope if slope else None,
        "slope_ci": [slope.low, slope.high] if slope and known else None,
        "slope_bound": slope.bound if slope else "",
        "regret": largest.nats,
        "regret_infinite": largest.unlimited,
        "regret_at_least": largest.least,
        "regret_margin": largest.margin,
        "regrets": {regret.size: regret.nats for regret in finding.regrets},
        "no_regret_because": {regret.size: regret.why for regret in finding.regrets if regret.why},
        "edge": [o.size for o in optima if o.edge],
        "cliff": [o.size for o in optima if o.cliff],
        "plateau": {o.size: list(o.plateau) for o in optima if len(o.plateau) > 1},
        "diverged": {
            curve.size: lost for curve in group.curves if (lost := [v for v in curve.losses if curve.lost(v)])
        },
        "noise": noise.deviation,
        "noise_paired": noise.paired,
        "verdict": finding.verdict,
    }


def _of(finding: Finding, size: str, attribute: str) -> float | None:
    found = finding.of(size)
    return None if found is None else getattr(found, attribute)


def _comparisons(findings: list[Finding]) -> list[dict[str, Any]]:
    """Best losses of parametrizations at equal size."""
    result = []
    for family in families(findings):
        if len(family) > 1:
            shared = dict(family[0].group.family)
            result.append(shared | {"best_loss": {size: dict(losses) for size, losses in compared(family)}})
    return result


def compared(family: list[Finding]) -> list[tuple[str, list[tuple[str, float | None]]]]:
    """Size -> (parametrization, best loss), sizes from small to large; None where nothing trained."""
    sizes = {(curve.position, curve.size) for finding in family for curve in finding.group.curves}
    return [
        (size, [(finding.group.label, _of(finding, size, "loss")) for finding in family]) for _, size in sorted(sizes)
    ]
