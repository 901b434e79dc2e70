"""From runs to groups of curves: loss against base value, a curve for every size."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

from mup_lightning.errors import UserError
from mup_lightning.studies.transfer.losses import Run


@dataclass(frozen=True)
class Curve:
    """The losses of one size.

    Attributes:
        size: as the table has it.
        position: see `Run`.
        losses: log2 of the base value, ascending -> seed -> loss. Empty: the value is lost, because at least one seed
            has no loss; the mean of the others would be too good.
        stopped: lost values at which no seed diverged: all that are missing were given up as hopeless.
        shares: seed -> how much higher its losses are than those of all seeds; empty where nothing tells. See `level`.
        covariance: of the means of two values, nats²; empty where nothing tells.
    """

    size: str
    position: float
    losses: dict[float, dict[str, float]]
    stopped: frozenset[float]
    shares: dict[str, float] = field(default_factory=dict)
    covariance: dict[tuple[float, float], float] = field(default_factory=dict)

    @property
    def means(self) -> dict[float, float]:
        """Value -> mean loss without the shares of its seeds, of those that are not lost."""
        return {
            value: mean(loss - self.shares.get(seed, 0.0) for seed, loss in losses.items())
            for value, losses in self.losses.items()
            if losses
        }

    def error_between(self, value: float, other: float) -> float:
        """Standard error of the difference of two means, nats; 0 where nothing tells."""
        if value == other or (value, other) not in self.covariance:
            return 0.0
        own = self.covariance[value, value] + self.covariance[other, other]
        return math.sqrt(max(0.0, own - 2 * self.covariance[value, other]))

    def lost(self, value: float) -> str:
        """Why there is no loss at a value, in one word; empty where there is one."""
        if value not in self.losses:
            return "missing"
        return "" if self.losses[value] else "stopped" if value in self.stopped else "diverged"


@dataclass(frozen=True)
class Group:
    """Curves that differ in nothing but the size.

    Attributes:
        settings: see `Run`.
        axis: what the size is.
        curves: from the smallest size to the largest.
        steps: of the runs that went to their end; empty where the table does not say.
        corpus: see `Run`.
        seeds: the most that a value has.
    """

    settings: dict[str, str]
    axis: str
    curves: tuple[Curve, ...]
    steps: str
    corpus: str
    seeds: int

    @property
    def label(self) -> str:
        """The parametrization, and k where it has one."""
        return label_of(self.settings)

    @property
    def family(self) -> tuple[tuple[str, str], ...]:
        """Equal for groups that differ in the parametrization alone."""
        own = ("parametrization", "branch_depth")
        return (("axis", self.axis), *((key, value) for key, value in self.settings.items() if key not in own))


def label_of(settings: dict[str, str]) -> str:
    """The parametrization's name for people."""
    name, depth = settings["parametrization"], settings.get("branch_depth", "")
    name = {"sp": "SP", "mup": "recipe", "muP k=1": "recipe, k = 1", "muP k>=2": "recipe, k ≥ 2"}.get(name, name)
    return name + {"": "", "1": ", k = 1"}.get(depth, ", k ≥ 2")


def group_runs(runs: Sequence[Run], path: Path) -> list[Group]:
    """Sort runs into groups, in the order of the table, and refuse what cannot be compared.

    Args:
        runs: of one table.
        path: of the table.

    Raises:
        UserError: a group, or parametrizations that are held against each other, mix corpora or numbers of steps; a run
            stands there twice, all runs are lost, or no group has two sizes.
    """
    found: dict[tuple[object, ...], list[Run]] = defaultdict(list)
    for run in runs:
        found[(run.axis, tuple(sorted(run.settings.items())))].append(run)
    if all(run.loss is None for run in runs):
        count = len({run.hash for run in runs} - {""}) or len(runs)  # a run may stand in a table on two axes
        raise UserError(f"{path}: no run has a loss, all {count} diverged or were stopped; lower the base values")
    groups = [_group(members, path) for members in found.values()]
    _refuse_mixed_families(groups, path)
    if all(len(group.curves) < 2 for group in groups):
        raise UserError(f"{path} {_one_size(groups)}")
    return groups


