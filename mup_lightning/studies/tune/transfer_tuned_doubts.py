"""Why a value that small models agree on may still be wrong for the large one, in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from mup_lightning.studies.transfer.estimate import Optimum
from mup_lightning.studies.transfer.transfer import Transfer
from mup_lightning.studies.transfer.verdict import TRANSFERS

_HALF_A_POWER = 0.5
"""A drift of more than half a power of two would better be looked into before a long run."""


def doubts(findings: Sequence[Transfer], moved: Mapping[str, float], target: tuple[int, int]) -> list[str]:
    """All that speaks against the value.

    Args:
        findings: of all groups, those without a slope included.
        moved: axis -> powers of two from the proxies to the target, if the drift went on.
        target: width and depth.
    """
    found = []
    for finding in findings:
        if not finding.verdict.startswith(TRANSFERS):
            found.append(f"over {_name(finding, findings)}: {finding.verdict}")
        found += _of_optima(finding)
    for axis, powers in moved.items():
        if abs(powers) > _HALF_A_POWER:
            found.append(
                f"if the measured drift over {axis} went on, the target's best value would be "
                f"2^{powers:+.1f} times this one; a larger proxy would tell"
            )
    return [*found, *_not_varied(findings, target), *_another_proportion(findings, target)]


def ends(finding: Transfer, best: Optimum) -> frozenset[int]:
    """Which ends of the values tried, -1 and +1, are as good as the best one: beyond them may be better ones."""
    tried = next(curve.values for curve in finding.curves if curve.size == best.size)
    touched = {-1: tried[0] in best.plateau, 1: tried[-1] in best.plateau}
    return frozenset(end for end, touches in touched.items() if touches)


def _name(finding: Transfer, findings: Sequence[Transfer]) -> str:
    """The axis, and where the group stands on the other one if another group has the same axis."""
    axis = finding.axis
    if sum(other.axis == axis for other in findings) < 2:
        return axis
    place = [f"{key} {finding.settings[key]}" for key in ("width", "depth") if key in finding.settings]
    return f"{axis} at {', '.join(place)}" if place else axis


def _of_optima(finding: Transfer) -> list[str]:
    if not finding.optima:
        return []
    found = []
    axis, first, last = finding.axis, finding.optima[0], finding.optima[-1]
    if last is not first and last.loss >= first.loss:
        found.append(
            f"{axis} {last.size} is no better than {first.size} (loss {last.loss:.3f} and "
            f"{first.loss:.3f}): runs this short mislead, for the best value then drifts; train longer"
        )
    for what, sizes in (
        ("is the last one tried", [o.size for o in finding.optima if o.edge]),
        ("cannot be told from the last one tried", [o.size for o in finding.optima if not o.edge and ends(finding, o)]),
        ("stands next to one that diverged", [o.size for o in finding.optima if o.cliff]),
    ):
        if sizes:
            found.append(f"at {axis} {', '.join(sizes)} the best value {what}")
    return found


def _not_varied(findings: Sequence[Transfer], target: tuple[int, int]) -> list[str]:
    """A side of the target beyond all that trained, along which no two sizes did."""
    found = []
    for axis, side in zip(("width", "depth"), target, strict=True):
        grown = any(len(f.optima) > 1 for f in findings if f.axis in (axis, "both"))
        sizes = sorted({size for finding in findings for size in _sides(finding, axis)})
        if not grown and sizes and not sizes[0] <= side <= sizes[-1]:
            have = _among(f"{size:g}" for size in sizes)
            found.append(
                f"{axis} was not varied among the proxies that trained ({have}; the target has {side}): nothing tells "
                f"whether the best value stays where it is as the {axis} grows"
            )
    return found


def _sides(finding: Transfer, axis: str) -> list[float]:
    """The widths, or depths, of a group's models that trained, as far as the table tells."""
    if finding.axis == axis:
        return [round(2**o.position, 6) for o in finding.optima]
    fixed = finding.settings.get(axis, "")
    return [float(fixed)] if fixed and finding.optima else []


def _another_proportion(findings: Sequence[Transfer], target: tuple[int, int]) -> list[str]:
    """A target beside the line of proxies that grew in width and depth at once."""
    along = [finding for finding in findings if finding.slope is not None]
    if not along or any(finding.axis != "both" for finding in along):
        return []
    pairs = [o.size.split("x") for finding in along for o in finding.optima]
    proportions = [float(width) / float(depth) for width, depth in (pair for pair in pairs if len(pair) == 2)]
    own = target[0] / target[1]
    if not proportions or min(proportions) * (1 - 1e-9) <= own <= max(proportions) * (1 + 1e-9):
        return []
    have = _among(f"{proportion:g}" for proportion in sorted(set(proportions)))
    return [
        f"width and depth were varied together only, at {have} channels a block; the target has {own:g}: nothing tells "
        f"what either does alone"
    ]


def _among(texts: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(texts))
