"""From the condition and an optimizer family to numbers: learning rates, weight decays, ε, inits, multipliers.

    η ∝ ‖ΔW‖_R / ‖A‖_R        λ ∝ ‖A‖_R / ‖W‖_R        (arXiv 2603.00541, section 4)

`exponents` gives one cell of the paper's tables; `derive` evaluates all of them for a model, away from a tuned base.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache

from mup_lightning.errors import UserError
from mup_lightning.spectral.base import DECAY_RULES, BaseFactors, RecipeConfig
from mup_lightning.spectral.condition import solve
from mup_lightning.spectral.families import FAMILIES, Family
from mup_lightning.spectral.horizon import NONE, Horizon, horizon_of, refuse_unfitted
from mup_lightning.spectral.roles import Declaration, ParameterInfo, Role, Side
from mup_lightning.spectral.scale import M, Ratios, Scale


@dataclass(frozen=True)
class Exponents:
    """One row of the tables: how each hyper-parameter of one role scales.

    `scaled` has the update rule's options, whose decays of averages are raised to the power `averages`; `gradient` is
    the size of the role's gradients.
    """

    multiplier: Scale
    init_var: Scale
    lr: Scale
    weight_decay: Scale
    scaled: dict[str, Scale]
    averages: Scale | None
    gradient: Scale

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
        powers: option of the rule, a decay of an average -> the power that its base value is raised to.
        over_time: lr, weight_decay or option -> what of its factor is due to batch and horizon.
    """

    rule: str
    lr: float
    weight_decay: float
    init_std: float
    scaled: dict[str, float]
    gradient: float = 1.0
    powers: dict[str, float] = field(default_factory=dict)
    over_time: dict[str, float] = field(default_factory=dict)


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
    base ε of rules that have none of their own; `own` are the roles and labels that have base values of their own.
    """

    values: dict[Role, Values]
    multipliers: Multipliers
    eps: float = 1e-16
    own: tuple[str, ...] = ()
    exactly: Callable[[ParameterInfo], Values] | None = field(default=None, compare=False)

    def of(self, info: ParameterInfo) -> Values:
        """The values of a parameter: its role's, with its own sides and base values."""
        return self.exactly(info) if self.exactly else self.values[info.role]


def representable(what: str, value: float) -> float:
    """The value, which float32 can hold. Raises UserError where it cannot."""
    if abs(value) < 1e35:
        return value
    raise UserError(f"{what} of this model comes out as {value:g}, which float32 cannot hold; lower its base values")


@cache
def exponents(
    family: Family,
    role: Role,
    branch_depth: int,
    n_out: Scale | None = None,
    stepped: Scale | None = None,
    horizon: Horizon = NONE,
    routed: bool = False,
) -> Exponents:
    """One row of the paper's tables: factors on the base values, as powers of r_n and r_L, at k = `branch_depth`.

    `n_out` is how the output side scales where that is not as the role's, and `stepped` that of each of the matrices,
    stacked along the outputs, that the rule takes for one. `horizon` adds powers of batch and tokens. `routed`: it is
    one of E experts, or of their router's rows.
    """
    weight = solve(role, branch_depth, n_out, horizon.noise, routed)
    direction = family.direction(replace(weight, n_out=stepped or weight.n_out))
    return Exponents(
        multiplier=weight.multiplier,
        init_var=weight.init_var,
        lr=weight.update * horizon.update / direction,
        weight_decay=direction / weight.norm * horizon.removed / horizon.update,
        scaled={option: scale(weight) for option, scale in family.scaled.items()},
        averages=horizon.power if family.averages else None,
        gradient=weight.role_gradient,
    )


@cache
def variant_of(family: Family, variant: str) -> Family:
    """The family as published, or with its measured update where there is one."""
    return replace(family, direction=family.measured) if variant == "measured" and family.measured else family