def _one_size(groups: Sequence[Group]) -> str:
    """Why no group has two sizes: there are none, or a column tells all of them apart."""
    sizes = list(dict.fromkeys(curve.size for group in groups for curve in group.curves))
    axes: dict[str, set[str]] = defaultdict(set)
    for group in groups:
        axes[group.axis].update(curve.size for curve in group.curves)
    if all(len(own) == 1 for own in axes.values()):
        have = " and ".join(f"{axis} {size}" for axis, own in axes.items() for size in own)
        return (
            f"has one size only, {have}; transfer is seen between two sizes or more, better four (of a sweep, "
            f"mup-lightning report best tells the best value at one size)"
        )
    keys = dict.fromkeys(key for group in groups for key in group.settings)
    guilty = [key for key in keys if _tells_sizes_apart(groups, key)]
    which = f" {' and '.join(guilty)}, which differ with the size" if guilty else ""
    return (
        f"has the sizes {', '.join(sizes)}, but no two of them in one group, for runs whose columns differ are not "
        f"compared:{which or ' ' + ', '.join(keys)}; give these one value, or leave out the column"
    )


def _tells_sizes_apart(groups: Sequence[Group], key: str) -> bool:
    """Whether no two sizes share a value of a setting."""
    found: dict[str, set[str]] = defaultdict(set)
    for group in groups:
        found[group.settings.get(key, "")].update(curve.size for curve in group.curves)
    return all(len(sizes) == 1 for sizes in found.values())


def _refuse_mixed_families(groups: Sequence[Group], path: Path) -> None:
    """Parametrizations are compared by their losses, which takes the same text and as many steps."""
    families: dict[object, list[Group]] = defaultdict(list)
    for group in groups:
        families[group.family].append(group)
    for family in families.values():
        for what, told, key in (
            ("corpora", {g.label: g.corpus[:12] for g in family if g.corpus}, "data.path"),
            ("numbers of steps", {g.label: g.steps for g in family if g.steps}, "trainer.max_steps"),
        ):
            if len(set(told.values())) > 1:
                each = ", ".join(f"{label}: {value}" for label, value in told.items())
                raise UserError(
                    f"{path}: the parametrizations over {family[0].axis} have different {what} ({each}), so their "
                    f"losses cannot be compared: make a table of each, or add the column {key}"
                )


def _group(runs: list[Run], path: Path) -> Group:
    settings, axis = runs[0].settings, runs[0].axis
    where = f"{path}: {label_of(settings)} over {axis}"
    corpus = _single({run.corpus for run in runs}, f"{where} mixes corpora (manifests %s)")
    steps = _single({run.steps for run in runs if run.loss is not None}, f"{where} mixes runs of %s steps")
    sizes: dict[float, dict[float, dict[str, Run]]] = defaultdict(lambda: defaultdict(dict))
    for run in runs:
        _refuse_two_shapes(run, sizes[run.position], where)
        seeds = sizes[run.position][run.value]
        if run.seed in seeds:
            raise UserError(
                f"{where} has size {run.size}, 2^{run.value:g}, seed {run.seed or '(none)'} twice"
                f"{_and_hashes(run, seeds[run.seed])}; keep one of the two rows"
            )
        seeds[run.seed] = run
    curves = tuple(_curve(values) for _, values in sorted(sizes.items()))
    count = max(len(seeds) for values in sizes.values() for seeds in values.values())
    return Group(settings, axis, curves, steps, corpus, count)


def _refuse_two_shapes(run: Run, others: dict[float, dict[str, Run]], where: str) -> None:
    """64x4 and 128x2 would be one size."""
    other = next((other for seeds in others.values() for other in seeds.values()), run)
    if other.size != run.size:
        raise UserError(
            f"{where} has {other.size} and {run.size}, which would be one size: expected models whose width and depth "
            f"grow together, such as 64x2 and 128x4; make a table of those, or of one axis at a time"
        )


def _curve(values: dict[float, dict[str, Run]]) -> Curve:
    losses: dict[float, dict[str, float]] = {}
    stopped = set()
    for value, seeds in sorted(values.items()):
        finite = {seed: run.loss for seed, run in sorted(seeds.items()) if run.loss is not None}
        missing = [run for run in seeds.values() if run.loss is None]
        losses[value] = {} if missing else finite
        if missing and all(run.stopped for run in missing):
            stopped.add(value)
    one = next(iter(next(iter(values.values())).values()))
    return Curve(one.size, one.position, losses, frozenset(stopped))


def _single(values: set[str], complaint: str) -> str:
    if len(values) > 1:
        shown = " and ".join(sorted(value[:12] or "unknown" for value in values))
        raise UserError(f"{complaint % shown}; their losses cannot be compared: make a table of each")
    return next(iter(values), "")


def _and_hashes(run: Run, other: Run) -> str:
    if run.hash == other.hash:
        return ""
    return f", of different configurations ({run.hash[:8]} and {other.hash[:8]}: something no column tells differs)"
