"""From the condition and an optimizer family to numbers: learning rates, weight decays, ε, inits, multipliers.

    η ∝ ‖ΔW‖_R / ‖A‖_R        λ ∝ ‖A‖_R / ‖W‖_R        (arXiv 2603.00541, section 4)

`exponents` gives one cell of the paper's tables; `derive` evaluates all of them for a model, away from a tuned base.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from mup_lightning.errors import UserError
from mup_lightning.spectral.condition import solve
from mup_lightning.spectral.families import FAMILIES, Family
from mup_lightning.spectral.roles import Role
from mup_lightning.spectral.scale import ONE, Scale
from mup_lightning.typed import NonNegativeFloat, PositiveFloat, PositiveInt, Typed

if TYPE_CHECKING:
    OptimizerName = str
else:
    OptimizerName = Literal[tuple(FAMILIES)]


@dataclass
class RecipeConfig(Typed, prefix="recipe."):
    """What is tuned on the base model, and the shape that it was tuned at. Everything else is derived.

    Attributes:
        optimizer: the update rule. One that needs whole matrices (muon, soap, ...) updates the matrices inside blocks
            and leaves all else to AdamW; any other (adamw, lion, ...) updates everything.
        pure: a matrix optimizer updates embeddings and head too; AdamW keeps only the vectors.
        variant: size of the optimizer's update: from the paper (published), or as `mup-lightning probe` measured the
            implementation here (measured), where the two differ.
        parametrization: mup applies the spectral condition; sp uses the base values unchanged at every size.
        branch_depth: k, the matrices in a residual branch that the condition counts: 1, or 2 or more (all agree).
        lr: base learning rate, at the base shape.
        weight_decay: base decoupled weight decay; one step removes lr x weight_decay of a weight.
        eps: base ε of AdamW, and of Shampoo.
        aux_lr_factor: learning rate over lr of everything but the matrices inside blocks: embeddings, head, biases and
            gains (in pure mode only biases and gains), whichever optimizer updates them; null: the family's own.
        init_std: σ, the base standard deviation of all weight matrices.
        input_multiplier: base multiplier of the embeddings' output.
        residual_multiplier: base multiplier of every residual branch.
        output_multiplier: base multiplier of the logits.
        decay_vectors: whether biases and LayerNorm gains are decayed too.
        gpt2_residual_init: GPT-2's extra factor 1/√(2·depth) on the init of each branch's last matrix.
        base_width: width of the base model, at which the values above were tuned.
        base_depth: depth (blocks) of the base model.
    """

    optimizer: OptimizerName = "muon_kimi"
    pure: bool = False
    variant: Literal["published", "measured"] = "published"
    parametrization: Literal["sp", "mup"] = "mup"
    branch_depth: PositiveInt = 2
    lr: PositiveFloat = 2**-7
    weight_decay: NonNegativeFloat = 0.0
    eps: NonNegativeFloat = 1e-16
    aux_lr_factor: PositiveFloat | None = None
    init_std: PositiveFloat = 0.02
    input_multiplier: PositiveFloat = 1.0
    residual_multiplier: PositiveFloat = 1.0
    output_multiplier: PositiveFloat = 1.0
    decay_vectors: bool = True
    gpt2_residual_init: bool = False
    base_width: PositiveInt = 256
    base_depth: PositiveInt = 4

    def __post_init__(self) -> None:
        """Raise UserError, naming the keys, for values that contradict each other."""
        super().__post_init__()
        chosen = FAMILIES[self.optimizer]
        if self.eps < chosen.least_eps:
            raise UserError(
                f"recipe.eps is {self.eps:g}, below the rounding of {self.optimizer}'s float32 state, so that noise "
                f"would decide its steps (docs/results/probe.md); set recipe.eps to {chosen.least_eps:g} or more "
                f"(recipes/optimizer/{self.optimizer}.yaml has {chosen.base_eps:g})"
            )
        if self.pure and not chosen.whole_matrix:
            raise UserError(
                f"recipe.pure is true, but {self.optimizer} updates every parameter anyway; leave recipe.pure out, or "
                f"choose one of {', '.join(family.name for family in FAMILIES.values() if family.whole_matrix)}"
            )
        if self.variant == "measured" and chosen.measured is None:
            differing = ", ".join(family.name for family in FAMILIES.values() if family.measured)
            raise UserError(
                f"recipe.variant is measured, but {self.optimizer} was measured as it is published "
                f"(docs/results/probe.md); leave recipe.variant out, or choose recipe.optimizer {differing}"
            )


@dataclass(frozen=True)
class Exponents:
    """One row of the tables: how each hyper-parameter of one role scales with width and depth."""

    multiplier: Scale
    init_var: Scale
    lr: Scale
    weight_decay: Scale
    eps: Scale | None


@dataclass(frozen=True)
class Values:
    """The numbers that training uses for the parameters of one role.

    Attributes:
        rule: name of the update rule.
        lr: peak learning rate, before the schedule.
        weight_decay: decoupled; one step at the peak removes lr x weight_decay of a weight.
        eps: the rule's stabiliser; None where it has none.
        init_std: standard deviation of a matrix's entries; vectors ignore it.
    """

    rule: str
    lr: float
    weight_decay: float
    eps: float | None
    init_std: float


@dataclass(frozen=True)
class Multipliers:
    """The factors of the forward pass: on the embeddings' output, on every residual branch, on the logits."""

    input: float = 1.0
    residual: float = 1.0
    output: float = 1.0


