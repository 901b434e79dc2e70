"""The small models that stand for a target: what they take over from it, what makes them useless for it or leaves it
open, and the target's configuration with what they have found.
"""

import json
import math
import shlex
import textwrap
from collections.abc import Collection, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd

from mup_lightning.config.identity import complete
from mup_lightning.config.load import merge
from mup_lightning.config.schema import Config, leaves
from mup_lightning.errors import UserError
from mup_lightning.files import write_atomic, yaml_text
from mup_lightning.optim.registry import options_in_force, used_sections
from mup_lightning.optim.schedule import warmup_steps
from mup_lightning.plan.plan import plan
from mup_lightning.studies.noise import against
from mup_lightning.studies.sweep.grid import Checker, Trial, expand, look_up
from mup_lightning.studies.sweep.results import read_trials
from mup_lightning.studies.sweep.spec import Grid, Sweep
from mup_lightning.studies.transfer.losses import COLUMNS, read_losses

NOT_TRANSFERRED = """
    data.tokenizer data.batch_size data.path model.context model.head_dim model.dropout trainer.max_steps
    trainer.precision trainer.gradient_clip schedule.kind schedule.decay schedule.floor schedule.min_lr
""".split()
"""What moves the best values, too, in ways that no recipe here follows. Everything else must be the same."""

_MAY_DIFFER = """
    model.width model.depth recipe.base_width recipe.base_depth model.heads model.head_size model.vocab_size
    model.loss_chunk recipe.tokens seed schedule.warmup_steps schedule.warmup_tokens schedule.warmup_share
""".split()
"""What the recipe scales by, or changes nothing. Heads are compared by their dimension, warm-ups by their share."""

_OF_THE_TARGET = """
    trainer.strategy trainer.devices trainer.nodes model.width model.depth model.heads model.vocab_size model.loss_chunk
    recipe.tokens
""".split()
"""What proxies do not take over from the target, besides the section run."""


def results_of(
    results: Path, target: Config, *, tables: bool = False
) -> tuple[pd.DataFrame, dict[str, Config], str, Path]:
    """Those results of a sweep whose models are like the target, their configurations, the key, the place.

    Of `tables` whose rows have no configurations, such as published ones: those of its optimizer and parametrization.
    """
    place = results.parent if results.is_file() else results
    if tables and not (place / "trials").is_dir():
        runs = read_losses(results, (*COLUMNS, "optimizer", "value"))
        recipe = target.recipe
        runs = runs[(runs["optimizer"] == recipe.optimizer) & (runs["parametrization"] == recipe.parametrization)]
        if runs.empty:
            of = f"{recipe.optimizer} under {recipe.parametrization}"
            raise UserError(f"{results} has no runs of {of}, which the target has")
        return runs, {}, str(runs["value"].iloc[0]), results
    runs = read_losses(place, (*COLUMNS, "value", "config_hash"))
    keys = list(runs["value"].unique())
    if len(keys) > 1:
        raise UserError(f"{place} has sweeps of several values, {' and '.join(keys)}; expected the folder of one sweep")
    configs, rows = {name: record["config"] for name, record in read_trials(place).items()}, set(runs["config_hash"])
    known = {name: Config.from_plain(config) for name, config in configs.items() if config and name in rows}
    if not known:
        raise UserError(f"{place} does not say which configurations its rows have; expected the folder of a sweep")
    differences = {name: incompatibilities(config, target, keys[0]) for name, config in known.items()}
    alike = {name: config for name, config in known.items() if not differences[name]}
    nearest = min(known, key=lambda name: len(differences[name]))
    refuse_incompatible(list(alike.values()) or [known[nearest]], target, keys[0], str(place))
    return runs[runs["config_hash"].isin(alike)], alike, keys[0], place


