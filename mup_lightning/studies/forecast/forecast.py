"""`mup-lightning forecast`: the loss of a large model from a ladder of small ones, before it is trained."""

import math
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter

from mup_lightning.config.forecast import CURVE_POINTS, Forecast, Point
from mup_lightning.config.schema import Config
from mup_lightning.data.mixture import Corpora
from mup_lightning.errors import UserError
from mup_lightning.files import check_folder, write_json
from mup_lightning.optim.schedule import warmup_steps
from mup_lightning.plan.plan import plan
from mup_lightning.studies import style
from mup_lightning.studies.forecast import ForecastSettings
from mup_lightning.studies.forecast.ladder import Ladder, read_ladder
from mup_lightning.studies.forecast.law import Cell, Law, fit, model_size
from mup_lightning.studies.scaling import student_t

MOST_EPOCHS = 4
"""Text read more often than this is worth less than new text (Muennighoff et al. 2023, arXiv 2305.16264)."""

_OF_A_CELL = "width depth parameters tokens flops loss se spread log2_value".split()


def run(settings: ForecastSettings, target: Config) -> None:
    """Forecast the target's loss, print and draw it, and write it down. Raises UserError where nothing can be said."""
    folder = settings.out or Path("runs") / "forecast" / target.run.name
    check_folder(folder)
    planned = plan(target, device="cpu" if target.trainer.accelerator == "cpu" else "cuda")
    ladder = read_ladder(settings.results, target)
    law = fit(ladder.cells)
    result = forecast(ladder, law, target, planned.parameter_count, planned.tokens)
    flops = planned.flops_of(target.trainer.max_steps)
    hours = flops / settings.speed / 3600 if settings.speed else None
    result = replace(result, flops=flops, hours=hours, sources=[str(place) for place in settings.results])
    print(text(result, ladder, law))
    write_json(folder / "forecast.json", asdict(result))
    for file in [folder / "forecast.json", draw(result, ladder.cells, law, folder / "forecast.png")]:
        print(f"wrote {file}")
    written = shlex.quote(str(folder / "forecast.json"))
    print(f"\nnext: mup-lightning train ... --run.forecast {written}    draws it beside the real curve")


def forecast(ladder: Ladder, law: Law, target: Config, parameters: int, tokens: int) -> Forecast:
    """The forecast for a target of so many parameters and tokens, but for its FLOPs, hours and sources.

    Raises UserError where the target's corpus is another than the ladder's, or the ladder says nothing of its size.
    """
    caveats, corpus = list(ladder.caveats), ladder.corpus
    corpora = None
    with suppress(UserError):  # the corpus need not be on this machine
        corpora = Corpora(target.data)
    if corpora is not None:
        corpus, other = corpora.hash, f"{target.data.said} is another corpus than the ladder's"
        if ladder.corpus not in ("", corpus):
            raise UserError(f"{other}; losses on the two cannot be compared")
        if (epochs := corpora.epochs(tokens)) > MOST_EPOCHS:
            caveats.append(f"the target reads its corpus {epochs:.1f} times, and the law is one of new text")
    if law.at_bounds:
        caveats.append("E or an exponent is at its bound: the ladder does not show how the loss levels off; add sizes")
    if (sizes := len(ladder.cells)) < (enough := len(law.theta) + 3):
        caveats.append(
            f"{sizes} sizes hardly show where a law of {len(law.theta)} parameters goes beyond them: losses have come "
            f"out outside such an interval; better {enough} sizes or more"
        )
    held_out, widen = None, 1.0
    try:
        held_out, widen = check(ladder.cells)
    except UserError as error:
        caveats.append(f"the largest run cannot be predicted from the others, so that nothing is checked: {error}")
    size = model_size(target.model.width, target.model.depth)
    loss, low, high = law.predict(size, tokens, widen)
    return Forecast(
        parameters=parameters,
        target_size=size,
        tokens=tokens,
        tokenizer=target.data.tokenizer,
        corpus=corpus,
        loss=loss,
        low=low,
        high=high,
        widened=widen,
        curve=curve(ladder.cells, law.values["E"], (loss, low, high), target),
        flops=0.0,
        hours=None,
        beyond={
            "flops": 6.0 * parameters * tokens / max(cell.flops for cell in ladder.cells),
            "N": size / max(cell.size for cell in ladder.cells),
            "tokens": tokens / max(cell.tokens for cell in ladder.cells),
        },
        law=law.values,
        held_out=held_out,
        caveats=caveats,
        cells=[{key: getattr(cell, key) for key in _OF_A_CELL} for cell in ladder.cells],
        sources=[],
    )


