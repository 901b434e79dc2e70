"""GPU memory of training, estimated before any GPU is booked. Bytes per GPU; N parameters, P GPUs.

Weights are float32 under every strategy; bf16 is autocast. DeepSpeed 0.19 does not know that: at stages 1 to 3 its
optimizer works on a copy of its partition of the weights, although both are float32.

                weights   gradients   optimizer     exchange      while stepping
    single      4N        4N          S             -             D
    ddp, ZeRO 0 4N        4N          E + M/P       4N            D
    ZeRO 1      4N        4N          (4N + S)/P    B             8N/P + D - 4N: other partitions are freed by then
    ZeRO 2      4N        4N/P        (4N + S)/P    B             4N/P + D
    ZeRO 3      4N/P      4N/P        (4N + S)/P    3B            4N/P + B + the larger of 8m/P + D and 16m/P

S is the optimizer's state: E of elementwise rules and M of whole-matrix rules, which one process keeps for each matrix;
D is what a rule makes while it steps (`Rule.scratch`), and m the elements of its matrices, which under ZeRO 1 to 3
travel to their owners (`distributed/collectives.py`). Shards are assumed even, but no share of a whole-matrix rule's
state is smaller than its largest matrix's. B is DeepSpeed's bucket (`ZERO_BUCKET`), or 4N where that is less. The
exchange of ddp is its second step's, when buckets are rebuilt. Gradients are counted on top of activations, as in all
but the first micro-batch.

Under ZeRO 3 two blocks are gathered in addition to the embeddings: one computing and one fetched ahead. The spectral
monitor (`trainer.spectral_norms_every`) keeps a copy of all matrices, embeddings and head too, each in one process,
while a measured step updates them, and a second copy of the one that it measures.

The peak has the larger of activations with exchange, and the last column, never both. On CPU gloo takes a copy of all
that it gathers: 4N - 4N/P instead of 4N/P + D at stages 1 and 2 where that is more. Not counted: CUDA's context and
libraries (about 1 GB), the allocator's fragmentation, buffers of the communication library.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch

from mup_lightning.config.model import ModelConfig
from mup_lightning.config.schema import Config
from mup_lightning.model.loss import default_chunk
from mup_lightning.optim.registry import RULES
from mup_lightning.optim.rule import Group, Item

STAGES = (0, 1, 2, 3)

ZERO_BUCKET = 1 << 23
"""Elements that DeepSpeed reduces, or fetches ahead, at once: 32 MB. Its own 2 GB are more than most models have."""


TOKENS_ON_CPU, ACTIVATIONS_ON_CPU = 8192, 13 * 10**9
"""What data.micro_batch auto gives a forward pass on a CPU, at most; the second one in bytes."""

GPU_SHARE = 0.9
"""Of a GPU's memory, what data.micro_batch auto plans with: the rest is for what `memory` does not count."""


@dataclass
class RuleMemory:
    """Of one rule, over all its parameters: elements (numel), bytes of state, bytes that it makes in a step.

    `matrices` are the elements of each parameter that is one. `largest` and `largest_state` are those of the largest
    parameter of a whole-matrix rule, never divided; else 0.
    """

    numel: int = 0
    state: int = 0
    step: int = 0
    largest: int = 0
    largest_state: int = 0
    matrices: list[int] = field(default_factory=list)


Rules = Mapping[str, RuleMemory]
"""Those of an optimizer, by name."""


def rule_memory(groups: list[Group], device: str = "cuda") -> dict[str, RuleMemory]:
    """The memory of every rule that the groups name. States are those of `Rule.start` on the meta device.

    On `device` depend sizes of batches and Newton-Schulz's dtype: "cuda" or "cpu".
    """
    result: dict[str, RuleMemory] = {}
    for group in groups:
        rule, found = RULES[group["rule"]], result.setdefault(group["rule"], RuleMemory())
        items = []
        for info in group["infos"]:
            tensor = torch.empty(info.shape, device="meta")
            items.append(Item(tensor, tensor, {}, rule.blocks(group, info), info.transposed))
            rule.start(group, items[-1])
            state = sum(v.nbytes for v in items[-1].state.values() if torch.is_tensor(v) and v.ndim)
            found.numel += info.numel
            found.state += state
            found.matrices += [info.numel] * (len(info.shape) == 2)
            if rule.whole_matrix:
                found.largest, found.largest_state = max(found.largest, info.numel), max(found.largest_state, state)
        found.step = max(found.step, rule.scratch(group, items, torch.device(device)))
    return result


