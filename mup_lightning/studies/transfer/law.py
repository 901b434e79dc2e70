"""One law of the best base value over width n, depth L, tokens of the run T and tokens of a step B, with intervals.

    log2 v* = c + a_n log2 n + a_L log2 L + a_T log2 T + a_B log2 B

is fitted to the optimum of every cell, (n, L, T, B), of a table. Cells share one noise, and one regression
(`estimate.regress`). Imports no torch.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from mup_lightning import tables
from mup_lightning.errors import UserError
from mup_lightning.spectral.horizon import AXES, Estimate, Law
from mup_lightning.studies.scaling import student_t
from mup_lightning.studies.transfer.curves import Array, Noise
from mup_lightning.studies.transfer.estimate import Optimum, Regression, optima_of, regress_optima
from mup_lightning.studies.transfer.losses import number

FAR = 10.0  # a target this many times beyond the runs is warned of: that the law goes on so far is an assumption
Place = tuple[float, float, float, float]  # width, depth, tokens of the run, tokens of a step

_SIZES = {"width", "depth", "model.width", "model.depth", "tokens", "trainer.max_steps", "data.batch_size"}
"""Columns that say where a run stands on the axes; in all others the runs of one law agree."""


def name(place: Place) -> str:
    """A place in words."""
    return "width {:g}, depth {:g}, {:,.0f} tokens, {:,.0f} a step".format(*place)


def cells_of(runs: pd.DataFrame, noise: float | None = None) -> tuple[dict[Place, Optimum | None], Noise]:
    """The optimum of every place of a table (`losses.read_losses`), and the noise, see `curves_of`.

    An optimum is None where nothing trained. Raises UserError where the table does not say a place, or holds runs of
    several recipes, or under a time rule.
    """
    shared = [{k: v for k, v in row if k not in _SIZES} for row in runs["settings"]]
    columns = dict.fromkeys(key for row in shared for key in row)
    if several := [key for key in columns if len({row.get(key, "") for row in shared}) > 1]:
        raise UserError(f"the runs differ in {' and '.join(several)}: a law is of one recipe; make a table of each")
    if (rule := shared[0].get("recipe.time_rule", "none")) != "none":
        raise UserError(f"the runs were trained under recipe.time_rule {rule}; a law is fitted to runs under none")
    places = _places(runs)
    numbers = {place: number for number, place in enumerate(dict.fromkeys(places))}
    own = runs.assign(position=[float(numbers[place]) for place in places], size=[name(place) for place in places])
    # A run that stands on several axes has a row for each.
    own = own[~own.duplicated(["position", "log2_value", "seed", "loss", "config_hash"])]
    if own["loss"].isna().all():
        raise UserError(f"no run has a loss, all {len(own)} diverged; lower the base values")
    found, between = optima_of(own, noise)
    return dict(zip(numbers, (best for _, best in found), strict=True)), between


def _places(runs: pd.DataFrame) -> list[Place]:
    """Where each run of a table stands. One that diverged was meant to be as long as those of its size."""
    size = runs["size"].str.split("x")
    of = {axis: runs.get(axis, pd.Series("", runs.index)).map(number) for axis in ("width", "depth", "tokens")}
    alike = [runs["axis"], runs["settings"], runs["size"]]
    batch = of["tokens"] / runs["steps"].replace(0, math.nan)
    batch = batch.fillna(batch.groupby(alike).transform("max"))
    of["batch"] = batch.where(runs["axis"] != "batch", size.str[0].map(number))
    longest = runs["steps"].groupby([*alike, of["batch"]]).transform("max")
    of["tokens"] = of["batch"] * runs["steps"].where(runs["loss"].notna(), longest)
    for axis, side, on in (("width", 0, "both"), ("depth", -1, "both"), ("tokens", 0, "")):
        of[axis] = of[axis].where(~runs["axis"].isin([axis, on]), size.str[side].map(number))
    if unknown := [axis for axis in AXES if not (of[axis][runs["loss"].notna()] > 0).all()]:
        needed = "the columns width, depth, steps and tokens, as the results.csv of a sweep has them"
        raise UserError(f"the table does not say the {' and '.join(unknown)} of its runs; expected {needed}")
    columns = [of[axis].fillna(0).map(lambda value: float(f"{value:.9g}")) for axis in AXES]
    return list(zip(*columns, strict=True))


@dataclass(frozen=True)
class LawFit:
    """The law of a table's optima."""

    cells: dict[Place, Optimum]  # those that it is fitted to; `left_out` had none between the values tried
    left_out: dict[Place, Optimum | None]
    axes: list[str]  # those along which the cells differ. Along the others there is no exponent.
    middle: Array  # log2 of the cells' mean place
    model: Regression  # c at the middle, then the exponents of `axes`
    noise: Noise  # between seeds

    def exponent(self, axis: str) -> Estimate | None:
        """The exponent along an axis with its 95 % interval; None: the cells do not differ."""
        if axis not in self.axes:
            return None
        of = np.eye(1 + len(self.axes))[1 + self.axes.index(axis)]
        (se, dof), value = self.model.error(of), float(of @ self.model.coefficients)
        return Estimate(value, value - student_t(dof) * se, value + student_t(dof) * se)

    def at(self, place: Place, *, line: bool = False) -> tuple[float, float]:
        """log2 of the best value at a place, and half the width of its 95 % prediction interval (`line`: of the mean).

        It has the coefficients' errors, the misfit, and the unknown shape of curves, which shifts all optima alike.
        """
        of = _design([place], self.axes, self.middle)[0]
        se, dof = self.model.error(of, 0.0 if line else 1.0)
        shape_se = 0.0 if line else float(np.mean([best.shape_se for best in self.cells.values()]))
        return float(of @ self.model.coefficients), math.hypot(student_t(dof) * se, student_t(math.inf) * shape_se)

    def range(self, axis: str) -> tuple[float, float]:
        """The least and the largest of the cells on an axis."""
        sides = [place[AXES.index(axis)] for place in self.cells]
        return min(sides), max(sides)

    def beyond(self, axis: str, place: Place) -> float:
        """How many times beyond the cells a place is on an axis; 1: it is among them."""
        (low, high), side = self.range(axis), place[AXES.index(axis)]
        return max(low / side, side / high, 1.0)

    @cached_property
    def joint(self) -> dict[Place, tuple[float, float]]:
        """Cells off the centre, the commonest size on each axis, on several axes; empty where the rest gives no law.

        The optimum of each minus what the law of the other cells predicts, and half the width of the 95 % interval.
        """
        centre = [max(column, key=column.count) for column in zip(*self.cells, strict=True)]
        joint = [place for place in self.cells if np.sum(np.not_equal(place, centre)) > 1]
        star = [place for place in self.cells if place not in joint]
        design = _design(star, self.axes, self.middle)
        if not joint or len(star) <= design.shape[1] or np.linalg.matrix_rank(design) < design.shape[1]:
            return {}
        model = regress_optima([self.cells[place] for place in star], design, self.noise, weighted=True)
        found = {}
        for place, of in zip(joint, _design(joint, self.axes, self.middle), strict=True):
            best = self.cells[place]
            se, dof = model.error(of, 1.0, best.se**2)
            found[place] = best.value - float(of @ model.coefficients), student_t(dof, len(joint)) * se
        return found

    def law(self, optimizer: str, key: str, source: str) -> Law:
        """The law as a file for `recipe.time_rule`."""
        exponents = {axis: self.exponent(axis) for axis in AXES}
        middle = dict(zip(AXES, (float(f"{2**side:.6g}") for side in self.middle), strict=True))
        return Law(optimizer, key, exponents, {axis: self.range(axis) for axis in AXES}, middle, source)


