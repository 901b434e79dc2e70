"""What a run would be, before it is run: every parameter's values, operations, tokens and memory.

The model is laid out on the meta device and grouped by the same functions as in training; no weight is made.
"""

import re
from dataclasses import asdict, dataclass
from typing import Any

from mup_lightning import tables
from mup_lightning.config.schema import Config
from mup_lightning.model.gpt2 import GPT2, build
from mup_lightning.optim.muon import Muon
from mup_lightning.optim.registry import RULES, make_groups, resolve_rules
from mup_lightning.optim.rule import Group
from mup_lightning.optim.schedule import lr_factor
from mup_lightning.plan.memory import GPU_SHARE, STAGES, Memory, micro_batch, rule_memory
from mup_lightning.plan.memory import memory as estimate
from mup_lightning.plan.time import STRATEGIES, Clock, Machine, Time
from mup_lightning.plan.time import lines as time_lines
from mup_lightning.spectral.families import FAMILIES
from mup_lightning.spectral.recipe import Recipe
from mup_lightning.spectral.roles import Role


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
        active_count: those that compute for one token: without the experts that it is not sent to.
        tokens: trained on in the whole run.
        groups: of the optimizer: roles, counts of tensors and parameters, and the values that they share; of these,
            averages are the decays that follow batch and horizon, and over_time the factors that are due to them.
        parameters: what training would use for each; multiplier is the factor of the forward pass that it sits under,
            and init_std is 0 for vectors.
        micro_batch: GPUs -> sequences in a forward pass of each, or None where the batch cannot be divided among them.
        accumulation: GPUs -> forward passes per step on each, or None.
        time: of a step, for every number of GPUs and every strategy, each with micro-batches that suit it; empty where
            no machine was given.
        notes: what the numbers do not say.
    """

    parameter_count: int
    active_count: int
    tokens: int
    flops: Flops
    groups: list[dict[str, Any]]
    parameters: list[dict[str, Any]]
    micro_batch: dict[int, int | None]
    accumulation: dict[int, int | None]
    memory: list[Memory]
    time: list[Time]
    notes: list[str]

    def flops_of(self, steps: int) -> float:
        """Operations of a run of `steps` steps: those for its tokens, and Newton-Schulz."""
        return float(self.flops.matmul_per_token * self.tokens + self.flops.newton_schulz_per_step * steps)

    def plain(self) -> dict[str, Any]:
        """As plain values for JSON; memory in bytes, with its total."""
        memory = [asdict(m) | {"total": m.total} for m in self.memory]
        return asdict(self) | {"memory": memory, "time": [time.plain() for time in self.time]}


def plan(
    config: Config,
    gpus: tuple[int, ...] = (1,),
    device: str = "cuda",
    memory: float = 80e9,
    machine: Machine | None = None,
) -> Plan:
    """Plan a run on some numbers of GPUs, or of CPU processes (`device`). Takes no GPU and hardly any memory.

    Precision auto counts as bf16, because a GPU is what is planned for. The section `rules` is resolved in place.
    `memory`, bytes of a GPU, is what data.micro_batch auto goes by; `machine` says how fast one is.
    Raises UserError where training would refuse the configuration.
    """
    lr_factor(config)
    resolve_rules(config)
    recipe = config.derive()
    model = build(config.model, recipe, config.seed, device="meta")
    groups = make_groups(dict(model.named_parameters()), model.parameter_info, recipe, config.rules)
    batch = config.data.batch_size
    rules, available, stage = rule_memory(groups, device), GPU_SHARE * memory, config.trainer.zero_stage
    micro = {P: micro_batch(config, rules, P, available, stage, device) for P in gpus}
    least = 1 if config.data.micro_batch == "auto" else config.data.sequences
    tokens_per_step = config.tokens_per_step
    notes = [*config.over_time(), "init_std 0: vectors start at a constant, gains of norms at 1 and biases at 0"]
    if config.model.tied:
        tied = "the output matrix is the token embedding (model.tied), with the input's values"
        notes.append(f"{tied}; logits have the output multiplier instead of the input's")
    rules_of = {group["rule"]: RULES[group["rule"]] for group in groups}
    uncounted = [
        name
        for name, rule in sorted(rules_of.items())
        if hasattr(rule, "hessian_every") or (rule.whole_matrix and not isinstance(rule, Muon))
    ]
    if uncounted:
        notes.append(f"the operations of {', '.join(uncounted)} itself are not in the FLOPs")
    flops = _flops(model, groups, tokens_per_step)
    time: list[Time] = []
    if machine:
        clock = Clock(config, model, groups, rules, machine, device)
        time = [clock.time(name, P, available) for P in gpus for name in (STRATEGIES if P > 1 else ("single",))]
    return Plan(
        parameter_count=sum(info.numel for info in model.parameter_info.values()),
        active_count=sum(map(model.active, model.parameter_info.values())),
        tokens=config.tokens,
        flops=flops,
        groups=[
            {
                "roles": tuple(dict.fromkeys(str(info.role) for info in group["infos"])),
                "tensors": len(group["infos"]),
                "parameters": sum(info.numel for info in group["infos"]),
                **{key: group.get(key) for key in ("rule", "lr", "weight_decay", "eps")},
                "averages": {name: group[name] for name in FAMILIES[group["rule"]].averages},
                "over_time": recipe.of(group["infos"][0]).over_time,
            }
            for group in groups
        ],
        parameters=_parameters(model, groups, recipe),
        micro_batch=micro,
        accumulation={P: n and batch // (n * P) for P, n in micro.items()},
        memory=[estimate(config, rules, P, n or least, zero, device) for P, n in micro.items() for zero in STAGES],
        time=time,
        notes=notes,
    )


def _parameters(model: GPT2, groups: list[Group], recipe: Recipe) -> list[dict[str, Any]]:
    m, result = recipe.multipliers, []
    group_of = {info.name: group for group in groups for info in group["infos"]}
    # The final norm has no multiplier of its own.
    multipliers = {Role.INPUT: m.input, Role.OUTPUT: m.output, Role.INPUT_BIAS: 1.0}
    for name, info in model.parameter_info.items():
        group, std = group_of[name], 0.0 if info.role.is_vector else recipe.of(info).init_std
        parameter = {"name": name, "shape": info.shape, "role": str(info.role), "rule": group["rule"]}
        parameter |= {"multiplier": multipliers.get(info.role, m.residual), "init_std": std}
        result.append(parameter | {key: group.get(key) for key in ("lr", "weight_decay", "eps")})
    return result


def _flops(model: GPT2, groups: list[Group], tokens_per_step: int) -> Flops:
    steps = ((RULES[group["rule"]], group, info) for group in groups for info in group["infos"])
    newton_schulz = sum(int(sum(r.work(group, info).values())) for r, group, info in steps if isinstance(r, Muon))
    matmul = sum(model.computed_flops)
    return Flops(
        convention_per_token=model.flops_per_token,
        matmul_per_token=matmul,
        newton_schulz_per_step=newton_schulz,
        newton_schulz_share=newton_schulz / (newton_schulz + matmul * tokens_per_step),
    )


def screen(config: Config, plan: Plan, gpu_memory: float, gpu: str = "") -> str:
    """The plan for the terminal; what exceeds the memory of one GPU, in GB, has a star. `gpu` is its name."""
    model, data, flops = config.model, config.data, plan.flops
    head = [
        f"{model.family} of width {model.width}, depth {model.depth}, "
        f"context {model.context}: {plan.parameter_count:,} parameters"
        + f", {plan.active_count:,} active for a token"
        * (plan.active_count < plan.parameter_count),
        f"  tokens          {plan.tokens:,} in {config.trainer.max_steps} steps of {data.batch_size} sequences",
        f"  FLOPs           {flops.convention_per_token:.4g} per token by the convention 6N + 12·L·n·T (to compare)",
        f"                  {flops.matmul_per_token:.4g} per token in matrix products as computed (to predict)",
        f"                  {flops.matmul_per_token * plan.tokens:.3g} in the run",
    ]
    if made := flops.newton_schulz_per_step:
        head.append(f"  Newton-Schulz   {made:.3g} in a step, {flops.newton_schulz_share:.1%} of all")
    columns = ["learning rate", "weight decay", "epsilon", "decays of averages"]
    groups = [["group", "roles", "tensors", "parameters", "rule", *columns]]
    for number, group in enumerate(plan.groups):
        values = [_value(group[key]) for key in ("lr", "weight_decay", "eps")]
        values.append(", ".join(f"{name} {_value(decay)}" for name, decay in group["averages"].items()) or "-")
        counts = [str(group["tensors"]), f"{group['parameters']:,}"]
        groups.append([str(number), ", ".join(group["roles"]), *counts, group["rule"], *values])
    rows: dict[tuple[str, ...], dict[str, None]] = {}
    for p in plan.parameters:
        names = rows.setdefault((p["role"], _value(p["multiplier"]), _value(p["init_std"])), {})
        if not Role(p["role"]).is_vector:
            names[re.sub(r"blocks\.\d+\.|\.weight", "", p["name"])] = None
    roles = [["role", "multiplier", "init std", "matrices"]]
    roles += [[*row, ", ".join(names) or "-"] for row, names in rows.items()]
    precision = "fp32" if config.trainer.precision == "fp32" else "bf16"
    title = (
        f"Memory in GB on each GPU ({precision}, * over {gpu_memory:g} GB).\n"
        f"A forward pass has as many sequences of {model.context} tokens as the column micro-batch says.\n"
        f"ZeRO 0 is also strategy single or ddp; the total has activations with exchange or step, whichever is larger."
    )
    columns = ["weights", "gradients", "optimizer", "activations", "exchange", "step", "total"]
    lines = [["GPUs", "micro-batch", "passes per step", "ZeRO", *columns]]
    for m in plan.memory:
        micro, passes = plan.micro_batch[m.gpus] or data.micro_batch, plan.accumulation[m.gpus] or "no +"
        first = [str(m.gpus), str(micro), str(passes)] if m.zero == 0 else ["", "", ""]
        cells = [f"{getattr(m, column) / 1e9:.2f}" for column in columns]
        lines.append([*first, str(m.zero), *cells[:-1], cells[-1] + (" *" if m.total > gpu_memory * 1e9 else "")])
    notes = [f"note: {note}" for note in plan.notes]
    if None in plan.accumulation.values():
        factor = "the number of" if data.micro_batch == "auto" else f"{data.micro_batch} x"
        notes.insert(
            0, f"+ data.batch_size {data.batch_size} is no multiple of {factor} GPUs; times are of a batch that is"
        )
    parts = ["\n".join(head), tables.text(groups), tables.text(roles), title, tables.text(lines)]
    if plan.time:
        words = f"Time of a step on {gpu} by a roofline, and what takes it; each strategy with its own micro-batch."
        parts += [words, tables.text(time_lines(plan.time, config, gpu_memory))]
    parts.append("\n".join(notes))
    return "\n\n".join(parts)


def _value(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"
