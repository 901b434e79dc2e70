"""From the condition and an optimizer family to numbers: learning rates, weight decays, ε, inits, multipliers.

    η ∝ ‖ΔW‖_R / ‖A‖_R        λ ∝ ‖A‖_R / ‖W‖_R        (arXiv 2603.00541, section 4)

`exponents` gives one cell of the paper's tables; `derive` evaluates all of them for a model, away from a tuned base.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from mup_lightning.errors import UserError
from mup_lightning.spectral.condition import solve
from mup_lightning.spectral.families import FAMILIES, Family
from mup_lightning.spectral.horizon import Law, read_law
from mup_lightning.spectral.roles import LABELS, ParameterInfo, Role, Side
from mup_lightning.spectral.scale import M, Scale
from mup_lightning.typed import Bound, NonNegativeFloat, PositiveFloat, PositiveInt, Typed, unknown_key

DECAY_RULES = {"spectral": 0.0, "sqrt_width": 0.5, "inverse_width": 1.0, "inverse_square": 2.0}
"""Rule -> a, where lr x weight_decay of the matrices inside blocks, the share of them that a step removes, goes as
n^-a. spectral: arXiv 2603.00541 (AdamW: λ ∝ n); sqrt_width: arXiv 2510.15262 (AdamW: λ ∝ √n); inverse_width: arXiv
2512.05620 (independent decay ∝ 1/n); inverse_square: nanochat's log, where tokens grow with the model, too."""

Parametrization = Literal["mup", "sp", "gpt2", "sp_embedding"]

if TYPE_CHECKING:
    OptimizerName = str
    DecayRule = str
else:
    OptimizerName, DecayRule = Literal[tuple(FAMILIES)], Literal[tuple(DECAY_RULES)]

FITTED = "fitted:"

TimeRule = Annotated[
    str,
    Bound("none, sde, or fitted:FILE", lambda rule: rule in ("none", "sde") or (rule[:7] == FITTED and rule != FITTED)),
]


@dataclass
class BaseFactors:
    """Factors on the common base values (of ε: the rule's), for the parameters of one role or label."""

    lr: PositiveFloat = 1.0
    weight_decay: NonNegativeFloat = 1.0
    init_std: NonNegativeFloat = 1.0
    eps: PositiveFloat = 1.0


