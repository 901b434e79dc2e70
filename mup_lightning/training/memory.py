"""GPU memory of training, estimated before any GPU is booked. Bytes per GPU; N parameters, P GPUs.

ZeRO 0 is what strategies single and ddp do: float32 weights, bf16 through autocast. ZeRO 1 to 3 are DeepSpeed's bf16
(Rajbhandari et al. 2020): bf16 weights and gradients, a float32 master copy beside the optimizer state.

    bf16        weights    gradients   optimizer      while stepping
    ZeRO 0      4N         4N          S              D
    ZeRO 1      2N         2N          (4N + S)/P     4N/P + D
    ZeRO 2      2N         2N/P        (4N + S)/P     4N/P + D
    ZeRO 3      2N/P       2N/P        (4N + S)/P     4N/P + D

In fp32 all copies are 4 bytes and there is no master copy. S is the optimizer's state and D what it makes while it
steps (`rule_memory`); the 4N/P beside D are the shard's gradients in float32. Shards are taken as even, but no share
of a whole-matrix rule is smaller than its largest parameter. The peak has the larger of the last column and the
activations (`activations`), never both.

Not counted: CUDA's context and libraries (about 1 GB), the allocator's fragmentation, buffers of the communication
library and of DeepSpeed (its reduce bucket alone is 1 GB at DeepSpeed's default of 5e8 elements).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from mup_lightning.model.config import ModelConfig
from mup_lightning.model.loss import default_chunk
from mup_lightning.training.rule_memory import RuleMemory


@dataclass(frozen=True)
class Load:
    """What decides about memory.

    Attributes:
        model: shape and switches.
        sequences: in one forward pass.
        rules: rule -> what it needs.
        half: bf16 rather than float32.
        device: decides the chunk of the loss: "cuda" or "cpu".
    """

    model: ModelConfig
    sequences: int
    rules: Mapping[str, RuleMemory]
    half: bool = True
    device: str = "cuda"


@dataclass(frozen=True)
class Memory:
    """Bytes on each GPU at the peak.

    Attributes:
        gpus: processes.
        zero: stage, 0 to 3.
        weights: as the forward pass uses them.
        gradients: of the step before while the next one's loss is computed, too.
        optimizer: state, and the master copy of the weights.
        activations: what a forward pass keeps for its backward, with casts of the weights and the loss's buffers.
        step: what the optimizer needs while it steps, when the activations are gone.
    """

    gpus: int
    zero: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    step: int

    @property
    def total(self) -> int:
        """The peak."""
        return self.weights + self.gradients + self.optimizer + max(self.activations, self.step)


def memory(load: Load, gpus: int, zero: int) -> Memory:
    """Estimate the memory of one GPU.

    Args:
        load: the model and its optimizer.
        gpus: P.
        zero: stage; see the module's text.
    """
    shards = gpus if zero else 1
    n = sum(rule.numbers for rule in load.rules.values())
    share = sum(max(_shard(rule.numbers, shards), rule.largest) for rule in load.rules.values())
    state = sum(max(_shard(rule.state, shards), rule.largest_state) for rule in load.rules.values())
    master = 4 * share if zero and load.half else 0
    number = 2 if zero and load.half else 4
    return Memory(
        gpus=gpus,
        zero=zero,
        weights=number * _shard(n, gpus if zero == 3 else 1),
        gradients=number * _shard(n, gpus if zero >= 2 else 1),
        optimizer=state + master,
        activations=activations(load, autocast=load.half and zero == 0, gathered=zero == 3),
        step=master + max(rule.step for rule in load.rules.values()),
    )


def _shard(total: int, gpus: int) -> int:
    return -(-total // gpus)


def activations(load: Load, *, autocast: bool, gathered: bool = False) -> int:
    """Bytes at the end of the forward pass, beyond weights, gradients and optimizer state.

    Args:
        load: the model and its micro-batch.
        autocast: float32 weights and residual stream, with bf16 copies of the matrices kept for the backward pass.
        gathered: ZeRO 3: the weights of two blocks and the embedding stand whole beside the shards.
    """
    model, tokens = load.model, load.sequences * load.model.context
    C, V, low = model.width, model.padded_vocab, 2 if load.half else 4
    stream = 4 if autocast or not load.half else 2
    block = (4 + 2 * model.mlp_ratio) * C * C
    casts = low * block * model.depth if autocast else 0
    whole = low * (2 * block + V * C) if gathered else 0
    # The final norm's input, the features, their gradient from the loss, and the features in low precision.
    head = tokens * C * (3 * stream + (low if autocast else 0)) + stream * V * C
    backward = tokens * C * (8 * low + 2 * stream)
    return (
        casts
        + whole
        + model.depth * block_activations(load, autocast=autocast)
        + head
        + max(_loss(load, tokens, autocast=autocast), backward)
    )


def block_activations(load: Load, *, autocast: bool) -> int:
    """Bytes that one block keeps for its backward pass, with flash attention.

    Per token, a the low-precision size and s the stream's: both norms' inputs (2s·C) and statistics; the inputs of the
    four products (C, C, C, mlp_ratio·C), Q, K and V (3C) and GELU's input (mlp_ratio·C), all at a; one float32 per
    head (the log of the softmax's sum). ReLU keeps its output alone, which the next product keeps anyway. qk_norm adds
    the normalised Q and K, a copy of attention's output, and in bf16 the float32 Q and K (torch's composite form; the
    fused kernel spares these). Dropout adds a byte for every number that it masks.
    """
    model, tokens = load.model, load.sequences * load.model.context
    C, f, heads = model.width, model.mlp_ratio, model.width // model.head_dim
    low = 2 if load.half else 4
    stream = 4 if autocast or not load.half else 2
    per_token = low * C * (6 + f + (f if model.activation == "gelu" else 0)) + 4 * heads
    if model.layer_norm:
        per_token += 2 * (stream * C + 8)
    if model.qk_norm:
        per_token += 3 * low * C + (8 * C if load.half else 0) + 8 * heads
    if model.dropout > 0:
        per_token += 2 * C
    return tokens * per_token


def _loss(load: Load, tokens: int, *, autocast: bool) -> int:
    """Buffers of the chunked cross-entropy while it sweeps: logits of a chunk, and in bf16 their casts and products.

    On CPU torch adds a bf16 product to the float32 gradient by way of a float32 copy; a GPU converts as it adds.
    """
    C, V = load.model.width, load.model.padded_vocab
    chunk = min(tokens, load.model.loss_chunk or default_chunk(V, torch.device(load.device)))
    if not load.half:
        return 4 * chunk * V
    # Logits in bf16 and in float32, a chunk's part of the weight's gradient, and the weight's cast.
    copy = 4 * V * C if autocast and load.device == "cpu" else 0
    return 6 * chunk * V + 2 * V * C + (2 * V * C if autocast else 0) + copy