def derive(
    config: RecipeConfig,
    width: int,
    depth: int,
    head_dims: tuple[float, float] = (1, 1),
    sides: Mapping[Side, float] | None = None,
    per_head: bool = False,
    batch: int | None = None,
    tokens: int | None = None,
) -> Recipe:
    """Scale the base values to a model of another width n and depth L (blocks, whose branches share one multiplier).

    And, where there is a time_rule, to a run of `tokens` in steps of `batch` tokens; None: the base's.

    `head_dims` are the dimension of an attention head in the base model and in this one. Where it grows, queries and
    keys come to be aligned, their product grows as d rather than √d, and so the logits' factor 1/√d becomes √d_base/d
    (Yang et al. 2022, Tensor Programs V, definition 4.1). `sides` are output sides that are not the width, over the
    base model's, needed where the model has any, and experts their number. `per_head`: the rule takes every head's
    queries, keys and values for matrices of their own. At the base shape values equal the base values to the bit.
    """
    mup, nano, k = config.parametrization == "mup", config.parametrization == "gpt2", config.branch_depth
    r_n, r_L = (width / config.base_width, depth / config.base_depth) if mup else (1.0, 1.0)
    r_B = (batch or config.base_batch) / config.base_batch if config.base_batch else 1.0
    r_T = (tokens or config.base_tokens) / config.base_tokens if config.base_tokens else 1.0
    ratios: Mapping[Side, float] = (sides or {}) if mup else dict.fromkeys(("kv", "head"), 1.0)
    here = Ratios(r_n, r_L, experts=ratios.get("experts", 1.0), batch=r_B, tokens=r_T)
    horizon = horizon_of(config.time_rule, config.law)
    if config.law:
        refuse_unfitted(config.law, here)
    main = variant_of(FAMILIES[config.optimizer], config.variant)
    aux_factor = main.aux_lr_factor if config.aux_lr_factor is None else config.aux_lr_factor
    # GPT-2's factor counts the blocks of the model; under the recipe those of the base, or it would come on top of 1/L.
    closing = (2 * (config.base_depth if mup else depth)) ** -0.5

    def values(info: Declaration, fixed: int = 0) -> Values:
        """`fixed` is the side of embeddings and head that does not grow."""
        role = info.role
        # A whole-matrix optimizer takes these, AdamW all else; `lr` is their base rate, without `aux_lr_factor`.
        is_main = role is Role.HIDDEN or (config.pure and not role.is_vector)
        family = main if is_main or not main.whole_matrix else FAMILIES["adamw"]
        row = exponents(family, role, k, info.n_out, horizon=horizon, routed=info.routed)
        r_side = max(width, fixed) / max(config.base_width, fixed) if mup else 1.0
        own = replace(here, side=r_side, own=1.0 if info.side in ("", "experts") else ratios[info.side])
        step, of_step = row, own
        if per_head and info.heads:  # it depends on the heads' dimension, and in nothing on the matrix's own side
            step, of_step = exponents(family, role, k, None, M, horizon), replace(own, own=ratios["head"])
        lr, decay = step.lr.at(of_step), step.weight_decay.at(of_step)
        if config.parametrization == "sp_embedding" and role is Role.INPUT:
            lr, decay = lr * (width / config.base_width), decay * (config.base_width / width)
        if role is Role.HIDDEN:
            decay *= r_n ** -DECAY_RULES[config.weight_decay_rule]
        decayed = config.decay_gains if info.label == "gain" else True
        if role.is_vector:
            decayed = decayed and config.decay_vectors and not nano
        base = [config.base[key] for key in (role, info.label) if key in config.base]
        factor = {key: math.prod(getattr(of, key) for of in base) for key in ("lr", "weight_decay", "init_std", "eps")}
        std = config.init_std * row.init_var.at(own) ** 0.5 * (1.0 if nano else factor["init_std"])
        if info.closes_branch and (config.gpt2_residual_init or nano):
            std *= closing
        return Values(
            rule=family.name,
            lr=config.lr * lr * (1.0 if is_main else aux_factor) * factor["lr"],
            weight_decay=config.weight_decay * decay * factor["weight_decay"] if decayed else 0.0,
            init_std=std,
            scaled={key: scale.at(own) * (factor["eps"] if key == "eps" else 1.0) for key, scale in row.scaled.items()},
            gradient=row.gradient.at(own) if config.scale_clip else 1.0,
            powers=dict.fromkeys(family.averages, horizon.power.at(here)),
            over_time={
                key: scale.over_time.at(here)
                for key, scale in (("lr", row.lr), ("weight_decay", row.weight_decay), *row.scaled.items())
                if config.time_rule != "none"
            },
        )

    def exactly(info: ParameterInfo) -> Values:
        found = values(info, info.shape[0] if info.role in (Role.INPUT, Role.OUTPUT) else 0)
        representable(f"init_std of {info.name}", found.init_std)
        return found

    def multiplier(role: Role, base: float) -> float:
        return representable(f"the multiplier {role}", (1.0 if nano else base) * solve(role, k).multiplier.at(here))

    return Recipe(
        values={role: values(Declaration(role)) for role in Role},
        multipliers=Multipliers(
            input=multiplier(Role.INPUT, config.input_multiplier),
            residual=multiplier(Role.HIDDEN, config.residual_multiplier),
            output=multiplier(Role.OUTPUT, config.output_multiplier),
            attention=(head_dims[0] / head_dims[1]) ** 0.5 if mup else 1.0,
        ),
        eps=config.eps,
        own=tuple(key for key, factors in config.base.items() if factors != BaseFactors()),
        exactly=exactly,
    )