def check(cells: Sequence[Cell]) -> tuple[dict[str, float], float]:
    """Predict the cell of most FLOPs from the others, and how many times as wide an interval would hold its loss.

    Without an interval (as many cells as the law has parameters) that is 1: the fit to all has the miss in its misfit.
    Raises UserError where the others cannot be fitted, or say nothing of the largest.
    """
    *others, last = cells
    law = fit(others, exact=True)
    loss, low, high = law.predict(last.size, last.tokens)
    found = {"N": last.size, "tokens": last.tokens, "flops": last.flops, "times": last.flops / others[-1].flops}
    found |= {"predicted": loss, "actual": last.loss, "miss_percent": 100 * (loss / last.loss - 1)}
    if not law.around.left:
        return found, 1.0
    miss, end = math.log(last.loss / loss), high if last.loss > loss else low
    return found | {"low": low, "high": high}, max(1.0, miss / math.log(end / loss))


def curve(cells: Sequence[Cell], floor: float, end: tuple[float, float, float], target: Config) -> list[Point]:
    """The target's training loss along its run, from the end of the warm-up on; empty without curves of two cells.

    (training loss - E) / (final loss - E) is nearly one function of the share of the run under one schedule, whatever
    the size (Qiu et al. 2025, arXiv 2507.02119). Its interval is that of the final loss and of the next cell's
    function, both at 95 %. `floor` is E, `end` the forecast with its ends.
    """
    known = [cell for cell in cells if cell.curve]
    losses_CX, count = np.array([cell.curve for cell in known]), len(known)
    if count < 2 or losses_CX.min() <= floor or min(cell.loss for cell in known) <= floor:
        return []
    logs_CX = np.log((losses_CX - floor) / np.array([[cell.loss - floor] for cell in known]))
    half_X = student_t(count - 1) * logs_CX.std(axis=0, ddof=1) * math.sqrt(1 + 1 / count)
    share_X, left_X = np.arange(1, CURVE_POINTS + 1) / CURVE_POINTS, np.exp(logs_CX.mean(axis=0))
    loss, low, high = end
    middle_X = floor + (loss - floor) * left_X
    below_X = left_X * np.hypot(loss - low, (loss - floor) * -np.expm1(-half_X))
    above_X = left_X * np.hypot(high - loss, (loss - floor) * np.expm1(half_X))
    kept = share_X - 1 / CURVE_POINTS > warmup_steps(target) / target.trainer.max_steps - 1e-9
    points_4X = np.stack([share_X, middle_X, middle_X - below_X, middle_X + above_X])[:, kept]
    return list(zip(*points_4X.tolist(), strict=True))


