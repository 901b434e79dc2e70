"""What small models leave open about a target, and the target's configuration with what was found."""

import json
import shlex
import textwrap
from collections.abc import Collection, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mup_lightning.config.load import merge
from mup_lightning.config.schema import Config, leaves
from mup_lightning.files import write_atomic, yaml_text
from mup_lightning.plan.plan import plan
from mup_lightning.studies.noise import against
from mup_lightning.studies.tune.proxies import not_transferred


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
    # The learning rate is still to be found, so its floor may lie above the one given; neither costs anything.
    free = replace(target, schedule=replace(target.schedule, min_lr=0.0))
    planned = plan(free, device="cpu" if target.trainer.accelerator == "cpu" else "cuda")
    flops = planned.flops_of(target.trainer.max_steps)
    ratio = f", {float(f'{flops / spent:.2g}'):,g} times the small models together" if spent else ""
    return (
        f"the target, width {target.model.width}, depth {target.model.depth}: {target.trainer.max_steps:,} steps of "
        f"{target.data.batch_size} x {target.model.context} tokens, {flops:.2g} FLOPs{ratio}"
    )
