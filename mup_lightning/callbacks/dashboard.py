"""The run's page in TensorBoard: panels in the tab "Custom Scalars", and texts that explain them."""

import itertools
from dataclasses import asdict
from typing import Any

import lightning.pytorch as pl

from mup_lightning import tables
from mup_lightning.callbacks.norms import CLIPPED_NORM, GRADIENT_NORM
from mup_lightning.callbacks.spectral_monitor import BRANCHES, PRODUCTS
from mup_lightning.callbacks.step import tensorboard
from mup_lightning.config.schema import Config, TrainerConfig, leaves
from mup_lightning.model.gpt2 import GPT2
from mup_lightning.model.taps import EXPERT_POINTS, LAYER_POINTS
from mup_lightning.optim.registry import make_groups
from mup_lightning.spectral.families import FAMILIES
from mup_lightning.spectral.horizon import horizon_of
from mup_lightning.spectral.recipe import variant_of
from mup_lightning.spectral.tables import as_text

FEATURES = {
    "embedding": "embedding, the input of the first block: Θ(1)",
    "attention": "attention branch, a curve a layer: Θ(1)",
    "attention_scaled": "attention branch times its multiplier, a curve a layer: Θ(1/L)",
    "mlp": "MLP branch, a curve a layer: Θ(1)",
    "mlp_scaled": "MLP branch times its multiplier, a curve a layer: Θ(1/L)",
    "residual": "residual stream, a curve a layer: Θ(1)",
    "router": "logits of the experts' router, a curve a layer: Θ(1)",
    "largest_load": "share of the busiest expert, a curve a layer: 1/E where loads are equal",
    "final_norm": "after the final norm: Θ(1)",
    "logits": "logits: Θ(1)",
}
"""Point of `model.taps` -> its panel's title, with the scaling under the recipe with k >= 2."""

READING = """
Open the tab **Custom Scalars**: each panel answers one question, and its title says what is good. A colour is a run.
Runs of different widths and depths should lie on each other where a title says *Θ(1)*, the same at every size; *Θ(1/L)*
halves where the depth doubles. This is what the recipe (parametrization mup) promises; under the standard one (sp)
norms grow with the model, and the best learning rate moves. The *RMS norm* is the root of the mean of the squared
entries, and ‖W‖_R is how much a matrix can enlarge the RMS norm of what it is multiplied by. Set *Smoothing* to 0 to
see the values as they are. `docs/guide/tensorboard.md` explains each of them: meaning, unit and expected scaling.
"""

Charts = dict[str, list[Any]]
"""Title -> ["Multiline", patterns, which tags match from their beginning on] or ["Margin", [value, lower, upper]]."""