def _design(places: Sequence[Place], axes: Sequence[str], middle: Array) -> Array:
    sides = np.log2(np.array(places, dtype=float)) - middle
    return np.column_stack([np.ones(len(places)), *(sides[:, AXES.index(axis)] for axis in axes)])


def fit(cells: Mapping[Place, Optimum | None], noise: Noise) -> LawFit:
    """Fit the law to all cells whose best value lies between others that were tried. UserError: they do not tell it."""
    kept = {place: best for place, best in cells.items() if best and not best.edge}
    if not kept:
        raise UserError("at every size the best value is the last one tried, so there is no law; widen the grid")
    sides = np.log2(np.array(list(kept)))
    axes = [axis for axis, column in zip(AXES, sides.T, strict=True) if np.ptp(column) > 0]
    middle = sides.mean(axis=0)
    design = _design(list(kept), axes, middle)
    if not axes:
        raise UserError(f"all optima are of one size ({name(next(iter(kept)))}), and a law needs several; add sizes")
    unsure = noise.residual is None or not all(best.se for best in kept.values())
    if np.linalg.matrix_rank(design) <= len(axes) or (len(kept) == design.shape[1] and unsure):
        which = f"{len(kept)} optima cannot tell the exponents over {', '.join(axes)} apart, or how sure they are"
        raise UserError(f"{which}; add sizes at which one of these grows alone, or seeds")
    model = regress_optima(list(kept.values()), design, noise, weighted=True)
    left_out = {place: best for place, best in cells.items() if place not in kept}
    return LawFit(kept, left_out, axes, middle, model, noise)


def text(found: LawFit, sde: Mapping[str, float]) -> str:
    """The exponents against those derived (`sde`), the optima against the law, and what speaks against it."""
    rows = [["axis", "tried", "exponent, 95 %", "derived, none", "derived, sde"]]
    for axis in AXES:
        low, high = found.range(axis)
        tried, power = f"{low:,.0f} to {high:,.0f}", found.exponent(axis)
        if power is None:
            rows.append([axis, f"{low:,.0f} alone", "none: one size", "", ""])
            continue
        said = [(value, power.low <= value <= power.high) for value in (0.0, sde.get(axis, 0.0))]
        derived = [f"{value:+.3g} {'inside' if inside else 'OUTSIDE'}" for value, inside in said]
        rows.append([axis, tried, tables.interval(power.estimate, power.low, power.high), *derived])
    optima = [["width", "depth", "tokens", "batch", "best", "law", "off"]]
    for place, own in found.cells.items():
        law, _ = found.at(place, line=True)
        error, mark = f" ± {own.se:.2f}" * bool(own.se), " (cliff)" * own.cliff
        sides = [f"{side:,.0f}" for side in place]
        optima.append([*sides, f"2^{own.value:.2f}{error}{mark}", f"2^{law:.2f}", tables.signed(own.value - law)])
    lines = [tables.text(rows), "", tables.text(optima), ""]
    lines.append(f"noise {found.noise}; misfit of the optima {math.sqrt(found.model.misfit):.2f} powers of two")
    for place, (off, half_width) in found.joint.items():
        apart = "as the single axes predict" if abs(off) <= half_width else "NOT as the axes predict"
        lines.append(f"at {name(place)}: {apart}, off by {tables.plus_minus(off, half_width)}")
    for place, best in found.left_out.items():
        why = "the best value is the last one tried" if best else "every value diverged"
        lines.append(f"warning: not in the law: {name(place)}: {why}")
    return "\n".join(lines)
