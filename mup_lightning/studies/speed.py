"""Figure of `mup-lightning plan --figure`: the speed of each GPU over the number of GPUs, by strategy."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.ticker import FuncFormatter

from mup_lightning.plan.time import STRATEGIES, Time
from mup_lightning.studies import style

MARKS = dict(zip(STRATEGIES, "os^vD", strict=True))


def draw(times: Sequence[Time], gpu_memory: float, title: str, file: Path) -> Path:
    """Draw a curve for each strategy; markers are empty where a GPU's memory, in bytes, is exceeded."""
    figure, ((ax,),) = style.panels(1, 1, (7.2, 4.4))
    for strategy, color in zip(STRATEGIES, style.SERIES, strict=False):
        mine = [time for time in times if time.strategy in ("single", strategy)]
        sizes, rates = [time.gpus for time in mine], [time.tokens / time.seconds / time.gpus for time in mine]
        ax.plot(sizes, rates, "-", color=color, linewidth=1.4)
        for fits in (True, False):
            some = [n for n, time in enumerate(mine) if (time.peak_memory <= gpu_memory) == fits]
            options: dict[str, Any] = {"marker": MARKS[strategy], "color": color, "linestyle": "none", "markersize": 6}
            face = color if fits else "white"
            ax.plot([sizes[n] for n in some], [rates[n] for n in some], **options, markerfacecolor=face)
        ax.plot([], [], marker=MARKS[strategy], color=color, label=strategy)
    if any(time.peak_memory > gpu_memory for time in times):
        ax.plot([], [], marker="o", color="0.4", markerfacecolor="white", linestyle="none", label="does not fit")
    style.log_sizes(ax, sorted({time.gpus for time in times}))
    style.decorate(ax)
    ax.set_ylim(0)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    first = times[0]
    per_rate = 100 * first.mfu * first.gpus * first.seconds / first.tokens  # MFU in % of a token/s
    both: Any = (lambda rate: per_rate * rate, lambda mfu: mfu / per_rate)
    share = ax.secondary_yaxis("right", functions=both)
    share.set_ylabel("MFU, %")
    share.spines["right"].set_visible(False)
    ax.set_xlabel("GPUs")
    ax.set_ylabel("tokens/s of each GPU")
    ax.set_title(title, fontsize=11)
    ax.legend(frameon=False, loc="lower left")
    return style.save(figure, file)
