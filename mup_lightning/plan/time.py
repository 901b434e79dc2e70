"""Time of a training step, estimated before it is run: FLOPs, bytes and messages over what a machine does in a second.

A step's seconds are those of computing, of all other passes over memory, since kernels follow one another, and of the
network as far as no computing hides it; docs/method/scale.md says how far to trust them. A whole-matrix rule has its
work divided over the owners, never below one matrix's. Of N parameters, in float32 as all of training is, one gather W
is 4N(P - 1)/P bytes to each of P GPUs:

    ddp           2W to add up gradients, beside the last backward pass
    zero0, 1      the same after it; zero1, then W for the new weights
    zero2         2W after every pass, and W for the new weights
    zero3, fsdp   weights twice and gradients once in every pass, 3W, beside all of its computing
    matrix rules  ddp, zero0: the matrices' new weights; else weight, gradient and new weight of what moves to its
                  owner: all matrices of a sharded model, about one a process at zero1 and zero2

Rings and trees of a collective enter a node through all of its network ports, an exchange of matrices through each
GPU's own; messages wait for as long as NCCL's own model says (src/graph/tuning.cc, protocol LL128). Not counted:
launching kernels (Muon-Kimi's step at size small took 14 ms, not the GPU's 6.6), validation, checkpoints, monitors,
waiting for data, and a network that others use too.
"""

from dataclasses import asdict, dataclass
from math import ceil, log2
from typing import Any

import torch

from mup_lightning.config.schema import ZERO_STAGES, Config
from mup_lightning.model.gpt2 import GPT2
from mup_lightning.model.loss import default_chunk
from mup_lightning.optim.registry import RULES
from mup_lightning.optim.rule import Group
from mup_lightning.plan.memory import ZERO_BUCKET, Rules, block_activations, compiled, memory, micro_batch

STRATEGIES = ("ddp", "zero1", "zero2", "zero3", "fsdp")
"""Of several GPUs, as they are compared; zero0 is ddp whose exchange waits for the backward pass to end."""

BOUNDS = ("compute", "memory", "network")
NODE = 8  # GPUs that NVLink joins
MOVED = 4  # times that a pass moves what a block keeps: written, read, read again, and its gradient written
EAGER, EAGER_MATRICES = 3, 6
"""Times that a rule of separate operations, elementwise or on matrices, moves what a fused one would move once."""


@dataclass(frozen=True)
class Machine:
    """What one GPU, or one CPU process, does in a second by the data sheet, and the share of it that is reached."""

    flops: float  # of dense bf16 matrix products
    plain_flops: float  # the same in float32
    memory: float  # bytes
    bandwidth: float  # bytes/s of the memory
    nvlink: float = 450e9  # bytes/s that a GPU sends to others in its node
    network: float = 50e9  # bytes/s that a GPU sends to other nodes
    products: float = 0.755  # share of the peak that a model's matrix products reach
    attention: float = 0.26  # the same of attention, causality counted
    passes: float = 0.56  # share of the bandwidth that passes reach
    links: float = 0.8  # share of nvlink and network that collectives reach
    decompositions: float = 1e12  # FLOP/s of eigenvectors and QR; an order of magnitude, since nobody has measured it


GPUS = {
    "h100": Machine(989e12, 67e12, 80e9, 3.35e12),
    "a100": Machine(312e12, 19.5e12, 80e9, 2.039e12, 300e9, 25e9),
    "h200": Machine(989e12, 67e12, 141e9, 4.8e12),
    "b200": Machine(2250e12, 80e12, 180e9, 8e12, 900e9),
}
"""By NVIDIA's data sheets of the SXM parts: H100 80 GB, A100 80 GB, H200, and B200 as in HGX and DGX B200 (bf16 without
sparsity; half of NVLink's figure, which counts both directions). The network is that of DGX systems: a port of 400 Gb/s
(ConnectX-7) for every GPU, 200 (ConnectX-6) in DGX A100. The shares are the H200's, measured at size small."""


