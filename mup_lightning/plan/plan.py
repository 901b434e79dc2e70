"""What a run would be, before it is run: every parameter's values, operations, tokens and memory.

The model is laid out on the meta device and grouped by the same functions as in training; no weight is made.
"""

from dataclasses import asdict, dataclass
from typing import Any

from mup_lightning.config.schema import Config
from mup_lightning.data.sampler import accumulation_steps
from mup_lightning.errors import UserError
from mup_lightning.model.gpt2 import GPT2, build
from mup_lightning.optim.optimizer import make_groups
from mup_lightning.optim.registry import RULES, resolve_rules
from mup_lightning.optim.rule import Group
from mup_lightning.optim.schedule import warmup_cosine
from mup_lightning.plan.memory import Load, Memory, memory, rule_memory
from mup_lightning.spectral.recipe import Multipliers, Recipe, derive
from mup_lightning.spectral.roles import Role

STAGES = (0, 1, 2, 3)


@dataclass(frozen=True)
class ParameterPlan:
    """What training would use for one parameter.

    Attributes:
        name: as in the model and its checkpoints.
        shape: whole, before any sharding.
        role: in the spectral condition.
        rule: that updates it.
        multiplier: the factor of the forward pass that it sits under: a branch's, the embeddings', the logits'.
        init_std: standard deviation of its entries; 0 for vectors, which start at a constant.
        lr: peak learning rate.
        weight_decay: decoupled; a step at the peak removes lr x weight_decay.
        eps: ε that the recipe gives the rule; None where it gives none.
    """

    name: str
    shape: tuple[int, ...]
    role: str
    rule: str
    multiplier: float
    init_std: float
    lr: float
    weight_decay: float
    eps: float | None


@dataclass(frozen=True)
class GroupPlan:
    """A parameter group of the optimizer: parameters that share all their values."""

    roles: tuple[str, ...]
    tensors: int
    parameters: int
    rule: str
    lr: float
    weight_decay: float
    eps: float | None


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of training; a multiply-add is two.

    Attributes:
        convention_per_token: see `GPT2.flops_per_token`; others divide by it, so use it to compare.
        matmul_per_token: what the matrix products of forward and backward really take here: causal attention, whose
            backward computes the logits again, and the padded vocabulary. Use it to predict time.
        newton_schulz_per_step: of Muon's iterations over all its matrices, as done in bfloat16 on GPU.
        newton_schulz_share: their share in a step of the whole batch, matrix products being the rest.
    """

    convention_per_token: int
    matmul_per_token: int
    newton_schulz_per_step: int
    newton_schulz_share: float


@dataclass(frozen=True)
class Plan:
    """A run, planned.

    Attributes:
        parameter_count: of the model, with the padded vocabulary.
        tokens: trained on in the whole run.
        flops: operations per token.
        groups: of the optimizer, in order.
        parameters: in the model's order.
        accumulation: GPUs -> micro-batches per step on each, or None where the batch cannot be divided among them.
        memory: for every number of GPUs and ZeRO stage.
        notes: what the numbers do not say.
    """

    parameter_count: int
    tokens: int
    flops: Flops
    groups: list[GroupPlan]
    parameters: list[ParameterPlan]
    accumulation: dict[int, int | None]
    memory: list[Memory]
    notes: list[str]

    def flops_of(self, steps: int) -> float:
        """Operations of a run of `steps` steps: those for its tokens, and Newton-Schulz."""
        return float(self.flops.matmul_per_token * self.tokens + self.flops.newton_schulz_per_step * steps)

    def plain(self) -> dict[str, Any]:
        """As plain values for JSON; memory in bytes, with its total."""
        result = asdict(self)
        result["memory"] = [asdict(m) | {"total": m.total} for m in self.memory]
        return result


def plan(config: Config, gpus: tuple[int, ...] = (1,), device: str = "cuda") -> Plan:
    """Plan a run. Takes no GPU, no data and hardly any memory.

    Args:
        config: of the run; precision auto counts as bf16, because a GPU is what is planned for. Its section `rules` is
            resolved in place.
        gpus: numbers of GPUs to estimate memory for.
        device: "cuda", or "cpu" for processes without a GPU.

    Raises:
        UserError: training would refuse the configuration, or a number of GPUs is below 1.
    """
    if not gpus or min(gpus) < 1:
        raise UserError(
            f"the numbers of GPUs are {', '.join(map(str, gpus)) or 'empty'}; expected numbers of at least 1"
        )
    warmup_cosine(config.schedule, config.recipe.lr, config.trainer.max_steps)
    resolve_rules(config)
    recipe = derive(config.recipe, width=config.model.width, depth=config.model.depth)
    model = build(config.model, recipe, config.seed, device="meta")
    infos = model.parameter_info
    groups = make_groups(dict(model.named_parameters()), infos, recipe, config.rules)
    matrices = [info.numel for info in infos.values() if len(info.shape) == 2]
    load = Load(
        config.model,
        config.data.micro_batch,
        rule_memory(groups, device),
        half=config.trainer.precision != "fp32",
        device=device,
        watched=(sum(matrices), max(matrices)) if config.trainer.spectral_norms_every else (0, 0),
    )
    tokens_per_step = config.data.batch_size * config.model.context
    return Plan(
        parameter_count=sum(info.numel for info in infos.values()),
        tokens=config.trainer.max_steps * tokens_per_step,
        flops=_flops(model, groups, tokens_per_step),
        groups=[_group(group, recipe) for group in groups],
        parameters=_parameters(config, model, recipe),
        accumulation={number: _accumulation(config, number) for number in gpus},
        memory=[memory(load, number, zero) for number in gpus for zero in STAGES],
        notes=_notes(config, groups),
    )


def _parameters(config: Config, model: GPT2, recipe: Recipe) -> list[ParameterPlan]:
    result = []
    for name, info in model.parameter_info.items():
        values = recipe.values[info.role]
        std = 0.0 if info.role.is_vector else values.init_std
        if config.recipe.gpt2_residual_init and info.closes_branch:
            std *= (2 * config.model.depth) ** -0.5
        numbers = (_multiplier(info.role, recipe.multipliers), std, values.lr, values.weight_decay, values.eps)
        result.append(ParameterPlan(name, info.shape, str(info.role), values.rule, *numbers))
    return result


def _multiplier(role: Role, multipliers: Multipliers) -> float:
    """The forward pass's factor by role; the final norm has none of its own."""
    by_role = {Role.INPUT: multipliers.input, Role.OUTPUT: multipliers.output, Role.INPUT_BIAS: 1.0}
    return multipliers.residual if role.in_branch else by_role[role]


