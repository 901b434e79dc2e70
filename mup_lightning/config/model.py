"""The shape of a model, and its switches. Imports no torch."""

from dataclasses import dataclass
from typing import Annotated, Literal

from mup_lightning.errors import UserError
from mup_lightning.typed import Bound, NonNegativeFloat, NonNegativeInt, PositiveFloat, Typed, UnitInterval, as_typed

PAD_VOCABULARY_TO = 64
"""Rows of the embedding are padded to a multiple of this, because matrix units are fastest on aligned sides."""

Size = Annotated[int, Bound("a whole number from 1 to 1,000,000", lambda value: 1 <= value <= 1_000_000)]
Depth = Annotated[int, Bound("a whole number from 1 to 10,000", lambda value: 1 <= value <= 10_000)]
Experts = Annotated[int, Bound("a whole number from 2 to 1,000,000", lambda value: 2 <= value <= 1_000_000)]
Ratio = Annotated[float, Bound("a number above 0 and up to 1,000,000", lambda value: 0 < value <= 1_000_000)]


@dataclass
class ModelConfig(Typed, prefix="model."):
    """A decoder-only Transformer: its shape, and switches. The defaults are GPT-2's; recipes/model/ has others.

    Attributes:
        width: n, the size of the residual stream.
        depth: L, the number of blocks, each with an attention and an MLP branch.
        heads: attention heads; null: heads of dimension head_size, or the largest below that which divides the queries.
        head_size: where heads is null; widths that are compared should all be multiples of it.
        attention_ratio: channels of all heads' queries over the width: 1, but 2 in Qwen3-0.6B.
        context: tokens in a sequence.
        kv_heads: heads of keys and values, each shared by equally many heads of queries; null: see heads_per_kv.
        heads_per_kv: where kv_heads is null: heads that share keys and values, or the largest divisor of the heads
            below that.
        vocab_size: tokens of the vocabulary; null: those of data.tokenizer.
        position: learned adds a vector for each position to the embeddings; rope turns queries and keys by angles
            that grow with the position (rotary embedding, arXiv 2104.09864).
        rope_base: base of the rotary frequencies rope_base^(-2i/d), of the head dimension d.
        mlp_ratio: hidden units of the MLP over the width.
        activation: the MLP's nonlinearity; gelu is GPT-2's tanh approximation.
        gated: the MLP's activation acts on a matrix of its own, whose result multiplies the hidden units: with silu
            that is SwiGLU (arXiv 2002.05202).
        experts: MLPs of a block, of which a router sends every token to a few, with weights that add up to 1 (a mixture
            of experts, arXiv 2401.04088), each with mlp_ratio x width hidden units; null: one MLP, for all tokens.
        experts_per_token: how many of them compute for each token.
        balance: factor of the load-balancing loss in what training minimises: the number of experts times the sum of
            their shares of a sequence's tokens x their mean probabilities there, averaged over sequences and blocks.
            Losses are reported without it.
        layer_norm: a norm before every branch and a final one; false removes all of them.
        norm: which one: layernorm, or rmsnorm, which neither subtracts the mean nor has a bias.
        norm_eps: what a norm adds to the mean square; qk_norm does so where norm is rmsnorm.
        qk_norm: RMS-normalise queries and keys per head.
        qk_gain: learned gains after qk_norm, shared by all heads.
        parallel: attention and MLP of a block read the same residual stream, rather than the MLP what attention added.
        bias: biases in linear layers and LayerNorms.
        tied: the output matrix is the token embedding.
        attention_scale: factor on the attention logits, of the head dimension d; auto is 1/sqrt(d), but under mup
            sqrt(d_base)/d, with the base model's d_base: they differ where d does,
            as where heads is fixed while the width grows.
        logit_cap: logits stay within plus and minus this, softly (Gemma 2's cap · tanh(logits / cap)); null: uncapped.
        z_loss: factor of log²Z in what training minimises, Z being the softmax's denominator: it keeps logits from
            drifting (PaLM's 1e-4). Losses are reported without it.
        document_mask: attention stays inside a document, and positions begin anew with each: one begins with the
            end-of-text token before it, which its first token is predicted from.
        end_of_text: the token that document_mask goes by; null: that of data.tokenizer.
        dropout: probability, on the embeddings' sum, the attention weights and both branches.
        weights: folder of a Hugging Face GPT-2, Llama, Qwen3 or Mixtral whose weights training starts from, whatever
            multipliers the recipe has: both compute the same function. weights=FOLDER takes its shape over, too.
        loss_chunk: tokens whose logits exist at once in the loss; null: as many as make about 50 MB (CPU), 1 GB (GPU).
    """

    width: Size = 256
    depth: Depth = 4
    heads: Size | None = None
    head_size: Size = 64
    attention_ratio: Size | Ratio = 1
    context: Size = 1024
    kv_heads: Size | None = None
    heads_per_kv: Size = 1
    vocab_size: Size | None = None
    position: Literal["learned", "rope"] = "learned"
    rope_base: PositiveFloat = 10000.0
    mlp_ratio: Size | Ratio = 4
    activation: Literal["gelu", "relu", "silu"] = "gelu"
    gated: bool = False
    experts: Experts | None = None
    experts_per_token: Size = 2
    balance: NonNegativeFloat = 0.01
    layer_norm: bool = True
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_eps: PositiveFloat = 1e-5
    qk_norm: bool = False
    qk_gain: bool = False
    parallel: bool = False
    bias: bool = True
    tied: bool = True
    attention_scale: Literal["auto", "1/sqrt(d)", "1/d"] = "auto"
    logit_cap: PositiveFloat | None = None
    z_loss: NonNegativeFloat = 0.0
    document_mask: bool = False
    end_of_text: NonNegativeInt | None = None
    dropout: UnitInterval = 0.0
    weights: str | None = None
    loss_chunk: Size | None = None

    def __post_init__(self) -> None:
        """Raise UserError for a shape that cannot be built."""
        super().__post_init__()
        for key, sides in (("mlp_ratio", "hidden units"), ("attention_ratio", "channels of queries")):
            if abs((product := getattr(self, key) * self.width) - max(1, round(product))) > 1e-3:
                raise UserError(
                    f"model.{key} {getattr(self, key):g} times model.width {self.width} is no whole number of {sides}; "
                    f"the nearest is model.{key} {max(1, round(product)) / self.width!r}"
                )
        queries = self.query_dim
        what = "width" if queries == self.width else f"width x model.attention_ratio {self.attention_ratio:g}"
        if self.heads is not None and queries % self.heads:
            below = max(h for h in range(1, self.heads) if queries % h == 0)
            above = f", or model.width {self.width - self.width % self.heads + self.heads}" if what == "width" else ""
            raise UserError(
                f"model.{what} is {queries} and model.heads is {self.heads}: that must be divisible by the "
                f"heads; try model.heads {below}{above}"
            )
        least = min(8, queries, self.head_size)
        if self.heads is None and self.head_dim < least:
            raise UserError(
                f"model.{what} is {queries}, which has no divisor from {least} to {self.head_size} to be the head "
                f"dimension; choose a width that is a multiple of {least}, or set model.heads"
            )
        heads = queries // self.head_dim
        if self.kv_heads is not None and heads % self.kv_heads:
            raise UserError(
                f"model.kv_heads is {self.kv_heads}, which does not divide the {heads} heads of width {self.width}; "
                f"expected one of {', '.join(str(n) for n in range(1, heads + 1) if heads % n == 0)}"
            )
        if self.position == "rope" and self.head_dim % 2:
            raise UserError(
                f"model.position is rope, which turns pairs of channels, but a head has {self.head_dim}; set "
                f"model.heads or model.head_size so that a head has an even number"
            )
        rotary, experts = ("position rope", self.position == "rope"), ("experts", self.experts)
        needed = {"rope_base": rotary, "qk_gain": ("qk_norm", self.qk_norm)}
        for key, (other, there) in (needed | dict.fromkeys(("experts_per_token", "balance"), experts)).items():
            if not there and (value := getattr(self, key)) != getattr(ModelConfig, key):
                raise UserError(
                    f"model.{key} is {as_typed(value)}, which does nothing without model.{other}; set both, or neither"
                )
        if self.experts is not None and not 2 <= self.experts_per_token <= self.experts:
            raise UserError(
                f"model.experts_per_token is {self.experts_per_token}; expected 2 to {self.experts} (model.experts); a "
                f"single one would have weight 1 whatever the router says, so that the router would learn nothing"
            )
        if self.experts is not None and self.bias:
            raise UserError("model.bias is true, but experts have none; set model.bias false, as model=mixtral does")

    @property
    def family(self) -> str:
        """GPT-2, Llama, Qwen3 or Mixtral: the well-known one that its blocks are like."""
        rotary = "Mixtral" if self.experts else "Qwen3" if self.qk_norm else "Llama"
        return "GPT-2" if self.position == "learned" and not self.experts else rotary

    @property
    def head_dim(self) -> int:
        """Channels per attention head."""
        return int(self.head_dim_at(self.width))

    def head_dim_at(self, width: int) -> float:
        """Channels per attention head of the same model at another width."""
        queries = self.query_dim_at(width)
        if self.heads is not None:
            return queries / self.heads
        return max(d for d in range(1, min(self.head_size, queries) + 1) if queries % d == 0)

    @property
    def query_dim(self) -> int:
        """Channels of all heads' queries."""
        return self.query_dim_at(self.width)

    def query_dim_at(self, width: int) -> int:
        """Channels of all heads' queries of the same model at another width."""
        return max(1, round(self.attention_ratio * width))

    @property
    def grouped(self) -> bool:
        """Whether heads may share keys and values, whose matrices then are apart from the queries'."""
        return self.kv_heads is not None or self.heads_per_kv > 1

    @property
    def kv_dim(self) -> int:
        """Channels of all heads of keys, or of values."""
        return int(self.kv_dim_at(self.width))

    def kv_dim_at(self, width: int) -> float:
        """Channels of all heads of keys of the same model at another width; it has no more of them than heads."""
        dim = self.head_dim_at(width)
        heads = int(self.query_dim_at(width) / dim)
        shared = max(n for n in range(1, self.heads_per_kv + 1) if heads % n == 0)
        return dim * (heads / shared if self.kv_heads is None else min(heads, self.kv_heads))

    @property
    def hidden(self) -> int:
        """Hidden units of the MLP."""
        return max(1, round(self.mlp_ratio * self.width))

    @property
    def padded_vocab(self) -> int:
        """Rows of the embedding: vocab_size rounded up to a multiple of 64. Raises UserError where that is unset."""
        if self.vocab_size is None:
            raise UserError("model.vocab_size is not set; give it, or set data.tokenizer, whose size it takes")
        return -(-self.vocab_size // PAD_VOCABULARY_TO) * PAD_VOCABULARY_TO
