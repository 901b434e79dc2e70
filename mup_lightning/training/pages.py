"""What TensorBoard's tab "Text" says of a run: what was trained, how to read the panels, what works with what."""

from __future__ import annotations

from mup_lightning.config.schema import Config
from mup_lightning.plan.plan import Plan
from mup_lightning.spectral.families import FAMILIES
from mup_lightning.spectral.recipe import variant_of
from mup_lightning.spectral.tables import as_text
from mup_lightning.training import support

DOCS = "docs/guide/tensorboard.md"

READING = f"""
Open the tab **Custom Scalars**: its panels answer the questions below. (The tabs *Time Series* and *Scalars* have the
same numbers one by one.) `{DOCS}` explains every number: its meaning, unit and expected scaling.

| question | what is good |
|---|---|
| Is it learning? | training and validation loss fall |
| Is it stable? | gradient norms do not grow over time, and no loss spikes are counted |
| How fast is it? | level lines |
| Do features keep their size? | runs of different widths and depths lie on each other, as Θ(1) says |
| Does the spectral condition hold? | the same, for the weights and for what one step changes of them |

- A colour is a run; choose on the left which are shown. Where a panel has several curves of one run, the list *Matches*
  below it says which marker is which, and pointing at a curve names it.
- Set *Smoothing* to 0 to see the numbers as they are.
- *RMS norm*: the root of the mean of the squared entries. ‖W‖_R is how much a matrix can enlarge the RMS norm of what
  it is multiplied by.
- *Θ(1)*: the same at every width and depth. *Θ(1/L)*: halves where the depth doubles. So it shall be under the recipe
  (parametrization mup); under the standard one (sp) norms grow with the model, and the best learning rate moves.
"""


def pages(config: Config, plan: Plan) -> dict[str, str]:
    """Title -> Markdown; TensorBoard sorts them by title.

    Args:
        config: resolved.
        plan: of the same run.
    """
    return {
        "1_how_to_read_the_panels": READING.strip(),
        "2_this_run": _facts(config, plan),
        "3_its_values": f"{_values(plan)}\n\n{_table(config)}",
        "4_what_works_with_what": support.markdown(),
    }


def _facts(config: Config, plan: Plan) -> str:
    model, recipe, data, trainer = config.model, config.recipe, config.data, config.trainer
    parametrization = {
        "mup": f"mup: the spectral condition, k {'= 1' if recipe.branch_depth == 1 else '>= 2'}",
        "sp": "sp, the standard parametrization: base values at every size",
    }
    rows = {
        "model": f"GPT-2, width {model.width}, depth {model.depth}, context {model.context}, "
        f"{plan.parameter_count:,} parameters",
        "optimizer": recipe.optimizer,
        "parametrization": parametrization[recipe.parametrization],
        "base values": f"learning rate {recipe.lr:.6g}, weight decay {recipe.weight_decay:g}, ε {recipe.eps:g}, "
        f"init std {recipe.init_std:g}; tuned at width {recipe.base_width}, depth {recipe.base_depth}",
        "data": f"`{data.path}`, {data.batch_size} sequences of {model.context} tokens a step",
        "length": f"{trainer.max_steps:,} steps, {plan.tokens:,} tokens",
        "runs on": f"{trainer.devices * trainer.nodes} x {trainer.accelerator}, {trainer.precision}, strategy "
        f"{trainer.strategy}",
    }
    return _markdown([["this run", config.run.name], *([key, value] for key, value in rows.items())])


def _values(plan: Plan) -> str:
    """The values that training uses, a line for each distinct set."""
    header = ["role", "rule", "multiplier", "init std", "peak learning rate", "weight decay", "ε"]
    lines = {
        (p.role, p.rule, *(_number(value) for value in (p.multiplier, p.init_std, p.lr, p.weight_decay, p.eps)))
        for p in plan.parameters
    }
    order = list(dict.fromkeys(parameter.role for parameter in plan.parameters))
    return (
        "**What training uses**, by role. Input: embeddings. Hidden: matrices inside blocks. Output: the head. "
        "Multiplier: the factor of that part in the forward pass.\n\n"
    ) + _markdown([header, *map(list, sorted(lines, key=lambda line: (order.index(line[0]), line)))])


def _table(config: Config) -> str:
    """How the values scale: the tables of the optimizer, and of AdamW where it takes a part."""
    recipe = config.recipe
    if recipe.parametrization == "sp":
        return "Under sp no value depends on width or depth."
    family = variant_of(FAMILIES[recipe.optimizer], recipe.variant)
    families = [family, *([FAMILIES["adamw"]] if family.whole_matrix else [])]
    texts = [as_text(family, recipe.branch_depth) for family in families]
    return "**How the base values were scaled**\n\n" + "\n\n".join(f"```\n{text}\n```" for text in texts)


def _markdown(lines: list[list[str]]) -> str:
    head, *body = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([head, "|" + "---|" * len(lines[0]), *body])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"