@dataclass
class RecipeConfig(Typed, prefix="recipe."):
    """What is tuned on the base model, and the shape that it was tuned at. Everything else is derived.

    Attributes:
        optimizer: the update rule. One that needs whole matrices (muon, soap, ...) updates the matrices inside blocks
            and leaves all else to AdamW; any other (adamw, lion, ...) updates everything.
        pure: a matrix optimizer updates embeddings and head too; AdamW keeps only the vectors.
        variant: size of the optimizer's update: from the paper (published), or as `mup-lightning probe` measured the
            implementation here (measured), where the two differ.
        parametrization: mup applies the spectral condition; sp uses the base values unchanged at every size; gpt2 is sp
            with nanoGPT's init (1/√(2·depth) on each branch's last matrix) and decay (no vectors); sp_embedding is sp
            with the embeddings' learning rate times r_n, which arXiv 2605.21486 finds to be most of muP's gain.
        branch_depth: k, the matrices in a residual branch that the condition counts: 1, or 2 or more (all agree).
        lr: base learning rate, at the base shape.
        weight_decay: base decoupled weight decay; one step removes lr x weight_decay of a weight.
        base: factors on lr, weight_decay, init_std and eps of single roles or labels, before they are scaled:
            recipe.base.head.init_std 4. Labels are embedding, position, attention, mlp, head, gain and bias.
        eps: base ε of AdamW and Adan, and of other rules that need one and have none of their own (rules.shampoo.eps).
        aux_lr_factor: learning rate over lr of everything but the matrices inside blocks: embeddings, head, biases and
            gains (in pure mode only biases and gains), whichever optimizer updates them; null: the family's own.
        init_std: σ, the base standard deviation of all weight matrices.
        input_multiplier: base multiplier of the embeddings' output.
        residual_multiplier: base multiplier of every residual branch.
        output_multiplier: base multiplier of the logits.
        decay_vectors: whether biases are decayed too.
        decay_gains: whether the norms' gains are, which pulls them to 0; needs decay_vectors.
        weight_decay_rule: how the weight decay of the matrices inside blocks scales with width: `DECAY_RULES`.
        scale_clip: trainer.gradient_clip is in units of the gradients' size at the base shape, each role's as the
            condition scales it; false: the plain global norm, which falls with width.
        gpt2_residual_init: GPT-2's extra factor on the init of each branch's last matrix: 1/√(2·depth) under sp,
            1/√(2·base_depth) under mup, whose multiplier has the depth already.
        base_width: width of the base model, at which the values above were tuned.
        base_depth: depth (blocks) of the base model.
        time_rule: how values follow the batch B (tokens of an optimizer step) and the horizon T (tokens of the run):
            none; sde, derived (`spectral/horizon.py`); or fitted:FILE, by the law in that file.
        base_batch: tokens of an optimizer step, data.batch_size x model.context, at which the values above were tuned.
        base_tokens: tokens of the run that they were tuned in.
        tokens: T that they are scaled to; null: the run's own. A run that is lengthened keeps its rates by naming the
            T that it was begun with.
        law: contents of the file of time_rule, which is read where they are null.
    """

    optimizer: OptimizerName = "muon_kimi"
    pure: bool = False
    variant: Literal["published", "measured"] = "published"
    parametrization: Parametrization = "mup"
    branch_depth: PositiveInt = 2
    lr: PositiveFloat = 2**-7
    weight_decay: NonNegativeFloat = 0.0
    base: dict[str, BaseFactors] = field(default_factory=dict)
    eps: NonNegativeFloat = 1e-16
    aux_lr_factor: PositiveFloat | None = None
    init_std: PositiveFloat = 0.02
    input_multiplier: PositiveFloat = 1.0
    residual_multiplier: PositiveFloat = 1.0
    output_multiplier: PositiveFloat = 1.0
    decay_vectors: bool = True
    decay_gains: bool = False
    weight_decay_rule: DecayRule = "spectral"
    scale_clip: bool = True
    gpt2_residual_init: bool = False
    base_width: PositiveInt = 256
    base_depth: PositiveInt = 4
    time_rule: TimeRule = "none"
    base_batch: PositiveInt | None = None
    base_tokens: PositiveInt | None = None
    tokens: PositiveInt | None = None
    law: Law | None = None

    def __post_init__(self) -> None:
        """Raise UserError, naming the keys, for values that contradict each other."""
        super().__post_init__()
        chosen = FAMILIES[self.optimizer]
        for key in self.base:
            if key not in (names := [*Role, *LABELS]):
                raise unknown_key(f"recipe.base.{key}", [f"recipe.base.{name}" for name in names])
        if self.pure and not chosen.whole_matrix:
            others = ", ".join(family.name for family in FAMILIES.values() if family.whole_matrix)
            anyway = f"recipe.pure is true, but {self.optimizer} updates every parameter anyway"
            raise UserError(f"{anyway}; leave recipe.pure out, or choose one of {others}")
        if self.variant == "measured" and chosen.measured is None:
            differing = ", ".join(family.name for family in FAMILIES.values() if family.measured)
            same = f"recipe.variant is measured, but {self.optimizer} was measured as it is published"
            raise UserError(f"{same} (docs/results/probe.md); leave it out, or choose recipe.optimizer {differing}")
        self._check_time()

    def _check_time(self) -> None:
        """Read the law, and raise UserError where the keys of time contradict each other."""
        fitted = self.time_rule.startswith(FITTED)
        if fitted and self.law is None:
            self.law = read_law(Path(self.time_rule.removeprefix(FITTED)).expanduser())
        base: dict[str, int | None] = {"recipe.base_batch": self.base_batch, "recipe.base_tokens": self.base_tokens}
        useless: dict[str, object] = {} if fitted else {"recipe.law": self.law}
        useless |= base | {"recipe.tokens": self.tokens} if self.time_rule == "none" else {}
        if given := [key for key, value in useless.items() if value is not None]:
            does = f"recipe.time_rule is {self.time_rule}, for which {' and '.join(given)} would do nothing"
            raise UserError(f"{does}; leave it out, or set recipe.time_rule to sde or fitted:FILE")
        if self.time_rule != "none" and (missing := [key for key, value in base.items() if value is None]):
            needs = f"recipe.time_rule is {self.time_rule}, but {' and '.join(missing)} is null"
            raise UserError(f"{needs}; give the tokens of a step and of the run that recipe.lr was tuned with")
        if self.law and (self.law.optimizer, self.law.value) != (self.optimizer, "recipe.lr"):
            of = f"the law of {self.time_rule} is of {self.law.value} for {self.law.optimizer}"
            raise UserError(f"{of}; expected one of recipe.lr for {self.optimizer}")