class Dashboard(pl.Callback):
    """Writes `panels` and `pages`, which are sorted by title, when a run begins; a resumed run has them already."""

    def __init__(self, layout: dict[str, Charts], pages: dict[str, str]) -> None:
        self.layout, self.pages = layout, pages

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write both."""
        if writer := tensorboard(trainer):
            writer.add_custom_scalars(self.layout)
            for title, text in self.pages.items():
                writer.add_text(title, text, global_step=0)


def panels(
    trainer: TrainerConfig, branch_depth: int, *, forecast: bool = False, mixed: bool = False, experts: bool = False
) -> dict[str, Charts]:
    """Category -> panels of what is logged, the same at every depth: TensorBoard merges equal ones of several runs."""
    learning = {
        "training loss, nats per token: falls": "train/loss$",
        "validation loss, nats per token: falls too": "validation/loss$",
        "bits per byte, which compares vocabularies: training and validation": "(train|validation)/bits_per_byte$",
        "learning rate over its peak: up in the warm-up, then down": "train/lr_factor$",
    }
    if mixed:
        learning["training and validation loss of each source"] = "(train|validation)/loss/.+"
    if forecast:
        learning["training loss and its forecast: smoothed, between low and high"] = r"(train/loss|forecast/\w+)$"
    stable = {
        "gradient norm: no growth over time": f"{GRADIENT_NORM}$",
        "gradient norm after clipping: at the base shape at most trainer.gradient_clip": f"{CLIPPED_NORM}$",
        "gradient norm before clipping, a curve for each update rule": rf"{GRADIENT_NORM}/(?!after_clipping)\w+$",
    }
    if trainer.spike_sigmas:
        stable["loss spikes so far: a level line"] = "train/loss_spikes$"
    fast = {"tokens per second": "train/tokens_per_second$", "seconds per step": "train/step_seconds$"}
    if trainer.peak_flops != "off":
        fast["MFU: share of the peak FLOP/s that the model uses"] = "train/mfu$"
    features = {
        title: rf"features/{point}/layer_\d+$" if point in LAYER_POINTS + EXPERT_POINTS else f"features/{point}$"
        for point, title in FEATURES.items()
        if experts or point not in EXPERT_POINTS
    }
    layout = {"Is it learning?": learning, "Is it stable?": stable, "How fast is it?": fast}
    if trainer.noise_scale_every:
        layout["Is the batch well chosen?"] = {
            "gradient noise scale, and the batch, tokens: the batch lies below": "noise_scale/(tokens|batch)$",
            "its parts: the squared gradient, and a token's variance": "noise_scale/(gradient_square|variance)$",
        }
    if trainer.feature_norms_every:
        layout["Do features keep their size? RMS norms, the same for every width and depth"] = features
    charts: dict[str, Charts] = {
        category: {title: ["Multiline", [pattern]] for title, pattern in patterns.items()}
        for category, patterns in layout.items()
    }
    if trainer.spectral_norms_every:
        charts["Does the spectral condition hold? The same at every size"] = _spectral(branch_depth)
    return charts


def _spectral(branch_depth: int) -> Charts:
    """The condition by role, then the norms that it is made of."""
    charts: Charts = {}
    for quantity, text in (("w", "α‖W‖_R"), ("dw", "α‖ΔW‖_R, of one step")):
        tags = [f"spectral/condition/{at}/{quantity}$" for at in ("input/token", "input/position", "output/head")]
        charts[f"input and output: {text}"] = ["Multiline", tags]
        norms = [rf"spectral/norms/hidden/\w+/{quantity}/mean$"]
        charts[f"hidden matrices: {text.replace('α', '').replace(', ', ' ')}, mean over layers"] = ["Multiline", norms]
    for branch, (product, formula) in itertools.product(BRANCHES, PRODUCTS.items()):
        text = formula.replace("·L", "·√L") if product == "w2_w1" and branch_depth == 1 else formula
        tags = [f"spectral/condition/{branch}/{product}/{end}" for end in ("mean", "min", "max")]
        charts[f"{branch} branch: {text}, mean and range over layers"] = ["Margin", tags]
    return charts


def pages(config: Config, model: GPT2) -> dict[str, str]:
    """Title -> text in Markdown: how to read the panels, what is trained, with which values."""
    infos, base = model.parameter_info.values(), config.recipe
    facts = [
        ["this run", config.run.name],
        ["size", f"{sum(info.numel for info in infos):,} parameters, {config.tokens:,} tokens"],
        *([key, str(value)] for key, value in leaves(asdict(config)).items()),
    ]
    if base.parametrization != "mup":
        scaling = f"Under {base.parametrization} the condition scales no value with width or depth."
    else:
        family = variant_of(FAMILIES[base.optimizer], base.variant)
        families = [family, *([FAMILIES["adamw"]] if family.whole_matrix else [])]
        horizon = horizon_of(base.time_rule, base.law)
        texts = [f"```\n{as_text(family, base.branch_depth, horizon)}\n```" for family in families]
        scaling = "\n\n".join(["**How the base values were scaled**", *texts])
    over_time = "".join(f"{line}\n\n" for line in config.over_time())
    recipe = config.derive()
    values = [["role", "rule", "init std", "peak learning rate", "weight decay", "ε", "decays of averages"]]
    labels: dict[tuple[str, ...], list[str]] = {}
    for group in make_groups(dict(model.named_parameters()), model.parameter_info, recipe, config.rules):
        for info in group["infos"]:
            std = None if info.role.is_vector else recipe.of(info).init_std
            numbers = (std, group["lr"], group["weight_decay"], group.get("eps"))
            decays = ", ".join(f"{name} {group[name]:.6g}" for name in FAMILIES[group["rule"]].averages) or "-"
            texts_of = ("-" if number is None else f"{number:.6g}" for number in numbers)
            row = (info.role, group["rule"], *texts_of, decays)
            labels.setdefault(row, []).append(info.label)
    values += [[f"{row[0]} ({', '.join(dict.fromkeys(mine))})", *row[1:]] for row, mine in labels.items()]
    multipliers = ", ".join(f"{part} {value:.6g}" for part, value in vars(recipe.multipliers).items())
    return {
        "1_how_to_read_the_panels": READING.strip(),
        "2_this_run": tables.markdown(facts),
        "3_its_values": f"**What training uses**, by role. Multipliers of the forward pass: {multipliers}.\n\n"
        f"{tables.markdown(values)}\n\n{over_time}{scaling}",
    }