def text(result: Forecast, ladder: Ladder, law: Law) -> str:
    """For the terminal: the ladder, the law, what the check showed, the target and how far away it is."""
    cells, values, held = ladder.cells, result.law, result.held_out
    sizes = sorted({cell.size for cell in cells}), sorted({cell.tokens for cell in cells})
    n, d = (" to ".join(f"{value:,.0f}" for value in dict.fromkeys((own[0], own[-1]))) for own in sizes)
    terms = {"N": "A N^-alpha", "D": "B D^-beta"}
    lines = [
        f"ladder    {len(cells)} sizes, {ladder.runs} runs: N {n} (12 depth width²), {d} tokens",
        f"law       L = E + {' + '.join(terms[name] for name in law.sizes)}: "
        f"{', '.join(f'{name} {value:.4g}' for name, value in values.items())}; misses a size by "
        f"{math.sqrt(law.around.misfit):.2%}",
    ]
    if law.direction is not None:
        other, own = ("D", sizes[1]) if law.sizes[0] == "N" else ("N", sizes[0])
        does = "does not vary" if len(own) == 1 else "grows with it"
        lines.append(f"          {other} {does}, so E and the rest hold there alone")
    if held:
        ends = f" [{held['low']:.4f}, {held['high']:.4f}]" if "low" in held else ""
        lines.append(
            f"check     the largest, {held['times']:.2g} times the FLOPs of the next, from the others: predicted "
            f"{held['predicted']:.4f}{ends}, actual {held['actual']:.4f}, {held['miss_percent']:+.2f} %"
        )
    hours = f", {result.hours:,.3g} hours" if result.hours is not None else ""
    beyond = ", ".join(f"{times:,.3g} times in {name}" for name, times in result.beyond.items())
    lines += [
        f"forecast  {result}" + f" ({result.widened:.2g} times as wide for that)" * (result.widened > 1),
        f"target    {result.parameters:,} parameters, {result.tokens:,} tokens, {result.flops:.3g} FLOPs{hours}",
        f"beyond    {beyond.replace('flops', 'FLOPs')}, against the largest of the ladder",
    ]
    if not result.curve:
        lines.append("curve     none: the ladder has no training curves of two sizes; TensorBoard shows the end alone")
    return "\n".join([*lines, *(f"warning: {caveat}" for caveat in result.caveats)])


def draw(result: Forecast, cells: Sequence[Cell], law: Law, file: Path) -> Path:
    """Draw the cells, the law through them and on to the target with its band, and the largest as predicted."""
    figure, ((ax,),) = style.panels(1, 1, (7.6, 4.8))
    sizes = sorted({cell.size for cell in cells})
    for number, size in enumerate(sizes):
        own = sorted((cell for cell in cells if cell.size == size), key=lambda cell: cell.tokens)
        color: Any = style.STEPS(number / max(1, len(sizes) - 1))
        shape = f"{own[0].width} x {own[0].depth}"
        flops, losses = [cell.flops for cell in own], [cell.loss for cell in own]
        ax.errorbar(flops, losses, [cell.spread for cell in own], fmt="o", color=color, markersize=5, label=shape)
        if len(own) > 1:
            tokens = np.geomspace(own[0].tokens, own[-1].tokens, 40)
            fitted = [law.predict(size, count)[0] for count in tokens]
            ax.plot(6 * own[0].parameters * tokens, fitted, color=color, linewidth=1.2)
    target = (result.target_size, result.tokens, 6.0 * result.parameters * result.tokens)
    whole = law.direction is not None  # one line: then the law is drawn along all of it
    places = [(cell.size, cell.tokens, cell.flops) for cell in (cells if whole else cells[-1:])]
    logs = np.log(sorted([*places, target], key=lambda place: place[2]))
    share = np.linspace(0, len(logs) - 1, 25 * (len(logs) - 1) + 1)
    size_X, tokens_X, flops_X = (np.exp(np.interp(share, range(len(logs)), column)) for column in logs.T)
    found = [law.predict(*place, widen=result.widened) for place in zip(size_X, tokens_X, strict=True)]
    loss_X, low_X, high_X = np.array(found).T
    color = style.SERIES[2]
    ax.plot(flops_X, loss_X, "-" if whole else "--", color=color, linewidth=1.2, label="law, 95 % of single runs")
    ax.fill_between(flops_X, low_X, high_X, color=color, alpha=0.13, linewidth=0)
    if held := result.held_out:
        middle = held["predicted"]
        ends = [[middle - held["low"]], [held["high"] - middle]] if "low" in held else None
        label = f"the largest from the others: {held['miss_percent']:+.1f} %"
        ax.errorbar(held["flops"], middle, ends, fmt="D", color="black", mfc="none", capsize=3, label=label)
    ends = [[result.loss - result.low], [result.high - result.loss]]
    label = f"target: {result.loss:.3f}, 95 % from {result.low:.3f} to {result.high:.3f}"
    ax.errorbar(target[2], result.loss, ends, fmt="*", color=style.SERIES[0], markersize=13, capsize=4, label=label)
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(numticks=12))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel("training FLOPs (6 x parameters x tokens)")
    ax.set_ylabel("validation loss, nats per token")
    ax.legend(frameon=False, fontsize=8.5, title="width x depth")
    style.decorate(ax)
    return style.save(figure, file)
