"""The transfer report: for each group of runs, does the best base value stay where it is while the model grows?"""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from mup_lightning.errors import UserError
from mup_lightning.studies.transfer.drift import regret, slope_of
from mup_lightning.studies.transfer.estimate import Optimum, adjust_for_seeds, optimum
from mup_lightning.studies.transfer.settings import REGRET_TOLERANCE, SLOPE_TOLERANCE
from mup_lightning.studies.transfer.verdict import Evidence, judge

_NAMES = {"sp": "SP", "mup": "recipe", "muP k=1": "recipe, k = 1", "muP k>=2": "recipe, k ≥ 2"}


@dataclass(frozen=True)
class Transfer(Evidence):
    """Result of one group: runs that differ only in size, base value and seed.

    Attributes:
        settings: column -> text of what its runs share, the parametrization first.
        steps: steps of the runs that finished; None where the table does not say.
        seeds: largest number of seeds of any value.
        verdict: one sentence.
    """

    settings: dict[str, str]
    steps: int | None
    seeds: int
    verdict: str

    @property
    def label(self) -> str:
        """The parametrization for people, with k where it has one."""
        return _label(self.settings)

    @property
    def title(self) -> str:
        """What is swept over what, and what else is fixed."""
        settings = {
            key: value for key, value in self.settings.items() if key not in ("parametrization", "branch_depth")
        }
        value, optimizer = settings.pop("value", "base value"), settings.pop("optimizer", "")
        layer_norm = settings.pop("layer_norm", settings.pop("model.layer_norm", ""))
        norm = {"True": "LayerNorm", "False": "no LayerNorm"}.get(layer_norm.capitalize(), "")
        rest = [f"{key} {value}" for key, value in settings.items()]
        steps = f"{self.steps} steps" if self.steps else ""
        return ", ".join(filter(None, [f"{value} over {self.axis}", optimizer, norm, *rest, steps]))

    @property
    def family(self) -> tuple[tuple[str, str], ...]:
        """Equal for groups that differ only in the parametrization."""
        return _family(self.axis, self.settings)

    def at(self, size: str) -> Optimum | None:
        """The optimum of a size; None where nothing trained."""
        return next((o for o in self.optima if o.size == size), None)


def transfer(
    runs: pd.DataFrame,
    slope_tolerance: float = SLOPE_TOLERANCE,
    regret_tolerance: float = REGRET_TOLERANCE,
    noise: float | None = None,
) -> list[Transfer]:
    """Judge every group of a table.

    Args:
        runs: see `read_losses`.
        slope_tolerance: slope that still counts as transfer, powers of two per doubling.
        regret_tolerance: regret that still counts as transfer, nats.
        noise: standard deviation between seeds, nats, for groups that have one seed.

    Returns:
        The groups in the order of the table, families together, and in a family SP before k ≥ 2 before k = 1.

    Raises:
        UserError: the runs cannot be compared: a run appears twice, all are lost, no group has two sizes, or
            corpora or steps differ within a family.
    """
    own_families = [_family(axis, dict(own)) for axis, own in zip(runs["axis"], runs["settings"], strict=True)]
    refuse_different(runs, own_families, ["corpus", "steps"])
    if runs["loss"].isna().all():
        count = runs["config_hash"].replace("", None).nunique() or len(runs)  # a run may be on two axes
        raise UserError(f"no run has a loss, all {count} diverged or were stopped; lower the base values")
    found = []
    for (axis, settings), own in runs.groupby(["axis", "settings"], sort=False):
        refuse_twice(own)
        evidence = _estimate(axis, own, noise)
        steps = own["steps"][own["loss"].notna()].max()
        found.append(
            Transfer(
                **vars(evidence),
                settings=dict(settings),
                steps=None if pd.isna(steps) else round(steps),
                seeds=int(own.groupby(["position", "log2_value"]).size().max()),
                verdict=judge(evidence, slope_tolerance, regret_tolerance),
            )
        )
    if all(len(group.curves) < 2 for group in found):
        raise UserError(_one_size(runs))
    order = {"SP": 0, "recipe, k = 1": 2}
    return [one for own in families(found) for one in sorted(own, key=lambda group: order.get(group.label, 1))]


def _estimate(axis: str, runs: pd.DataFrame, given_noise: float | None) -> Evidence:
    curves, noise = adjust_for_seeds(runs, given_noise)
    optima = tuple(best for curve in curves if (best := optimum(curve, noise.dof)))
    by_size = {best.size: best for best in optima}
    smallest = by_size.get(curves[0].size)
    regrets = tuple(regret(curve, smallest, by_size.get(curve.size), noise.dof) for curve in curves)
    return Evidence(axis, curves, noise, optima, slope_of(optima, noise) if len(optima) > 1 else None, regrets)


def families(found: Iterable[Transfer]) -> list[list[Transfer]]:
    """Groups that differ only in the parametrization, together."""
    by_family: dict[Hashable, list[Transfer]] = defaultdict(list)
    for one in found:
        by_family[one.family].append(one)
    return list(by_family.values())


def _label(settings: Mapping[str, str]) -> str:
    name, k = settings["parametrization"], settings.get("branch_depth", "")
    return _NAMES.get(name, name) + {"": "", "1": ", k = 1"}.get(k, ", k ≥ 2")