@dataclass(frozen=True)
class Memory:
    """Bytes on each GPU at the peak.

    Attributes:
        weights: as the forward pass uses them.
        gradients: of the step before while the next one's loss is computed, too.
        optimizer: state, and DeepSpeed's copy of its partition of the weights.
        activations: what a forward pass keeps for its backward, with casts or gathered weights and the loss's buffers.
        exchange: buffers in which processes send each other weights and gradients in the backward pass.
        step: what the optimizer needs while it steps, when the activations are gone, beyond the gradients.
    """

    gpus: int
    zero: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    exchange: int
    step: int

    @property
    def total(self) -> int:
        """The peak."""
        return self.weights + self.gradients + self.optimizer + max(self.activations + self.exchange, self.step)


def micro_batch(
    config: Config, rules: Rules, gpus: int, available: float, zero: int, device: str = "cuda"
) -> int | None:
    """Sequences in a forward pass of each of `gpus` processes; None: they cannot divide the batch like that.

    data.micro_batch auto is the largest number that divides a process's share of the batch, and fits. On a GPU it is
    `memory` that must fit, into `available` bytes, at ZeRO's stage `zero`. On a CPU a larger forward pass is no
    faster, and the same command should compute the same on every machine: there limits are fixed.
    """
    share, rest = divmod(config.data.batch_size, gpus)
    given = config.data.micro_batch
    if given != "auto":
        return None if rest or share % given else given
    least = memory(config, rules, gpus, 1, zero, device)

    def fits(sequences: int) -> bool:
        forward = activations(config, sequences, device, gathered=zero == 3)
        if device == "cpu":
            return sequences * config.model.context <= TOKENS_ON_CPU and forward <= ACTIVATIONS_ON_CPU
        return replace(least, activations=forward).total <= available

    return None if rest else max((n for n in range(1, share + 1) if share % n == 0 and fits(n)), default=1)


def memory(config: Config, rules: Rules, P: int, sequences: int, zero: int, device: str = "cuda") -> Memory:
    """Estimate the memory of each of P GPUs at a ZeRO stage; precision auto counts as bf16.

    Stage 0 on one GPU is strategy single.

    Args:
        config: of the run.
        rules: `rule_memory` of its optimizer's groups.
        P: GPUs.
        sequences: in a forward pass.
        zero: ZeRO's stage.
        device: "cuda" or "cpu".
    """
    n = sum(rule.numel for rule in rules.values())
    bucket = 4 * min(ZERO_BUCKET, n)
    matrices = [numel for rule in rules.values() for numel in rule.matrices]
    state = sum(
        max(_shard(rule.state, P), rule.largest_state) if rule.largest else _shard(rule.state, P if zero else 1)
        for rule in rules.values()
    )
    gradients = 4 * _shard(n, P if zero >= 2 else 1)
    gone = gradients - 4 * _shard(n, P) if zero else 0  # at stage 1: the other processes' partitions
    step = max(_step(rule, P, zero, device) for rule in rules.values())
    if config.trainer.spectral_norms_every:
        step = max(step, 4 * max(matrices)) + 4 * max(_shard(sum(matrices), P), max(matrices))
    weights, optimizer = 4 * _shard(n, P if zero == 3 else 1), state + (4 * _shard(n, P) if zero else 0)
    forward = activations(config, sequences, device, gathered=zero == 3)
    exchange = (4 * n if P > 1 else 0, bucket, bucket, 3 * bucket)[zero]
    step = max(0, step + (bucket if zero == 3 else 0) - gone)
    return Memory(P, zero, weights, gradients, optimizer, forward, exchange, step)