def proxy_trials(sweep: Sweep, target: Config, below: int, above: int, checker: Checker | None = None) -> list[Trial]:
    """The trials of a sweep over small models that in all that it does not say are like the target.

    If it names no values, they are the target's, those `below` it and those `above`, powers of two. Raises UserError
    where it contradicts the target, or training would refuse a configuration.
    """
    grids, key = list(sweep.grids), sweep.value
    if any(key in grid.set for grid in grids):
        raise UserError(f"{key} is swept, so --set and {sweep.file} cannot fix it; --{key} says what to search around")
    if not names_values(sweep):
        own = look_up(target, key)
        if isinstance(own, bool) or not isinstance(own, int | float) or own <= 0:
            raise UserError(f"{key} is {own!r} in the target; expected a number above 0 to search around (--{key})")
        middle = round(math.log2(own))
        values = [2.0**exponent for exponent in range(middle - below, middle + above + 1)]
        for number, grid in enumerate(grids):
            floor = lowest(grid, target) if key == "recipe.lr" else 0.0
            if not (above_floor := [value for value in values if value >= floor]):
                raise UserError(f"every {key} that would be tried around {own:g} lies below schedule.min_lr {floor:g}")
            grids[number] = replace(grid, vary=grid.vary | {key: above_floor})
    elif any(key not in grid.vary for grid in grids):
        raise UserError(f"{sweep.file}: some grids vary {key}, others do not; expected all of them or none")
    grids = [replace(grid, set=_warmup(grid, target) | grid.set) for grid in grids]
    trials = expand(replace(sweep, grids=tuple(grids)), like_target(target, grids), checker)
    refuse_incompatible([trial.config for trial in trials], target, key, sweep.file)
    return trials


def lowest(grid: Grid, target: Config) -> float:
    """The floor of the schedule, which no learning rate may be below; 0 where it is none, or a share of the peak."""
    said = {name: grid.set.get(f"schedule.{name}", value) for name, value in asdict(target.schedule).items()}
    return float(said["min_lr"]) if said["floor"] is None and said["kind"] != "constant" else 0.0


def names_values(sweep: Sweep) -> bool:
    """Whether a sweep file names the values to try."""
    return any(sweep.value in grid.vary for grid in sweep.grids)


def like_target(target: Config, grids: Sequence[Grid]) -> dict[str, Any]:
    """Dotted key -> value of all that proxies take over from their target.

    That is the base shape, too, from which the recipe scales to all sizes, and the heads' dimension if it divides all
    widths.
    """
    theirs = leaves({key: value for key, value in asdict(target).items() if key != "run"})
    values = {key: value for key, value in theirs.items() if key not in _OF_THE_TARGET}
    widths = [width for grid in grids for width in grid.vary.get("model.width", [grid.set.get("model.width")])]
    if all(isinstance(width, int) and width % target.model.head_dim == 0 for width in widths):
        values["model.head_size"] = target.model.head_dim
    return values


def _warmup(grid: Grid, target: Config) -> dict[str, Any]:
    """The target's warm-up as the same share of a shorter run; empty if it follows the length by itself."""
    unset, said = dict.fromkeys(("schedule.warmup_steps", "schedule.warmup_tokens")), grid.set | grid.vary
    if any(key.startswith("schedule.warmup_") for key in said):
        return {key: None for key in unset if key not in said}
    if not target.schedule.warmup_steps and target.schedule.warmup_tokens is None:
        return {}
    if "trainer.max_steps" in grid.vary or "tokens" in said:
        return unset | {"schedule.warmup_share": _warmup_share(target)}
    steps = int(said.get("trainer.max_steps", target.trainer.max_steps))
    return unset | {"schedule.warmup_steps": max(1, round(_warmup_share(target) * steps))}


def _warmup_share(config: Config) -> float:
    """Share of the run that the warm-up takes: schedules are alike if this is equal, not if the steps are."""
    if config.schedule.warmup_steps is None and config.schedule.warmup_tokens is None:
        return config.schedule.warmup_share
    return warmup_steps(config) / config.trainer.max_steps


def refuse_incompatible(proxies: Sequence[Config], target: Config, swept: str, where: str) -> None:
    """Raise UserError for proxies that contradict the target, or have several base shapes (SP alone has none)."""
    for proxy in proxies:
        if found := incompatibilities(proxy, target, swept):
            raise UserError(f"{where}: the best value would not carry over: {'; '.join(found)}. Make them the same")
    bases = sorted({(proxy.recipe.base_width, proxy.recipe.base_depth) for proxy in proxies})
    if len(bases) > 1 and target.recipe.parametrization == "mup":
        several = " and ".join(map(str, bases))
        raise UserError(f"{where}: the proxies have several base shapes, {several}, so that values differ in meaning")


def incompatibilities(proxy: Config, target: Config, swept: str) -> list[str]:
    """What makes a proxy useless for a target whose key `swept` is tuned, in words."""
    theirs, ours = (
        complete(one, {name: options_in_force(one.rules, name) for name in used_sections(one.recipe.optimizer)})
        for one in (target, proxy)
    )
    # What differs there alone does so because of the swept value: without weight decay, gains count as decayed.
    plain = leaves(asdict(target))
    alike = {key for key, value in leaves(asdict(proxy)).items() if key in plain and value == plain[key]}
    mup = "mup" in (proxy.recipe.parametrization, target.recipe.parametrization)  # no other has a branch depth
    skipped = {*_MAY_DIFFER, *NOT_TRANSFERRED, swept} | (set() if mup else {"recipe.branch_depth"})
    return [
        f"{key} is {ours.get(key)} in the proxy, {theirs.get(key)} in the target"
        for key in ours | theirs
        if key not in skipped | alike and ours.get(key) != theirs.get(key)
    ]