def _family(axis: str, settings: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    own = ("parametrization", "branch_depth")
    return ("axis", axis), *((key, text) for key, text in settings.items() if key not in own)


def refuse_different(runs: pd.DataFrame, families: Sequence[Hashable], columns: Sequence[str]) -> None:
    """Refuse to compare losses of different texts, or after different numbers of steps.

    Args:
        runs: see `read_losses`.
        families: equal for runs that are compared.
        columns: what they must agree in, where the table says.

    Raises:
        UserError: naming what differs.
    """
    trained = runs.assign(family=families)[runs["loss"].notna()]
    for column in columns:
        known = trained[trained[column].replace("", None).notna()]
        for _, family in known.groupby("family", sort=False):
            if family[column].nunique() > 1:
                first = family.drop_duplicates(column)
                named = zip(first["settings"], first[column], strict=True)
                each = ", ".join(f"{_label(dict(own))}: {value:.12}".removesuffix(".0") for own, value in named)
                raise UserError(
                    f"runs that are compared differ in {column} ({each}), so their losses cannot be compared: make a "
                    f"table of each, or add a column of the option behind it, such as data.path or trainer.max_steps"
                )


def refuse_twice(runs: pd.DataFrame) -> None:
    """Refuse two runs of one size, value and seed, and two shapes at one place, such as 64x4 and 128x2.

    Raises:
        UserError: naming both rows, or both shapes.
    """
    for sizes in runs.groupby("position")["size"].unique():
        if len(sizes) > 1:
            raise UserError(
                f"{' and '.join(sizes)} would be one size: expected models whose width and depth grow together, such "
                f"as 64x2 and 128x4; make a table of those, or of one axis at a time"
            )
    keys = ["position", "log2_value", "seed"]
    for _, second in runs[runs.duplicated(keys)].iterrows():
        first = runs[(runs[keys] == second[keys]).all(axis=1)].iloc[0]
        other = first["config_hash"] != second["config_hash"]
        raise UserError(
            f"{second.name} has size {second['size']}, 2^{second['log2_value']:g}, seed {second['seed'] or '(none)'} "
            f"again (before: {first.name}){', of another configuration, which no column shows' * other}; keep one of "
            f"the two rows"
        )


def _one_size(runs: pd.DataFrame) -> str:
    """Why no group has two sizes: there are none, or a column tells all of them apart."""
    sizes = runs.groupby("axis", sort=False)["size"].unique()
    have = " and ".join(f"{axis} {', '.join(own)}" for axis, own in sizes.items())
    if all(len(own) == 1 for own in sizes):
        return f"there is one size only, {have}; transfer is seen between two or more (report best serves one size)"
    settings = pd.DataFrame([dict(own) for own in runs["settings"]], index=runs.index).fillna("")
    guilty = [key for key in settings if (runs["size"].groupby(settings[key]).nunique() == 1).all()]
    return (
        f"there are {have}, but no two of these sizes in one group: runs whose columns differ are not compared, and "
        f"{' and '.join(guilty or settings)} differ with the size; give these one value, or leave out the column"
    )


def to_dict(found: Sequence[Transfer]) -> dict[str, Any]:
    """The groups as plain values for JSON; None where there is no value. docs/method/transfer.md lists the keys."""
    comparisons = []
    for family in families(found):
        if len(family) > 1:
            labels = [one.label for one in family]
            losses = {size: dict(zip(labels, own, strict=True)) for size, own in compared(family).items()}
            comparisons.append(dict(family[0].family) | {"best_loss": losses})
    return {"groups": [_group(one) for one in found], "comparisons": comparisons}


def _group(found: Transfer) -> dict[str, Any]:
    slope, optima, largest = found.slope, found.optima, found.regrets[-1]
    best = {curve.size: found.at(curve.size) for curve in found.curves}
    return found.settings | {
        "axis": found.axis,
        "label": found.label,
        "sizes": list(best),
        "seeds": found.seeds,
        "steps": found.steps,
        "optimum": {size: o and o.value for size, o in best.items()},
        "optimum_ci": {
            o.size: [o.value - o.ci_half_width, o.value + o.ci_half_width] if o.ci_half_width else None for o in optima
        },
        "best_value": {size: o and o.best_value for size, o in best.items()},
        "best_loss": {size: o and o.loss for size, o in best.items()},
        "slope": slope.slope if slope else None,
        "slope_ci": [slope.low, slope.high] if slope and slope.low is not None else None,
        "slope_bound": slope.bound if slope else "",
        "regret": largest.nats,
        "regret_infinite": largest.infinite,
        "regret_at_least": largest.at_least,
        "regret_margin": largest.ci_half_width,
        "regrets": {regret.size: regret.nats for regret in found.regrets},
        "no_regret_because": {regret.size: regret.why for regret in found.regrets if regret.why},
        "edge": [o.size for o in optima if o.edge],
        "cliff": [o.size for o in optima if o.cliff],
        "plateau": {o.size: list(o.plateau) for o in optima if len(o.plateau) > 1},
        "diverged": {curve.size: sorted(curve.lost) for curve in found.curves if curve.lost},
        "noise": found.noise.between_seeds,
        "noise_paired": found.noise.residual,
        "verdict": found.verdict,
    }


def compared(family: Sequence[Transfer]) -> dict[str, list[float | None]]:
    """Size, small to large -> best loss of each of the family; None where nothing trained."""
    sizes = sorted({(curve.position, curve.size) for one in family for curve in one.curves})
    return {size: [best.loss if (best := one.at(size)) else None for one in family] for _, size in sizes}
