"""What is tuned on a base model, and what the base is: the section `recipe` of the configuration."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from mup_lightning.errors import UserError
from mup_lightning.spectral.families import FAMILIES
from mup_lightning.spectral.horizon import FITTED, Law, TimeRule, read_law
from mup_lightning.spectral.roles import LABELS, Role
from mup_lightning.typed import NonNegativeFloat, PositiveFloat, PositiveInt, Typed, unknown_key

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
            with nanoGPT's init (init_std, and 1/√(2·depth) on each branch's last matrix; no multipliers and no factors
            on it) and decay (no vectors); sp_embedding is sp with the embeddings' learning rate times r_n, which arXiv
            2605.21486 finds to be most of muP's gain.
        branch_depth: k, the matrices in a residual branch that the condition counts: 1, or 2 or more (all agree).
        lr: base learning rate, at the base shape.
        weight_decay: base decoupled weight decay; one step removes lr x weight_decay of a weight.
        base: factors on lr, weight_decay, init_std and eps of single roles or labels, before they are scaled:
            recipe.base.head.init_std 4. Labels are embedding, position, attention, mlp (experts, too), router, head,
            gain and bias.
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
        base_experts: model.experts of the base model, with as many per token; null: those of the model itself.
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
    base_experts: PositiveInt | None = None
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
        self.law = self.law or read_law(self.time_rule)
        base: dict[str, int | None] = {"recipe.base_batch": self.base_batch, "recipe.base_tokens": self.base_tokens}
        useless: dict[str, object] = {} if fitted else {"recipe.law": self.law}
        useless |= base | {"recipe.tokens": self.tokens} if self.time_rule == "none" else {}
        if given := [key for key, value in useless.items() if value is not None]:
            does = f"recipe.time_rule is {self.time_rule}, for which {' and '.join(given)} would do nothing"
            raise UserError(f"{does}; leave it out, or set recipe.time_rule to sde or fitted:FILE")
        if self.time_rule != "none" and (missing := [key for key, value in base.items() if value is None]):
            needs = f"recipe.time_rule is {self.time_rule}, which needs {' and '.join(missing)}"
            raise UserError(f"{needs}; give the tokens of a step and of the run that recipe.lr was tuned with")
        if self.base_batch and self.base_tokens and self.base_batch > self.base_tokens:
            less = f"recipe.base_tokens is {self.base_tokens}, less than the {self.base_batch} of one step"
            raise UserError(f"{less} (recipe.base_batch); base_tokens are those of the whole run")
        if self.law and (self.law.optimizer, self.law.value) != (self.optimizer, "recipe.lr"):
            of = f"the law of {self.time_rule} is of {self.law.value} for {self.law.optimizer}"
            raise UserError(f"{of}; expected one of recipe.lr for {self.optimizer}")