def _group(group: Group, recipe: Recipe) -> GroupPlan:
    infos = group["infos"]
    values = recipe.values[infos[0].role]
    roles = tuple(dict.fromkeys(str(info.role) for info in infos))
    numel = sum(info.numel for info in infos)
    return GroupPlan(roles, len(infos), numel, values.rule, values.lr, values.weight_decay, values.eps)


def _flops(model: GPT2, groups: list[Group], tokens_per_step: int) -> Flops:
    T, C, L = model.config.context, model.config.width, model.config.depth
    newton_schulz = sum(
        info.blocks * (RULES[group["rule"]].operations(group, *info.block_shape) or 0)
        for group in groups
        for info in group["infos"]
    )
    matrices = sum(info.numel for info in model.multiplied if not info.role.is_vector)
    # A weight takes 2 per token forward, 2 for its own gradient, 2 for its input's. Attention has 2 products forward
    # and 5 backward (the logits again, then the gradients of value, probability, query and key), each with 2·C per
    # pair of positions, of which causality leaves (T + 1)/2 per token.
    matmul = 6 * matrices + 7 * C * (T + 1) * L
    return Flops(
        convention_per_token=model.flops_per_token,
        matmul_per_token=matmul,
        newton_schulz_per_step=newton_schulz,
        newton_schulz_share=newton_schulz / (newton_schulz + matmul * tokens_per_step),
    )


def _accumulation(config: Config, gpus: int) -> int | None:
    try:
        return accumulation_steps(config.data.batch_size, config.data.micro_batch, gpus)
    except UserError:
        return None


def _notes(config: Config, groups: list[Group]) -> list[str]:
    notes = ["init_std 0: vectors start at a constant, gains of LayerNorms at 1 and biases at 0"]
    if config.model.tied:
        notes.append(
            "the output matrix is the token embedding (model.tied): one parameter, with the input's values; where it "
            "makes the logits, the output multiplier applies instead of the input's"
        )
    uncounted = {group["rule"] for group in groups if RULES[group["rule"]].operations(group, 1, 1) is None}
    if uncounted:
        notes.append(f"the operations of {', '.join(sorted(uncounted))} itself are not in the FLOPs")
    return notes