def not_transferred(proxies: Sequence[Config], target: Config) -> list[str]:
    """What differs and is not transferred, in words: of a value that proxies differ in, all that they have."""
    found = []
    for key in NOT_TRANSFERRED:
        theirs, values = look_up(target, key), {look_up(proxy, key) for proxy in proxies} - {"auto"}
        ours = sorted(values, key=lambda value: (value is None, value or 0))
        if theirs != "auto" and values - {theirs}:
            found.append(f"{key} is {' or '.join(map(str, ours))} in the proxies, {theirs} in the target")
    share = _warmup_share(target)
    # A difference of less than a step is rounding.
    if any(abs(_warmup_share(proxy) - share) * proxy.trainer.max_steps >= 1 for proxy in proxies):
        shares = " or ".join(sorted({f"{_warmup_share(proxy):.1%}" for proxy in proxies}))
        found.append(f"the warm-up takes {shares} of the run in the proxies, {share:.1%} in the target")
    return found


def caveats(
    proxies: Sequence[Config], target: Config, source: Path, but: Collection[str] = ()
) -> tuple[tuple[int, int], list[str]]:
    """The base shape that the value belongs to, and what no recipe carries over from proxies, in words, `but` keys."""
    own = target.recipe.base_width, target.recipe.base_depth
    if not proxies:
        unknown = "the table does not say the base shape and base values of its runs: they are taken to be the target's"
        return own, [f"{unknown}; --recipe.base_width and --recipe.base_depth name others"]
    base = proxies[0].recipe.base_width, proxies[0].recipe.base_depth
    differing = [text for text in not_transferred(proxies, target) if text.partition(" ")[0] not in but]
    more = [f"not transferred by the recipe: {'; '.join(differing)}"] if differing else []
    if (parametrization := target.recipe.parametrization) != "mup":
        more.append(f"recipe.parametrization is {parametrization}, which transfers nothing by design")
        base = own  # SP has none, so that the proxies' may be any
    elif base != own:
        also = f"other base values (init_std, eps, weight_decay, multipliers) belong to {base} too, as in the proxies"
        more.append(f"the target's own base shape is {own}, the proxies' is {base}: {also}")
    times, note = against(source, target.tokens_per_step)
    if times > 1:
        more.append(f"{note} (the lowest loss of the proxies)")
    return base, more


def write_target(
    file: Path, target: Config, found: dict[str, Any], comment: Sequence[str], written: Sequence[Path]
) -> int:
    """Write the target's configuration with what was found, list all that was written, and say how to train it."""
    name = f"{target.run.name.removesuffix('-tuned')}-tuned"
    values = leaves(asdict(target)) | {"model.vocab_size": None, "run.name": name} | found  # the tokenizer's vocabulary
    content = json.loads(json.dumps(merge([values], [Config])))  # tuples as lists
    # Paths and negative numbers stay whole.
    wrapper = textwrap.TextWrapper(116, initial_indent="# ", subsequent_indent="#     ", break_on_hyphens=False)
    head = "\n".join(line for text in comment for line in wrapper.wrap(text))
    write_atomic(file, yaml_text(content, f"{head}\n"))
    for each in [*written, file]:
        print(f"wrote {each}")
    print(f"\nnext: {cost_of(target)}\n  mup-lightning train -c {shlex.quote(str(file))}", flush=True)
    return 0


def cost_of(target: Config, spent: float = 0.0) -> str:
    """What training the target takes, compared with FLOPs of the small models (0: not)."""
    # The learning rate is still to be found, so its floor may lie above the one given.
    free = replace(target, schedule=replace(target.schedule, min_lr=0.0))
    planned = plan(free, device="cpu" if target.trainer.accelerator == "cpu" else "cuda")
    flops = planned.flops_of(target.trainer.max_steps)
    ratio = f", {float(f'{flops / spent:.2g}'):,g} times the small models together" if spent else ""
    return (
        f"the target, width {target.model.width}, depth {target.model.depth}: {target.trainer.max_steps:,} steps of "
        f"{target.data.batch_size} x {target.model.context} tokens, {flops:.2g} FLOPs{ratio}"
    )