@dataclass(frozen=True)
class Time:
    """A step of all GPUs."""

    gpus: int
    strategy: str
    sequences: int  # in a forward pass of each
    passes: int  # per step on each
    tokens: int  # of the step: those of data.batch_size, or of the nearest smaller batch that can be divided
    compute: float  # seconds
    memory: float  # seconds
    network: float  # seconds
    mfu: float  # FLOPs by the convention over those of the GPUs' peak
    peak_memory: int  # bytes on each GPU

    @property
    def seconds(self) -> float:
        """Of the step."""
        return self.compute + self.memory + self.network

    @property
    def bound(self) -> str:
        """What takes most of it: compute, memory or network."""
        return max(BOUNDS, key=lambda kind: getattr(self, kind))

    def plain(self) -> dict[str, Any]:
        """As plain values for JSON."""
        more = {"seconds": self.seconds, "tokens_per_second": self.tokens / self.seconds, "bound": self.bound}
        return asdict(self) | more


def lines(times: list[Time], config: Config, gpu_memory: float) -> list[list[str]]:
    """Rows of a table; what exceeds the memory of one GPU, in GB, has a star, and another batch a plus."""
    found = [["GPUs", "strategy", "micro-batch", "passes", "GB", "seconds", "tokens/s", "MFU", *BOUNDS, "bound by"]]
    for time in times:
        gpus = str(time.gpus) if time.strategy in ("single", STRATEGIES[0]) else ""
        passes = f"{time.passes}" + " +" * (time.tokens != config.tokens_per_step)
        peak = f"{time.peak_memory / 1e9:.1f}" + " *" * (time.peak_memory > gpu_memory * 1e9)
        speed = [f"{time.seconds:.4g}", f"{time.tokens / time.seconds:,.0f}", f"{time.mfu:.1%}"]
        shares = [f"{getattr(time, kind) / time.seconds:.0%}" for kind in BOUNDS]
        found.append([gpus, time.strategy, str(time.sequences), passes, peak, *speed, *shares, time.bound])
    return found