def _shard(total: int, gpus: int) -> int:
    return -(-total // gpus)


def _step(rule: RuleMemory, gpus: int, zero: int, device: str) -> int:
    """Bytes of one rule, for itself and for the exchange of its matrices (see the module's text)."""
    if not zero:
        return rule.step
    partition = 4 * _shard(rule.numel, gpus)
    if zero < 3 or gpus == 1:
        # Most matrices are whole where they are worked on. Gloo copies the weights that it gathers at the end.
        return max(partition + rule.step, 4 * rule.numel - partition if device == "cpu" else 0)
    whole = 4 * max(_shard(rule.numel, gpus), rule.largest) if rule.largest else 0
    return partition + max(2 * whole + rule.step, 4 * whole)


def activations(config: Config, sequences: int, device: str, *, gathered: bool = False) -> int:
    """Bytes at the end of a forward pass of `sequences`, beyond weights, gradients and optimizer state.

    In bf16: float32 weights and residual stream, with bf16 copies of the matrices kept for the backward pass.
    `gathered` is ZeRO 3: whole weights on top of the shards (see the module's text).
    """
    model, half = config.model, config.trainer.precision != "fp32"
    tokens, C, V, low = sequences * model.context, model.width, model.padded_vocab, 2 if half else 4
    mlp, K = (3 if model.gated else 2) * model.hidden, model.experts_per_token if model.experts else 1
    block = C * (2 * model.query_dim + 2 * model.kv_dim + (model.experts * (mlp + 1) if model.experts else mlp))
    casts = 2 * block * model.depth if half else 0
    whole = 4 * (min(2, model.depth) * block + V * C) if gathered else 0
    # The final norm's input, the features, their gradient from the loss, and the features in low precision.
    head = tokens * C * (3 * 4 + (2 if half else 0)) + 4 * V * C
    backward = tokens * (low * max(8 * C, 4 * K * model.hidden if model.gated else 0) + 2 * 4 * C)
    # The chunked cross-entropy while it sweeps: a chunk's logits.
    chunk = min(tokens, model.loss_chunk or default_chunk(V, torch.device(device)))
    loss = 4 * chunk * V
    if half:
        # Logits in bf16 and in float32, a chunk's part of the weight's gradient, and the weight's cast. On CPU torch
        # adds a bf16 product to the float32 gradient by way of a float32 copy; a GPU converts as it adds.
        loss = 6 * chunk * V + 4 * V * C + (4 * V * C if device == "cpu" else 0)
    if model.logit_cap is not None:
        loss += 4 * chunk * V  # its slope
    # A pass that is measured, with its gradients, is not compiled (`training/module.py`).
    measured = config.trainer.feature_norms_every or config.trainer.noise_scale_every
    blocks = model.depth * tokens * block_activations(model, half, compiled=compiled(config, device) and not measured)
    return casts + whole + blocks + head + max(loss, backward)


def compiled(config: Config, device: str) -> bool:
    """Whether blocks are compiled, where trainer.compile is auto, too."""
    return config.trainer.compile == "on" or (config.trainer.compile == "auto" and device == "cuda")


def block_activations(model: ModelConfig, half: bool, *, compiled: bool = False) -> int:
    """Bytes that one block keeps of a token for its backward pass, with flash attention.

    Q is `query_dim`, m `kv_dim`, F `hidden`.

    Both norms' inputs (8·C) and statistics; in low precision the inputs of the four products (C, Q, C, F), Q, K and V
    (Q + 2m) and the activation's input (F; ReLU's is not kept); one float32 per head (the log of the softmax's sum).
    A gate adds its result and what it multiplies (2F). qk_norm and RoPE add the Q and K that they make, without which
    Q's own product need not be kept. Torch's composite RMS norm keeps its normalised input where a gain follows, and
    in bf16 a float32 input. Dropout adds a byte for every element that it masks.
    Each of K experts keeps the MLP's part, its own copy of the input (C) and its result (C); the router its input in
    float32 (which without low precision is the norm's result), float32 probabilities, and places in an order (int64).

    A `compiled` block keeps what torch's partitioner of graphs leaves: it makes again whatever is no product. So the
    second norm's input is the first branch's result in low precision, a gate costs F, and norms their statistics; only
    ReLU without a gate costs more, a byte for its sign.
    """
    C, Q, m, F, low = model.width, model.query_dim, model.kv_dim, model.hidden, 2 if half else 4
    heads, moved = Q // model.head_dim, model.qk_norm or model.position == "rope"
    # In bf16 Q's and KV's products each have a cast of their own.
    inputs = Q + C * (3 if half and model.grouped and not compiled else 2)
    mlp = F + ((2 if compiled else 3) * F if model.gated else F if model.activation != "relu" else 0)
    per_token = low * (inputs + Q + 2 * m) + 4 * heads
    if model.experts:
        K = model.experts_per_token
        per_token += K * (low * (mlp + 2 * C) + 28) + 4 * model.experts
        per_token += 0 if compiled else 4 * K + 4 + (4 - low) * C
    else:
        per_token += low * mlp + (F if compiled and model.activation == "relu" and not model.gated else 0)
    if model.layer_norm and compiled:
        norms = 1 if model.parallel else 2
        per_token += 4 * C + norms * (8 if model.norm == "layernorm" else 4) + (0 if model.parallel else low * C)
    elif model.layer_norm:
        per_token += 2 * (4 * C + 8 if model.norm == "layernorm" else 8 * C + 4) - (4 * C if model.parallel else 0)
    if moved:
        spared = (model.grouped and not model.qk_norm) or (model.grouped and half and not compiled)
        per_token += low * (Q + m) - (low * Q if spared else 0)
    if model.qk_norm:
        per_token += 4 * (heads + m // model.head_dim) + (0 if compiled else 4 * (Q + m) * (half + model.qk_gain))
    if model.dropout > 0:
        per_token += 2 * C
    return per_token
