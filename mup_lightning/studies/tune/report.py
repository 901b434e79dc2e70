"""What tuning found, for people, and the tuned configuration as a recipe file."""

import json
import math
import textwrap
from dataclasses import asdict
from pathlib import Path

import yaml

from mup_lightning.config.schema import Config
from mup_lightning.files import write_atomic
from mup_lightning.studies.tune.prediction import Drift, Prediction


def text(result: Prediction, base: tuple[int, int], target: tuple[int, int], own: float | None = None) -> str:
    """The value, its uncertainty, and what speaks against it.

    Args:
        result: what was found.
        base: width and depth that the value belongs to.
        target: width and depth that it was found for.
        own: the value that the target has now, at the same base shape; None: unknown.
    """
    inner = _range(result.log2 - result.half_width, result.log2 + result.half_width, result.open_ends)
    lines = [
        f"{result.key} {result.value:g} (2^{result.log2:.2f}) at base shape {base}",
        f"  at the proxies      best {inner} (95 %)",
        *(f"  drift over {drift.axis:<8} {_drift(drift)}" for drift in result.drifts),
        f"  at {target!s:<16} best {_range(*result.at_target, result.open_at_target)}, had the drift gone on so far",
    ]
    if own and own > 0 and not result.open_ends and math.isfinite(result.half_width):
        inside = abs(math.log2(own) - result.log2) <= result.half_width
        verdict = (
            "inside the proxies' range: as good, for all these runs can tell"
            if inside
            else "outside the proxies' range"
        )
        lines.append(f"  the target has now  2^{math.log2(own):.2f}, {verdict}")
    return "\n".join([*lines, *(f"warning: {caveat}" for caveat in result.caveats)])


def _drift(drift: Drift) -> str:
    interval = "" if drift.low is None or drift.high is None else f" [{drift.low:+.2f}, {drift.high:+.2f}]"
    below, above = drift.reach
    reach = "" if math.isinf(below) else f" [{drift.shift - below:+.2f}, {drift.shift + above:+.2f}]"
    bound = {(): "", (1,): "at least ", (-1,): "at most ", (-1, 1): "perhaps "}[tuple(sorted(drift.open_ends))]
    return (
        f"{bound}{drift.slope:+.2f}{interval} powers of two for each doubling; {drift.doublings:.1f} doublings to the "
        f"target: {drift.shift:+.2f}{reach}"
    )


def _range(low: float, high: float, open_ends: frozenset[int]) -> str:
    """A range, open to where better values may lie beyond those tried."""
    if open_ends == {-1, 1}:
        return "unknown: the best value at some sizes is the last one tried, so widen the grid"
    if math.isinf(low) or math.isinf(high):
        return "between unknown bounds: more seeds or sizes"
    if open_ends:
        side = f"at least 2^{low:.2f}" if open_ends == {1} else f"at most 2^{high:.2f}"
        return f"{side}: the best value at some sizes is the last one tried"
    return f"between 2^{low:.2f} and 2^{high:.2f}"


def write(
    result: Prediction, base: tuple[int, int], target: Config, origin: str, own: float | None, file: Path
) -> None:
    """Write the target's whole configuration with the tuned value, as a recipe file for `mup-lightning train`.

    Args:
        result: what was found.
        base: width and depth that the value belongs to; it replaces the target's base shape.
        target: what it was found for.
        origin: the runs that it rests on, in words.
        own: see `text`.
        file: to write.
    """
    shape = (target.model.width, target.model.depth)
    said = [f"Tuned on small models, for {shape}. {origin}", *text(result, base, shape, own).splitlines()]
    wrapper = textwrap.TextWrapper(116, initial_indent="# ", subsequent_indent="#     ", break_on_hyphens=False)
    comment = "\n".join(line for line in said for line in wrapper.wrap(line))  # paths and negative numbers stay whole
    content = json.loads(json.dumps(asdict(target)))  # tuples as lists
    content["model"]["vocab_size"] = None  # the tokenizer's
    content["run"]["name"] = _unused_name(target)
    for key, value in {result.key: result.value, "recipe.base_width": base[0], "recipe.base_depth": base[1]}.items():
        *sections, name = key.split(".")
        place = content
        for section in sections:
            place = place[section]
        place[name] = value
    write_atomic(file, f"{comment}\n{yaml.safe_dump(content, sort_keys=False)}")


def _unused_name(target: Config) -> str:
    """The target's name, or one made of it, that no run has yet."""
    name = target.run.name
    names = (name, f"{name}-tuned", *(f"{name}-tuned-{number}" for number in range(2, 1000)))
    return next(name for name in names if not (Path(target.run.root) / name / "config.yaml").exists())