class Clock:
    """Counts seconds of one run on one kind of machine, which each process has; precision auto counts as bf16.

    `groups` are its optimizer's, and `rules` the `rule_memory` of them; `device` is "cuda" or "cpu".
    """

    def __init__(
        self,
        config: Config,
        model: GPT2,
        groups: list[Group],
        rules: Rules,
        machine: Machine,
        device: str = "cuda",
    ) -> None:
        self.config, self.rules, self.machine, self.device = config, rules, machine, device
        self.gathers = len(groups)  # DeepSpeed sends a group's new weights at once
        self.half = config.trainer.precision != "fp32"
        self.parameters = sum(rule.numel for rule in rules.values())
        self.matrices = [numel for rule in rules.values() if rule.largest for numel in rule.matrices]
        (self.products, self.attention), self.convention = model.computed_flops, model.flops_per_token
        # Of all experts, whichever a token is sent to.
        self.weights = sum(info.numel for info in model.multiplied if not info.role.is_vector)
        self.every = min((group["hessian_every"] for group in groups if "hessian_every" in group), default=None)
        rates = {"bfloat16": machine.flops * machine.products, "float32": machine.plain_flops * machine.products}
        rates["decomposition"] = machine.decompositions
        self.steps = [0.0]  # seconds of each matrix's rule
        for own, info in ((group, info) for group in groups for info in group["infos"] if len(info.shape) > 1):
            work = RULES[own["rule"]].work(own, info)
            self.steps.append(sum(operations / rates[kind] for kind, operations in work.items()))

    def one_pass(self, sequences: int) -> tuple[float, float]:
        """Seconds of compute and memory, forward and backward, of so many sequences."""
        model, machine = self.config.model, self.machine
        tokens, C, V = sequences * model.context, model.width, model.padded_vocab
        rate = machine.flops if self.half else machine.plain_flops
        compute = tokens * (self.products / machine.products + self.attention / machine.attention) / rate
        of_block = block_activations(model, self.half, compiled=compiled(self.config, self.device))
        kept = tokens * (model.depth * of_block + C * (14 if self.half else 12))
        # Weights are cast to bf16 (6 bytes), their gradients back and added up (18); in float32, added up (12).
        moved = MOVED * kept + self.weights * (24 if self.half else 12)
        # Logits are read twice and written once where the passes are fused, on a GPU; else eight times in float32.
        moved += tokens * V * (3 * (2 if self.half else 4) if self.device == "cuda" else 8 * 4)
        if self.half:  # the head's gradient is added up for every chunk
            chunk = model.loss_chunk or default_chunk(V, torch.device(self.device))
            moved += 10 * C * V * ceil(tokens / chunk)
        return compute, moved / (machine.bandwidth * machine.passes)

    def optimizer(self, gpus: int, stage: int) -> tuple[float, float]:
        """Seconds of compute and memory of one optimizer step, with clipping."""
        part = 1 / gpus if stage else 1.0
        moved = 12 * self.parameters * part if self.config.trainer.gradient_clip else 0.0
        for name, rule in self.rules.items():
            share = max(1 / gpus, rule.largest / rule.numel) if rule.largest else part
            times = EAGER_MATRICES if rule.largest else EAGER if RULES[name].chunks_made else 1
            moved += (12 * rule.numel + 2 * rule.state) * share * times
        compute = max(sum(self.steps) / gpus, max(self.steps))
        return compute, moved / (self.machine.bandwidth * self.machine.passes)

    def network(self, strategy: str, gpus: int, passes: int, one_pass: float) -> float:
        """Seconds of a step in which a GPU does nothing but wait for others; `one_pass` are those of its own work."""
        if gpus == 1:
            return 0.0
        machine, nodes, others = self.machine, ceil(gpus / NODE), (gpus - 1) / gpus
        lane = machine.links * (machine.nvlink if nodes == 1 else machine.network)
        bus = machine.links * min(machine.nvlink, NODE * machine.network if nodes > 1 else machine.nvlink)
        ring = 14e-6 + 1.9e-6 * (gpus - nodes) + 4e-6 * (nodes - 1)
        tree = 14e-6 + 2 * (1.25e-6 * (min(gpus, NODE) - 1) + 8.5e-6 * log2(nodes))
        total, largest = sum(self.matrices), max(self.matrices, default=0)
        # Small gradients and weights travel together, large ones each alone.
        buckets = min(ceil(self.parameters / ZERO_BUCKET), sum(len(rule.matrices) for rule in self.rules.values()))
        whole = 4 * self.parameters * others / bus
        summed, gathered = 2 * whole + buckets * tree, whole + self.gathers * ring
        stage = ZERO_STAGES[strategy]
        if stage == 3:
            depth = self.config.model.depth
            messages = 3 * (depth + 1 if strategy == "fsdp" else max(depth, buckets))
            found = passes * max(0.0, 3 * whole + messages * ring - one_pass)
        elif strategy == "ddp":
            found = max(0.0, summed - 2 / 3 * one_pass)
        else:
            found = summed * (passes if stage == 2 else 1) + (gathered if stage else 0.0)
        if not self.matrices:
            return found
        if stage == 0:
            return found + 4 * total * others / bus + len(self.matrices) * tree
        moving = max(total / gpus, largest) if stage == 3 else largest
        return found + 12 * moving * others / lane + 3 * ring

    def time(self, strategy: str, gpus: int, available: float) -> Time:
        """A step with micro-batches that suit the strategy: data.micro_batch, or what fits into `available` bytes.

        Where the GPUs cannot divide data.batch_size, it has the nearest smaller batch that they can, at least a pass of
        each.
        """
        data, stage = self.config.data, ZERO_STAGES[strategy]
        sequences = micro_batch(self.config, self.rules, gpus, available, stage, self.device)
        sequences = sequences or (1 if data.micro_batch == "auto" else data.sequences)
        passes = max(1, data.batch_size // (sequences * gpus))
        tokens = passes * sequences * gpus * self.config.model.context
        of_pass, of_step = self.one_pass(sequences), self.optimizer(gpus, stage)
        times = passes * (1 + 1 / self.every) if self.every else passes  # Sophia's estimate is a pass of its own
        compute, moving = (times * one + once for one, once in zip(of_pass, of_step, strict=True))
        seconds = compute, moving, self.network(strategy, gpus, passes, sum(of_pass))
        mfu = self.convention * tokens / (sum(seconds) * gpus * self.machine.flops)
        peak = memory(self.config, self.rules, gpus, sequences, stage, self.device).total
        return Time(gpus, strategy, sequences, passes, tokens, *seconds, mfu, peak)
