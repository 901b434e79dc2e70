"""The model's shape and switches. Imports no torch, so that the command line can parse it at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mup_lightning.errors import UserError

PAD_VOCABULARY_TO = 64
"""Rows of the embedding are padded to a multiple of this: matrix units want aligned sides."""


@dataclass
class ModelConfig:
    """A GPT-2: its shape and its switches.

    Attributes:
        width: n, the size of the residual stream.
        depth: L, the number of blocks, each with an attention and an MLP branch.
        heads: attention heads; null: heads of dimension head_size, or the largest divisor of the width below that.
        head_size: where heads is null; widths that are compared should all be multiples of it.
        context: tokens in a sequence.
        vocab_size: symbols of the tokenizer; null: those of data.tokenizer.
        mlp_ratio: hidden units of the MLP over the width.
        activation: the MLP's nonlinearity; gelu is GPT-2's tanh approximation.
        layer_norm: pre-LayerNorm in every branch and a final one; false removes all of them.
        qk_norm: RMS-normalise queries and keys per head (no gain).
        bias: biases in linear layers and LayerNorms.
        tied: the output matrix is the token embedding.
        attention_scale: factor on the attention logits, of the head dimension d.
        dropout: probability, on the embeddings' sum, the attention weights and both branches.
        loss_chunk: tokens whose logits exist at once in the loss; null: as many as make about 50 MB (CPU), 1 GB (GPU).
    """

    width: int = 256
    depth: int = 4
    heads: int | None = None
    head_size: int = 64
    context: int = 1024
    vocab_size: int | None = None
    mlp_ratio: int = 4
    activation: Literal["gelu", "relu"] = "gelu"
    layer_norm: bool = True
    qk_norm: bool = False
    bias: bool = True
    tied: bool = True
    attention_scale: Literal["1/sqrt(d)", "1/d"] = "1/sqrt(d)"
    dropout: float = 0.0
    loss_chunk: int | None = None

    def __post_init__(self) -> None:
        """Refuse impossible shapes.

        Raises:
            UserError: naming the key, the value and what was expected.
        """
        for key in ("width", "depth", "heads", "head_size", "context", "vocab_size", "mlp_ratio", "loss_chunk"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise UserError(f"model.{key} is {value}; expected a whole number of at least 1")
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"model.dropout is {self.dropout}; expected a probability, 0 <= p < 1")
        if self.heads is not None and self.width % self.heads:
            below = max(h for h in range(1, self.heads) if self.width % h == 0)
            raise UserError(
                f"model.width is {self.width} and model.heads is {self.heads}: the width must be divisible by the "
                f"heads; try model.heads {below}, or model.width {self.width - self.width % self.heads + self.heads}"
            )
        if self.heads is None and self.head_dim < min(8, self.width, self.head_size):
            raise UserError(
                f"model.width {self.width} has no divisor from 8 to {self.head_size} to serve as head dimension; "
                f"choose a width that is a multiple of 8, or set model.heads"
            )

    @property
    def head_dim(self) -> int:
        """Channels per attention head."""
        if self.heads is not None:
            return self.width // self.heads
        return max(d for d in range(1, min(self.head_size, self.width) + 1) if self.width % d == 0)

    @property
    def padded_vocab(self) -> int:
        """Rows of the embedding: vocab_size rounded up to a multiple of 64.

        Raises:
            UserError: vocab_size is still unset.
        """
        if self.vocab_size is None:
            raise UserError("model.vocab_size is not set; give it, or set data.tokenizer, whose size it takes")
        return -(-self.vocab_size // PAD_VOCABULARY_TO) * PAD_VOCABULARY_TO