@dataclass(frozen=True)
class Recipe:
    """The recipe evaluated for one model: a value for every role, and the multipliers."""

    values: dict[Role, Values]
    multipliers: Multipliers


def exponents(family: Family, role: Role, branch_depth: int) -> Exponents:
    """One row of the paper's tables: factors on the base values, as powers of r_n and r_L.

    Args:
        family: the optimizer family.
        role: the parameter's role.
        branch_depth: k; see `condition.solve`.
    """
    weight = solve(role, branch_depth)
    direction = family.direction(weight)
    return Exponents(
        multiplier=weight.multiplier,
        init_var=weight.init_var,
        lr=weight.update / direction,
        weight_decay=direction / weight.norm,
        eps=family.epsilon(weight) if family.epsilon else None,
    )


def variant_of(family: Family, variant: str) -> Family:
    """The family as published, or with its measured update where there is one."""
    return replace(family, direction=family.measured) if variant == "measured" and family.measured else family


def family_of(config: RecipeConfig, role: Role) -> Family:
    """The family that updates a role: a whole-matrix optimizer takes the matrices inside blocks, AdamW all else.

    In pure mode it takes embeddings and head too.
    """
    family = variant_of(FAMILIES[config.optimizer], config.variant)
    return family if not family.whole_matrix or is_main(config, role) else FAMILIES["adamw"]


def is_main(config: RecipeConfig, role: Role) -> bool:
    """Whether `lr` itself is this role's base rate, rather than `lr` x `aux_lr_factor`."""
    return role is Role.HIDDEN or (config.pure and not role.is_vector)


def derive(config: RecipeConfig, width: int, depth: int) -> Recipe:
    """Scale the base values to a model of another width and depth.

    Args:
        config: base values, and the base shape that they were tuned at.
        width: n of the model to train.
        depth: L, its number of blocks (each with an attention and an MLP branch, which share one multiplier).

    Returns:
        The values for every role. At the base shape they equal the base values to the bit.
    """
    r_n, r_L = width / config.base_width, depth / config.base_depth

    def factor(scale: Scale) -> float:
        return (ONE if config.parametrization == "sp" else scale).at(r_n, r_L)

    main = variant_of(FAMILIES[config.optimizer], config.variant)
    aux_factor = main.aux_lr_factor if config.aux_lr_factor is None else config.aux_lr_factor
    values: dict[Role, Values] = {}
    for role in Role:
        family = family_of(config, role)
        row = exponents(family, role, config.branch_depth)
        decayed = config.decay_vectors or not role.is_vector
        values[role] = Values(
            rule=family.name,
            lr=config.lr * factor(row.lr) * (1.0 if is_main(config, role) else aux_factor),
            weight_decay=config.weight_decay * factor(row.weight_decay) if decayed else 0.0,
            eps=None if row.eps is None else config.eps * factor(row.eps),
            init_std=config.init_std * factor(row.init_var) ** 0.5,
        )

    def multiplier(role: Role) -> float:
        return factor(exponents(main, role, config.branch_depth).multiplier)

    return Recipe(
        values=values,
        multipliers=Multipliers(
            input=config.input_multiplier * multiplier(Role.INPUT),
            residual=config.residual_multiplier * multiplier(Role.HIDDEN),
            output=config.output_multiplier * multiplier(Role.OUTPUT),
        ),
    )