@dataclass(frozen=True)
class Exponents:
    """One row of the tables: how each hyper-parameter of one role scales; `scaled` has the update rule's options."""

    multiplier: Scale
    init_var: Scale
    lr: Scale
    weight_decay: Scale
    scaled: dict[str, Scale]

    @property
    def eps(self) -> Scale | None:
        """The scale of the stabiliser ε; None where the rule has none that matters."""
        return self.scaled.get("eps")


@dataclass(frozen=True)
class Values:
    """The numbers that training uses for one parameter, or for those of one role.

    Attributes:
        rule: its name.
        lr: peak learning rate, before the schedule.
        weight_decay: decoupled; one step at the peak removes lr x weight_decay of a weight.
        init_std: standard deviation of a matrix's entries; vectors ignore it.
        scaled: option of the rule -> the factor on its base value.
        gradient: size of all gradients of this role over that at the base shape, the unit in which they are clipped.
    """

    rule: str
    lr: float
    weight_decay: float
    init_std: float
    scaled: dict[str, float]
    gradient: float = 1.0


@dataclass(frozen=True)
class Multipliers:
    """The factors of the forward pass: on the embeddings' output, every residual branch, logits, attention logits."""

    input: float = 1.0
    residual: float = 1.0
    output: float = 1.0
    attention: float = 1.0


@dataclass(frozen=True)
class Recipe:
    """The recipe evaluated for one model.

    `values` are those of each role, without what only single parameters have (`exactly`; None: nothing); `eps` is the
    base ε of rules that have none of their own.
    """

    values: dict[Role, Values]
    multipliers: Multipliers
    eps: float = 1e-16
    exactly: Callable[[ParameterInfo], Values] | None = field(default=None, compare=False)

    def of(self, info: ParameterInfo) -> Values:
        """The values of a parameter: its role's, with its own sides and base values."""
        return self.exactly(info) if self.exactly else self.values[info.role]


def representable(what: str, value: float) -> float:
    """The value, which float32 can hold. Raises UserError where it cannot."""
    if abs(value) < 1e35:
        return value
    raise UserError(f"{what} of this model comes out as {value:g}, which float32 cannot hold; lower its base values")


def exponents(
    family: Family, role: Role, branch_depth: int, n_out: Scale | None = None, stepped: Scale | None = None
) -> Exponents:
    """One row of the paper's tables: factors on the base values, as powers of r_n and r_L, at k = `branch_depth`.

    `n_out` is how the output side scales where that is not as the role's, and `stepped` that of each of the matrices,
    stacked along the outputs, that the rule takes for one.
    """
    weight = solve(role, branch_depth, n_out)
    direction = family.direction(replace(weight, n_out=stepped or weight.n_out))
    return Exponents(
        multiplier=weight.multiplier,
        init_var=weight.init_var,
        lr=weight.update / direction,
        weight_decay=direction / weight.norm,
        scaled={option: scale(weight) for option, scale in family.scaled.items()},
    )


def variant_of(family: Family, variant: str) -> Family:
    """The family as published, or with its measured update where there is one."""
    return replace(family, direction=family.measured) if variant == "measured" and family.measured else family


def is_main(config: RecipeConfig, role: Role) -> bool:
    """Whether `lr` itself is this role's base rate, rather than `lr` x `aux_lr_factor`."""
    return role is Role.HIDDEN or (config.pure and not role.is_vector)


