"""`mup-lightning plan`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from mup_lightning import tables
from mup_lightning.config.load import build, config_parser, parse
from mup_lightning.errors import UserError

if TYPE_CHECKING:
    from mup_lightning.config.schema import Config
    from mup_lightning.plan.plan import Plan

EXAMPLE = "mup-lightning plan -c recipes/size/xl.yaml -c recipes/optimizer/muon_kimi.yaml --gpus 8,64 --gpu-memory 40"
GPUS = "1,8,64,512,4096"


def main(argv: list[str]) -> int:
    """Print what a run would use and cost."""
    parser = config_parser(
        "mup-lightning plan",
        "What a run would be: every parameter's values, operations, tokens and GPU memory. Takes the options of\n"
        "`mup-lightning train`, makes no weights, and needs neither GPU nor data.",
        EXAMPLE,
    )
    parser.usage = f"{parser.usage} [--gpus N,N,...] [--gpu-memory GB] [--json]"
    parser.add_argument("--gpus", type=str, default=GPUS, help="numbers of GPUs to estimate memory for")
    parser.add_argument(
        "--gpu-memory", type=float, default=80.0, help="GB (10^9 bytes) of one GPU; * marks what exceeds it"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, with every parameter; memory in bytes")
    arguments = parse(parser, argv)
    config = build(parser, arguments)
    gpus = _numbers(arguments.gpus)
    if not arguments.gpu_memory > 0:
        raise UserError(f"--gpu-memory is {arguments.gpu_memory:g}; expected GB above 0, such as 80")

    from mup_lightning.plan.plan import plan

    result = plan(config, gpus)
    print(json.dumps(result.plain(), indent=1) if arguments.json else screen(config, result, arguments.gpu_memory))
    return 0


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


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--gpus is {text!r}; expected whole numbers with commas between them, as in {GPUS}") from None
