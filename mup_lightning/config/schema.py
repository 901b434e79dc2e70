"""The whole configuration of a run. Imports no torch, so that the command line parses, refuses and helps at once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any, Literal, TypeVar, get_type_hints

from mup_lightning.config.optimizers import RuleOptions
from mup_lightning.errors import UserError
from mup_lightning.spectral.recipe import RecipeConfig

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


TokenizerName = Literal["gpt2", "bytes"]

VOCAB_SIZES: dict[str, int] = {"gpt2": 50257, "bytes": 256}
"""Symbols of each vocabulary, the end-of-text symbol included."""

EOT_IDS: dict[str, int] = {"gpt2": 50256, "bytes": 0}
"""The end-of-text symbol that follows every document."""

VOCABULARY_HASHES: dict[str, str] = {
    "gpt2": "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930",
    "bytes": "40aff2e9d2d8922e47afd4648e6967497158785fbd1da870e7110266bf944880",
}
"""sha256 of each vocabulary: of the rank file for gpt2, of the 256 byte values in order for bytes."""


def vocab_size(tokenizer: str) -> int:
    """Symbols of the named vocabulary (50257 for gpt2), without loading it. Raises UserError for an unknown name."""
    check_tokenizer_name(tokenizer)
    return VOCAB_SIZES[tokenizer]


def check_tokenizer_name(name: str, key: str = "data.tokenizer") -> None:
    """Raise UserError, naming `key`, unless `name` is a tokenizer we have."""
    if name not in VOCAB_SIZES:
        raise UserError(f"{key} is {name!r}, which is no tokenizer of ours. Choose one of: {', '.join(VOCAB_SIZES)}.")


@dataclass
class DataConfig:
    """Which corpus to read and how to batch it.

    Args:
        path: Folder of a prepared corpus (see `mup-lightning data prepare`).
        tokenizer: Vocabulary the corpus was prepared with: gpt2 (50257 symbols) or bytes (256 symbols).
        batch_size: Sequences in one optimizer step, over all processes and accumulation steps.
        micro_batch: Sequences in one forward pass of one process.
        workers: Processes that read batches ahead; 0 reads in the training process, which is fastest on few cores.
        val_tokens: Use only the first this many validation tokens (whole windows); null means all of them.
        verify: Compare the sha256 of every shard with the manifest before training starts.
    """

    path: str = "data/prepared/austen-gpt2"
    tokenizer: TokenizerName = "gpt2"
    batch_size: int = 240
    micro_batch: int = 8
    workers: int = 0
    val_tokens: int | None = None
    verify: bool = True

    def __post_init__(self) -> None:
        check_tokenizer_name(self.tokenizer)
        if not self.path:
            raise UserError("data.path is empty. Name the folder of a prepared corpus, e.g. data/prepared/austen-gpt2.")
        _at_least("data.batch_size", self.batch_size, 1)
        _at_least("data.micro_batch", self.micro_batch, 1)
        _at_least("data.workers", self.workers, 0)
        if self.val_tokens is not None:
            _at_least("data.val_tokens", self.val_tokens, 1)


def _at_least(key: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{key} is {value!r}; expected a whole number of at least {least}.")


@dataclass
class ScheduleConfig:
    """Learning rate over time: linear warm-up, then a cosine to a floor. Every group keeps its ratio to the base.

    Attributes:
        warmup_steps: optimizer steps of the linear warm-up from 0; null: a tenth of the run.
        min_lr: where the cosine ends for a group whose peak is recipe.lr: a learning rate, not a fraction of one.
    """

    warmup_steps: int | None = None
    min_lr: float = 3e-5

    def __post_init__(self) -> None:
        """Raise UserError for negative values."""
        for key in ("warmup_steps", "min_lr"):
            if (getattr(self, key) or 0) < 0:
                raise UserError(f"schedule.{key} is {getattr(self, key)}; expected 0 or more")


@dataclass
class TrainerConfig:
    """How long, on what, and what is kept.

    Attributes:
        max_steps: optimizer steps of the run.
        strategy: single (one process); ddp (one process per device, gradients averaged); zero0 to zero3 (DeepSpeed:
            as ddp; then optimizer states, gradients, weights parted over the processes, each with what comes before).
        devices: processes per node: GPUs, or CPU processes.
        nodes: machines.
        accelerator: auto takes GPUs where there are any.
        precision: auto is bf16 (autocast, float32 weights) on GPU and float32 on CPU, where bfloat16 is slow.
        compile: auto is on on GPU: torch.compile of the blocks. On CPU it takes minutes and gains nothing.
        gradient_clip: largest global gradient norm; 0: no clipping.
        validate_every: steps between validations; 0: only at the end.
        checkpoint_every: steps between checkpoints; 0: only at the end.
        keep_checkpoints: how many of the newest complete checkpoints stay.
        log_every: steps between points of the training curves.
        feature_norms_every: steps between measurements of the feature norms; 0: never.
        spectral_norms_every: steps between measurements of the spectral condition; 0: never.
        update_check_every: steps between two looks whether orthogonalised updates are orthogonal; 0: never.
        peak_flops: what MFU divides by, FLOP/s of one device: a number (a data sheet's dense value in the run's
            precision), measure (a matrix product for a third of a second at the start), or off (no MFU).
        spike_sigmas: a step's loss is a spike where it exceeds the median of the last losses by so many of their
            spreads (`callbacks/divergence.py` defines them); 0: spikes are not looked for.
        spike_window: losses that median and spread are taken of.
        spike_stop: so many spikes among the last spike_window steps end the run; 0: never.
    """

    max_steps: int = 1221
    strategy: Literal["single", "ddp", "zero0", "zero1", "zero2", "zero3"] = "single"
    devices: int = 1
    nodes: int = 1
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: Literal["auto", "on", "off"] | bool = "auto"
    gradient_clip: float = 1.0
    validate_every: int = 200
    checkpoint_every: int = 200
    keep_checkpoints: int = 2
    log_every: int = 10
    feature_norms_every: int = 50
    spectral_norms_every: int = 100
    update_check_every: int = 500
    peak_flops: float | Literal["measure", "off"] | bool = "measure"
    spike_sigmas: float = 6.0
    spike_window: int = 100
    spike_stop: int = 0

    def __post_init__(self) -> None:
        """Raise UserError for values that no run can have."""
        if isinstance(self.compile, bool):  # as YAML reads on and off
            self.compile = "on" if self.compile else "off"
        if self.peak_flops is False:
            self.peak_flops = "off"
        for key in ("max_steps", "devices", "nodes", "keep_checkpoints", "log_every"):
            if getattr(self, key) < 1:
                raise UserError(f"trainer.{key} is {getattr(self, key)}; expected a whole number of at least 1")
        for key in (
            "gradient_clip",
            "validate_every",
            "checkpoint_every",
            "feature_norms_every",
            "spectral_norms_every",
            "update_check_every",
        ):
            if not getattr(self, key) >= 0:
                raise UserError(f"trainer.{key} is {getattr(self, key)}; expected 0 (off) or more")
        for key in ("spike_sigmas", "spike_stop"):
            if not getattr(self, key) >= 0:
                raise UserError(f"trainer.{key} is {getattr(self, key)}; expected 0 (off) or more")
        if self.spike_window < 2:
            raise UserError(f"trainer.spike_window is {self.spike_window}; expected a whole number of at least 2")
        if self.spike_stop > self.spike_window:
            raise UserError(
                f"trainer.spike_stop is {self.spike_stop} of the last trainer.spike_window = {self.spike_window} "
                f"steps, which no run can reach; expected {self.spike_window} at the most"
            )
        if self.spike_stop and not self.spike_sigmas:
            raise UserError(
                f"trainer.spike_stop is {self.spike_stop}, but trainer.spike_sigmas is 0, which looks for no spikes; "
                f"set trainer.spike_sigmas (6 by default), or leave trainer.spike_stop out"
            )
        if self.peak_flops is True or (not isinstance(self.peak_flops, str) and not 0 < self.peak_flops < math.inf):
            raise UserError(
                f"trainer.peak_flops is {self.peak_flops}; expected FLOP/s of one device, as in 9.89e14, measure or off"
            )
        if self.strategy == "single" and self.devices * self.nodes > 1:
            raise UserError(
                f"trainer.strategy single runs one process, but trainer.devices is {self.devices} and trainer.nodes is "
                f"{self.nodes}; set trainer.strategy ddp"
            )


@dataclass
class RunConfig:
    """Where the run lives.

    Attributes:
        root: folder of all runs.
        name: the run's folder inside it.
        resume: last (continue from the run's newest complete checkpoint), auto (the same, or start where there is none:
            what a job that SLURM may run again wants), or a checkpoint's folder; null: start anew.
    """

    root: str = "runs"
    name: str = "default"
    resume: str | None = None

    def __post_init__(self) -> None:
        """Raise UserError where runs would lie in the folder of all runs."""
        if not self.name.strip("./ "):
            raise UserError(f"run.name is {self.name!r}; expected the name of a folder in {self.root}")


@dataclass
class Config:
    """Everything that determines a run.

    Attributes:
        model: shape and switches of the model.
        recipe: parametrization and the base values that all hyper-parameters are derived from.
        rules: what can be set of the update rules themselves.
        schedule: learning rate over time.
        data: the prepared corpus and the batch.
        trainer: length, devices and intervals.
        run: where the run lives.
        seed: of the weights, the order of samples and dropout.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    rules: RuleOptions = field(default_factory=RuleOptions)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    data: DataConfig = field(default_factory=DataConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    run: RunConfig = field(default_factory=RunConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        """Fill in what follows from other keys, and refuse keys that contradict each other.

        Raises:
            UserError: naming the keys.
        """
        if self.seed < 0:
            raise UserError(f"seed is {self.seed}; expected a whole number of at least 0")
        for key, value in leaves(asdict(self)).items():
            if not all(map(math.isfinite, _numbers(value))):
                raise UserError(f"{key} is {value}; expected finite numbers")
        symbols = VOCAB_SIZES[self.data.tokenizer]
        if self.model.vocab_size is None:
            self.model.vocab_size = symbols
        elif self.model.vocab_size != symbols:
            raise UserError(
                f"model.vocab_size is {self.model.vocab_size}, but data.tokenizer {self.data.tokenizer} has {symbols} "
                f"symbols; leave model.vocab_size unset, or choose another tokenizer"
            )

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> Config:
        """The Config of nested plain values, as config.yaml and checkpoints hold them.

        Raises:
            UserError: a key is unknown: another version of mup_lightning wrote it.
        """
        return _from_plain(cls, values, "")

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
        return plain | {"model": model, "data": batch, "trainer": trainer}


def leaves(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one: dotted key -> value."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        result |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return result


def _numbers(value: Any) -> Iterator[float]:
    """Those in a value that is one, or in a list of lists."""
    if isinstance(value, list | tuple):
        for inner in value:
            yield from _numbers(inner)
    elif isinstance(value, float):
        yield value


T = TypeVar("T")


def _from_plain(cls: type[T], values: dict[str, Any], prefix: str) -> T:
    hints = get_type_hints(cls)
    if not isinstance(values, dict):
        raise UserError(f"{prefix.rstrip('.') or 'the configuration'} is {values!r}; expected keys and values")
    unknown = sorted(values.keys() - hints.keys())
    if unknown:
        raise UserError(
            f"unknown configuration keys {', '.join(prefix + key for key in unknown)}: written by another version?"
        )
    arguments = {
        key: _from_plain(hints[key], value, f"{prefix}{key}.") if is_dataclass(hints[key]) else value
        for key, value in values.items()
    }
    return cls(**arguments)
