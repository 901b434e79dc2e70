"""The whole configuration of a run. Imports no torch, so that the command line parses, refuses and helps at once."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal, NamedTuple, Self

from mup_lightning.errors import UserError
from mup_lightning.spectral.recipe import Recipe, RecipeConfig, derive
from mup_lightning.spectral.roles import Side
from mup_lightning.typed import (
    Bound,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Typed,
    UnitInterval,
    build,
)

PAD_VOCABULARY_TO = 64
"""Rows of the embedding are padded to a multiple of this, because matrix units are fastest on aligned sides."""

TokenizerName = Literal["gpt2", "bytes"]


class Vocabulary(NamedTuple):
    """Number of tokens; the one among them that ends every document; sha256 of the rank file, or of the bytes."""

    size: int
    eot: int
    sha256: str


VOCABULARIES: dict[str, Vocabulary] = {
    "gpt2": Vocabulary(50257, 50256, "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"),
    "bytes": Vocabulary(256, 0, "40aff2e9d2d8922e47afd4648e6967497158785fbd1da870e7110266bf944880"),
}


@dataclass
class ModelConfig(Typed, prefix="model."):
    """A decoder-only Transformer: its shape, and switches. The defaults are GPT-2's; recipes/model/ has Llama's.

    Attributes:
        width: n, the size of the residual stream.
        depth: L, the number of blocks, each with an attention and an MLP branch.
        heads: attention heads; null: heads of dimension head_size, or the largest divisor of the width below that.
        head_size: where heads is null; widths that are compared should all be multiples of it.
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
        layer_norm: a norm before every branch and a final one; false removes all of them.
        norm: which one: layernorm, or rmsnorm, which neither subtracts the mean nor has a bias.
        qk_norm: RMS-normalise queries and keys per head.
        qk_gain: learned gains after qk_norm, shared by all heads.
        parallel: attention and MLP of a block read the same residual stream, rather than the MLP what attention added.
        bias: biases in linear layers and LayerNorms.
        tied: the output matrix is the token embedding.
        attention_scale: factor on the attention logits, of the head dimension d; auto is 1/sqrt(d), but under mup
            sqrt(d_base)/d, with the base model's d_base: they differ where d does,
            as where heads is fixed while the width grows.
        dropout: probability, on the embeddings' sum, the attention weights and both branches.
        loss_chunk: tokens whose logits exist at once in the loss; null: as many as make about 50 MB (CPU), 1 GB (GPU).
    """

    width: PositiveInt = 256
    depth: PositiveInt = 4
    heads: PositiveInt | None = None
    head_size: PositiveInt = 64
    context: PositiveInt = 1024
    kv_heads: PositiveInt | None = None
    heads_per_kv: PositiveInt = 1
    vocab_size: PositiveInt | None = None
    position: Literal["learned", "rope"] = "learned"
    rope_base: PositiveFloat = 10000.0
    mlp_ratio: PositiveInt | PositiveFloat = 4
    activation: Literal["gelu", "relu", "silu"] = "gelu"
    gated: bool = False
    layer_norm: bool = True
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    qk_norm: bool = False
    qk_gain: bool = False
    parallel: bool = False
    bias: bool = True
    tied: bool = True
    attention_scale: Literal["auto", "1/sqrt(d)", "1/d"] = "auto"
    dropout: UnitInterval = 0.0
    loss_chunk: PositiveInt | None = None

    def __post_init__(self) -> None:
        """Raise UserError for a shape that cannot be built."""
        super().__post_init__()
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
        heads = self.width // self.head_dim
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
        if self.qk_gain and not self.qk_norm:
            raise UserError("model.qk_gain is true, but model.qk_norm is false; set both, or neither")
        if abs(self.mlp_ratio * self.width - self.hidden) > 1e-3:
            raise UserError(
                f"model.mlp_ratio {self.mlp_ratio:g} times model.width {self.width} is no whole number of hidden "
                f"units; the nearest is model.mlp_ratio {self.hidden / self.width!r}"
            )

    @property
    def family(self) -> str:
        """GPT-2 or Llama: the well-known one of the two that its blocks are like."""
        return "GPT-2" if self.position == "learned" else "Llama"

    @property
    def head_dim(self) -> int:
        """Channels per attention head."""
        return int(self.head_dim_at(self.width))

    def head_dim_at(self, width: int) -> float:
        """Channels per attention head of the same model at another width."""
        if self.heads is not None:
            return width / self.heads
        return max(d for d in range(1, min(self.head_size, width) + 1) if width % d == 0)

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
        heads = int(width / dim)
        shared = max(n for n in range(1, self.heads_per_kv + 1) if heads % n == 0)
        return dim * (heads / shared if self.kv_heads is None else min(heads, self.kv_heads))

    @property
    def hidden(self) -> int:
        """Hidden units of the MLP."""
        return round(self.mlp_ratio * self.width)

    @property
    def padded_vocab(self) -> int:
        """Rows of the embedding: vocab_size rounded up to a multiple of 64. Raises UserError where that is unset."""
        if self.vocab_size is None:
            raise UserError("model.vocab_size is not set; give it, or set data.tokenizer, whose size it takes")
        return -(-self.vocab_size // PAD_VOCABULARY_TO) * PAD_VOCABULARY_TO


@dataclass
class DataConfig(Typed, prefix="data."):
    """Which corpus to read and how to batch it.

    Attributes:
        path: folder of a prepared corpus (see `mup-lightning data prepare`).
        tokenizer: vocabulary the corpus was prepared with: gpt2 (50257 tokens) or bytes (256).
        batch_size: sequences in one optimizer step, over all processes and accumulation steps.
        micro_batch: sequences in one forward pass of one process; auto: the largest number that divides a process's
            share of batch_size, and fits (`plan.memory.micro_batch`).
        workers: processes that read batches ahead; 0 reads in the training process, which is fastest on few cores.
        val_tokens: use only the first this many validation tokens (whole windows); null: all of them.
        verify: compare the sha256 of every shard with the manifest before training starts, and say where the corpus is
            older than its card or files.
    """

    path: Annotated[str, Bound("the folder of a prepared corpus, such as data/prepared/austen-gpt2", bool)] = (
        "data/prepared/austen-gpt2"
    )
    tokenizer: TokenizerName = "gpt2"
    batch_size: PositiveInt = 240
    micro_batch: PositiveInt | Literal["auto"] = "auto"
    workers: NonNegativeInt = 0
    val_tokens: PositiveInt | None = None
    verify: bool = True

    @property
    def sequences(self) -> int:
        """micro_batch, where auto has been replaced by a number."""
        assert self.micro_batch != "auto", "data.micro_batch auto has not been replaced"
        return self.micro_batch


@dataclass
class ScheduleConfig(Typed, prefix="schedule."):
    """Learning rate over time: linear warm-up, then a cosine to a floor. Every group keeps its ratio to the base.

    Attributes:
        warmup_steps: optimizer steps of the linear warm-up from 0; null: a tenth of the run.
        min_lr: where the cosine ends for a group whose peak is recipe.lr: a learning rate, not a fraction of one.
    """

    warmup_steps: NonNegativeInt | None = None
    min_lr: NonNegativeFloat = 3e-5


@dataclass
class TrainerConfig(Typed, prefix="trainer."):
    """How long a run is, on which devices it runs, and what it keeps.

    Attributes:
        max_steps: optimizer steps of the run.
        strategy: single (one process); ddp (one process per device, gradients averaged); zero0 to zero3 (DeepSpeed: as
            ddp; then optimizer states, gradients, weights are sharded over the processes, each with the ones before).
        devices: processes per node: GPUs, or CPU processes.
        nodes: machines.
        accelerator: auto takes GPUs where there are any.
        precision: auto is bf16 (autocast, float32 weights) on GPU and float32 on CPU, where bfloat16 is slow.
        compile: auto is on on GPU: torch.compile of the blocks. On CPU it takes minutes and gains nothing.
        gradient_clip: largest gradient norm, at the base shape (recipe.scale_clip); 0: no clipping.
        validate_every: steps between validations; 0: only at the end.
        checkpoint_every: steps between checkpoints; 0: only at the end.
        keep_checkpoints: how many of the newest complete checkpoints stay.
        log_every: steps between points of the training curves.
        feature_norms_every: steps between measurements of the feature norms; 0: never.
        spectral_norms_every: steps between measurements of the spectral condition; 0: never.
        update_check_every: steps between two checks that orthogonalised updates are orthogonal; 0: never.
        peak_flops: what MFU divides by, FLOP/s of one device: a number (a data sheet's dense value in the run's
            precision), measure (a matrix product for a third of a second at the start), or off (no MFU).
        spike_sigmas: a step's loss is a spike where it exceeds the median of the last losses by this many of their
            spreads (`callbacks/divergence.py` defines them); 0: spikes are not looked for.
        spike_window: losses that median and spread are taken of.
        spike_stop: this many spikes among the last spike_window steps end the run; 0: never.
    """

    max_steps: PositiveInt = 1221
    strategy: Literal["single", "ddp", "zero0", "zero1", "zero2", "zero3"] = "single"
    devices: PositiveInt = 1
    nodes: PositiveInt = 1
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    gradient_clip: NonNegativeFloat = 1.0
    validate_every: NonNegativeInt = 200
    checkpoint_every: NonNegativeInt = 200
    keep_checkpoints: PositiveInt = 2
    log_every: PositiveInt = 10
    feature_norms_every: NonNegativeInt = 50
    spectral_norms_every: NonNegativeInt = 100
    update_check_every: NonNegativeInt = 500
    peak_flops: PositiveFloat | Literal["measure", "off"] = "measure"
    spike_sigmas: NonNegativeFloat = 6.0
    spike_window: Annotated[int, Bound("a whole number of at least 2", lambda value: value >= 2)] = 100
    spike_stop: NonNegativeInt = 0

    @property
    def zero_stage(self) -> int:
        """Of ZeRO; 0 under single and ddp, too."""
        return int(self.strategy[-1]) if self.strategy.startswith("zero") else 0

    def __post_init__(self) -> None:
        """Raise UserError for values that contradict each other."""
        super().__post_init__()
        if self.spike_stop and not (self.spike_sigmas and self.spike_stop <= self.spike_window):
            raise UserError(
                f"trainer.spike_stop is {self.spike_stop}, which no run can reach: trainer.spike_sigmas is "
                f"{self.spike_sigmas:g} (0 looks for no spikes) and trainer.spike_window {self.spike_window} steps"
            )
        if self.strategy == "single" and self.devices * self.nodes > 1:
            raise UserError(
                f"trainer.strategy single runs one process, but trainer.devices is {self.devices} and trainer.nodes is "
                f"{self.nodes}; set trainer.strategy ddp"
            )


@dataclass
class RunConfig(Typed, prefix="run."):
    """Where the run is kept.

    Attributes:
        root: folder of all runs.
        name: the run's folder inside it.
        resume: last (continue from the run's newest complete checkpoint), auto (the same, or start where there is none:
            what a job that SLURM may run again wants), or a checkpoint's folder; null: start anew.
    """

    root: str = "runs"
    name: Annotated[str, Bound("the name of a folder for the run", lambda name: name.strip("./ "))] = "default"
    resume: str | None = None


@dataclass
class Config(Typed):
    """Everything that determines a run.

    Attributes:
        model: shape and switches of the model.
        recipe: parametrization and the base values that all hyper-parameters are derived from.
        rules: options of the update rules that differ from their defaults, such as rules.muon.steps; recipes/gpt2.yaml
            lists them.
        schedule: learning rate over time.
        data: the prepared corpus and the batch.
        trainer: length, devices and intervals.
        run: where the run is kept.
        seed: of the weights, the order of samples and dropout.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    rules: dict[str, dict[str, Any]] = field(default_factory=dict)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    data: DataConfig = field(default_factory=DataConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    run: RunConfig = field(default_factory=RunConfig)
    seed: NonNegativeInt = 0

    def __post_init__(self) -> None:
        """Take the vocabulary's size from the tokenizer. Raises UserError where the two contradict each other."""
        super().__post_init__()
        tokens = VOCABULARIES[self.data.tokenizer].size
        if self.model.vocab_size is None:
            self.model.vocab_size = tokens
        elif self.model.vocab_size != tokens:
            raise UserError(
                f"model.vocab_size is {self.model.vocab_size}, but data.tokenizer {self.data.tokenizer} has {tokens} "
                f"tokens; leave model.vocab_size unset, or choose another tokenizer"
            )

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> Self:
        """The Config of nested plain values, as config.yaml and checkpoints hold them. Raises UserError."""
        return build(cls, values)

    def derive(self) -> Recipe:
        """The recipe for this model."""
        shape, base = self.model, self.recipe.base_width
        dims = (shape.head_dim_at(base), shape.head_dim)
        sides: dict[Side, float] = {"head": dims[1] / dims[0], "kv": shape.kv_dim / shape.kv_dim_at(base)}
        return derive(self.recipe, shape.width, shape.depth, dims if shape.attention_scale == "auto" else (1, 1), sides)

    def identity(self) -> dict[str, Any]:
        """What must be equal for a checkpoint to be continued exactly, as plain nested values.

        Left out: what changes no number that is trained (devices, workers, intervals, places), and max_steps, which
        may be raised on purpose.
        """
        data = asdict(self)
        trainer = {key: data["trainer"][key] for key in ("precision", "gradient_clip")}
        batch = {key: data["data"][key] for key in ("tokenizer", "batch_size")}
        model = {key: value for key, value in data["model"].items() if key != "loss_chunk"}
        plain = {key: data[key] for key in ("recipe", "rules", "schedule", "seed")}
        mup, recipe = self.recipe.parametrization == "mup", plain["recipe"]
        recipe["scale_clip"] &= mup and self.trainer.gradient_clip > 0
        recipe["decay_gains"] |= not self.recipe.weight_decay
        if self.derive().multipliers.attention == 1.0 and model["attention_scale"] == "auto":
            model["attention_scale"] = "1/sqrt(d)"
        if mup and (self.recipe.pure or self.recipe.optimizer in ("sophia", "soap")):
            plain["derivation"] = 2  # the first one left rho, ε and the longer side of a matrix unscaled
        return without_added(plain | {"model": model, "data": batch, "trainer": trainer})


ADDED: dict[str, Any] = {
    "model.kv_heads": None,
    "model.heads_per_kv": 1,
    "model.position": "learned",
    "model.rope_base": 10000.0,
    "model.gated": False,
    "model.norm": "layernorm",
    "model.qk_gain": False,
    "model.parallel": False,
    "recipe.base": {},
    "recipe.decay_gains": True,
    "recipe.scale_clip": False,
    "recipe.weight_decay_rule": "spectral",
    "rules.adamw.eps": None,
    "rules.adan.eps": None,
    "rules.shampoo.eps": None,
    "rules.shampoo.correct_bias": True,
    "rules.sso.sphere": 1.0,
}
"""Keys that the first checkpoints and tables of results lack -> what was done then. At that value a key is no part of
an identity, so that those checkpoints can be continued and the hashes of those tables hold."""


def without_added(identity: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """An identity without the keys of `ADDED` that are as they were before them."""
    kept: dict[str, Any] = {}
    for key, value in identity.items():
        full = f"{prefix}{key}"
        if full not in ADDED or value != ADDED[full]:
            kept[key] = without_added(value, f"{full}.") if isinstance(value, dict) else value
    return kept


def leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one: dotted key -> value."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        result |= leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return result