def derive(
    config: RecipeConfig,
    width: int,
    depth: int,
    head_dims: tuple[float, float] = (1, 1),
    sides: Mapping[Side, float] | None = None,
    per_head: bool = False,
) -> Recipe:
    """Scale the base values to a model of another width n and depth L (blocks, whose branches share one multiplier).

    `head_dims` are the dimension of an attention head in the base model and in this one. Where it grows, queries and
    keys come to be aligned, their product grows as d rather than √d, and so the logits' factor 1/√d becomes √d_base/d
    (Yang et al. 2022, Tensor Programs V, definition 4.1). `sides` are output sides that are not the width, over the
    base model's, needed where the model has any. `per_head`: the rule takes every head's queries, keys and
    values for matrices of their own. At the base shape values equal the base values to the bit.
    """
    mup = config.parametrization == "mup"
    r_n, r_L = (width / config.base_width, depth / config.base_depth) if mup else (1.0, 1.0)
    main = variant_of(FAMILIES[config.optimizer], config.variant)
    aux_factor = main.aux_lr_factor if config.aux_lr_factor is None else config.aux_lr_factor
    # GPT-2's factor counts the blocks of the model; under the recipe those of the base, or it would come on top of 1/L.
    closing = (2 * (config.base_depth if mup else depth)) ** -0.5

    @cache
    def values(role: Role, r_side: float, n_out: Scale, r_m: float = 1.0, r_head: float | None = None) -> Values:
        # A whole-matrix optimizer takes what is_main, AdamW all else.
        family = main if not main.whole_matrix or is_main(config, role) else FAMILIES["adamw"]
        row, weight = exponents(family, role, config.branch_depth, n_out), solve(role, config.branch_depth, n_out)
        # A step by heads depends on the heads' dimension in the place of m, and in nothing on the matrix's own side.
        step, r_step = (row, r_m) if r_head is None else (exponents(family, role, config.branch_depth, None, M), r_head)
        lr, decay = step.lr.at(r_n, r_L, r_side, r_step), step.weight_decay.at(r_n, r_L, r_side, r_step)
        if config.parametrization == "sp_embedding" and role is Role.INPUT:
            lr, decay = width / config.base_width, config.base_width / width
        if role is Role.HIDDEN:
            decay *= r_n ** -DECAY_RULES[config.weight_decay_rule]
        decayed = not role.is_vector or (config.decay_vectors and config.parametrization != "gpt2")
        return Values(
            rule=family.name,
            lr=config.lr * lr * (1.0 if is_main(config, role) else aux_factor),
            weight_decay=config.weight_decay * decay if decayed else 0.0,
            init_std=config.init_std * row.init_var.at(r_n, r_L, None, r_m) ** 0.5,
            scaled={option: scale.at(r_n, r_L, None, r_m) for option, scale in row.scaled.items()},
            gradient=weight.role_gradient.at(r_n, r_L, None, r_m) if config.scale_clip else 1.0,
        )

    def exactly(info: ParameterInfo) -> Values:
        fixed = info.shape[0] if info.role in (Role.INPUT, Role.OUTPUT) else 0
        r_side = max(width, fixed) / max(config.base_width, fixed) if mup else 1.0
        ratios = (sides or {}) if mup else dict.fromkeys(("kv", "head"), 1.0)
        r_head = ratios["head"] if per_head and info.heads else None
        found = values(info.role, r_side, info.n_out, ratios[info.side] if info.side else 1.0, r_head)
        base = [BaseFactors(), *(config.base[key] for key in (info.role, info.label) if key in config.base)]
        lr, decay, std, eps = (
            math.prod(getattr(factors, key) for factors in base) for key in ("lr", "weight_decay", "init_std", "eps")
        )
        closes = info.closes_branch and (config.gpt2_residual_init or config.parametrization == "gpt2")
        return replace(
            found,
            lr=found.lr * lr,
            weight_decay=0.0 if info.label == "gain" and not config.decay_gains else found.weight_decay * decay,
            init_std=representable(f"init_std of {info.name}", found.init_std * std * (closing if closes else 1.0)),
            scaled={option: factor * (eps if option == "eps" else 1.0) for option, factor in found.scaled.items()},
        )

    def multiplier(role: Role) -> float:
        base = {Role.INPUT: config.input_multiplier, Role.HIDDEN: config.residual_multiplier}
        own = exponents(main, role, config.branch_depth).multiplier.at(r_n, r_L)
        return representable(f"the multiplier {role}", base.get(role, config.output_multiplier) * own)

    return Recipe(
        values={role: values(role, r_n, role.n_out) for role in Role},
        multipliers=Multipliers(
            input=multiplier(Role.INPUT),
            residual=multiplier(Role.HIDDEN),
            output=multiplier(Role.OUTPUT),
            attention=(head_dims[0] / head_dims[1]) ** 0.5 if mup else 1.0,
        ),
        eps=config.eps,
        exactly=exactly,
    )
