"""The plan of a run for the terminal."""

from mup_lightning import tables
from mup_lightning.config.schema import Config
from mup_lightning.plan.plan import Plan


def screen(config: Config, plan: Plan, gpu_memory: float) -> str:
    """The plan for the terminal.

    Args:
        config: what was planned.
        plan: the plan.
        gpu_memory: GB of one GPU.
    """
    model, flops = config.model, plan.flops
    newton_schulz = (
        f"\n  Newton-Schulz   {flops.newton_schulz_per_step:.3g} in a step, {flops.newton_schulz_share:.1%} of all"
        if flops.newton_schulz_per_step
        else ""
    )
    head = (
        f"GPT-2 of width {model.width}, depth {model.depth}, context {model.context}: "
        f"{plan.parameter_count:,} parameters\n"
        f"  tokens          {plan.tokens:,} in {config.trainer.max_steps} steps of {config.data.batch_size} sequences\n"
        f"  FLOPs           {flops.convention_per_token:.4g} per token by the convention 6N + 12·L·n·T (to compare)\n"
        f"                  {flops.matmul_per_token:.4g} per token in matrix products as computed (to predict)\n"
        f"                  {flops.matmul_per_token * plan.tokens:.3g} in the run"
        f"{newton_schulz}"
    )
    notes = "\n".join(f"note: {note}" for note in plan.notes)
    return "\n\n".join([head, _groups(plan), _roles(plan), _memory(config, plan, gpu_memory), notes])


def _groups(plan: Plan) -> str:
    lines = [["group", "roles", "tensors", "parameters", "rule", "learning rate", "weight decay", "epsilon"]]
    for number, group in enumerate(plan.groups):
        values = (group.lr, group.weight_decay, group.eps)
        counts = [str(group.tensors), f"{group.parameters:,}"]
        lines.append([str(number), ", ".join(group.roles), *counts, group.rule, *map(_value, values)])
    return tables.text(lines)


def _roles(plan: Plan) -> str:
    lines = [["role", "multiplier", "init std"]]
    seen = dict.fromkeys((p.role, _value(p.multiplier), _value(p.init_std)) for p in plan.parameters)
    return tables.text(lines + [list(line) for line in seen])


def _memory(config: Config, plan: Plan, gpu_memory: float) -> str:
    precision = "fp32" if config.trainer.precision == "fp32" else "bf16"
    tokens = f"{config.data.micro_batch} x {config.model.context}"
    title = (
        f"Memory in GB on each GPU ({precision}, forward passes of {tokens} tokens, * over {gpu_memory:g} GB).\n"
        f"ZeRO 0 is also strategy single or ddp; the total has activations with exchange or step, whichever is larger."
    )
    columns = ["weights", "gradients", "optimizer", "activations", "exchange", "step", "total"]
    lines = [["GPUs", "passes per step", "ZeRO", *columns]]
    for m in plan.memory:
        accumulation = plan.accumulation[m.gpus]
        parts = [m.weights, m.gradients, m.optimizer, m.activations, m.exchange, m.step, m.total]
        first = [str(m.gpus), str(accumulation or "no *")] if m.zero == 0 else ["", ""]
        cells = [f"{part / 1e9:.2f}" for part in parts]
        cells[-1] += " *" if m.total > gpu_memory * 1e9 else ""
        lines.append([*first, str(m.zero), *cells])
    text = f"{title}\n\n{tables.text(lines)}"
    if None in plan.accumulation.values():
        batch, micro = config.data.batch_size, config.data.micro_batch
        text = text.replace("no *", "no +") + f"\n+ data.batch_size {batch} is no multiple of {micro} x GPUs"
    return text


def _value(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"
