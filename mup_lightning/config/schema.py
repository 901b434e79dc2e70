"""The whole configuration of a run. Imports no torch, so that the command line parses, refuses and helps at once."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self

from mup_lightning.config.data import DataConfig
from mup_lightning.config.model import ModelConfig
from mup_lightning.errors import UserError
from mup_lightning.spectral.base import RecipeConfig
from mup_lightning.spectral.horizon import SDE_LOSES, beyond
from mup_lightning.spectral.recipe import Recipe, derive
from mup_lightning.spectral.roles import Role, Side
from mup_lightning.typed import (
    AtLeastTwo,
    Bound,
    NonNegativeFloat,
    NonNegativeInt,
    OpenUnitInterval,
    PositiveFloat,
    PositiveInt,
    Share,
    Typed,
    UnitInterval,
    build,
)


@dataclass
class ScheduleConfig(Typed, prefix="schedule."):
    """Learning rate over time: linear warm-up, then a decay to a floor. Every group keeps its ratio to the base.

    Attributes:
        kind: cosine or linear (the decay begins after the warm-up), wsd (the peak is held, then a linear decay), or
            constant (no decay: a trunk that `mup-lightning anneal` branches wsd runs of several lengths from).
        warmup_steps: optimizer steps of the linear warm-up from 0; null: by tokens or share.
        warmup_tokens: the same in tokens, rounded to whole steps, at least one; null: by steps or share.
        warmup_share: the same as a share of the run, rounded down to whole steps, where neither of them is given.
        decay: share of the run that the decay of wsd takes.
        floor: where the decay ends, as a share of the peak; null: at min_lr.
        min_lr: where the decay ends for a group whose peak is recipe.lr: a learning rate, not a fraction of one.
    """

    kind: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    warmup_steps: NonNegativeInt | None = None
    warmup_tokens: PositiveInt | None = None
    warmup_share: UnitInterval = 0.1
    decay: OpenUnitInterval = 0.2
    floor: Share | None = None
    min_lr: NonNegativeFloat = 3e-5

    def __post_init__(self) -> None:
        """Raise UserError for two lengths of the warm-up."""
        super().__post_init__()
        if self.warmup_steps is not None and self.warmup_tokens is not None:
            raise UserError(
                f"schedule.warmup_steps is {self.warmup_steps} and schedule.warmup_tokens {self.warmup_tokens}; "
                f"expected one of them, and null for the other"
            )


ZERO_STAGES = {"single": 0, "ddp": 0, "zero0": 0, "zero1": 1, "zero2": 2, "zero3": 3, "fsdp": 3}
"""Strategy -> the stage of ZeRO that shards what it does."""


@dataclass
class TrainerConfig(Typed, prefix="trainer."):
    """How long a run is, on which devices it runs, and what it keeps.

    Attributes:
        max_steps: optimizer steps of the run.
        strategy: single (one process); ddp (one process per device, gradients averaged); zero0 to zero3 (DeepSpeed: as
            ddp; then optimizer states, gradients, weights are sharded over the processes, each with the ones before);
            fsdp (FSDP2, which shards all of them).
        devices: processes per node: GPUs, or CPU processes.
        nodes: machines.
        accelerator: auto takes GPUs where there are any.
        precision: auto is bf16 (autocast, float32 weights) on GPU and float32 on CPU, where bfloat16 is slow.
        compile: auto is on on GPU: torch.compile of the blocks, and of the loss's passes over the logits. On CPU it
            takes minutes and gains nothing.
        deterministic: the same bits in every run on the same GPU, so that a resumed run is exact there too, as on
            CPUs it always is; attention's backward pass is slower.
        gradient_clip: largest gradient norm, at the base shape (recipe.scale_clip); 0: no clipping.
        validate_every: steps between validations; 0: only at the end.
        checkpoint_every: steps between checkpoints; 0: only at the end.
        keep_checkpoints: how many of the newest complete checkpoints stay.
        log_every: steps between points of the training curves.
        feature_norms_every: steps between measurements of the feature norms; 0: never.
        spectral_norms_every: steps between measurements of the spectral condition; 0: never.
        update_check_every: steps between two checks that orthogonalised updates are orthogonal; 0: never.
        noise_scale_every: steps between measurements of the gradient noise scale, each at most a quarter of a step of
            work; 0: never.
        peak_flops: what MFU divides by, FLOP/s of one device: a number (a data sheet's dense value in the run's
            precision), measure (a matrix product for a third of a second at the start), or off (no MFU).
        spike_sigmas: a step's loss is a spike where it exceeds the median of the last losses by this many of their
            spreads (`callbacks/loss_checks.py` defines them); 0: spikes are not looked for.
        spike_window: losses that median and spread are taken of.
        spike_stop: this many spikes among the last spike_window steps end the run; 0: never.
    """

    max_steps: PositiveInt = 1221
    strategy: Literal["single", "ddp", "zero0", "zero1", "zero2", "zero3", "fsdp"] = "single"
    devices: PositiveInt = 1
    nodes: PositiveInt = 1
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    deterministic: bool = False
    gradient_clip: NonNegativeFloat = 1.0
    validate_every: NonNegativeInt = 200
    checkpoint_every: NonNegativeInt = 200
    keep_checkpoints: PositiveInt = 2
    log_every: PositiveInt = 10
    feature_norms_every: NonNegativeInt = 50
    spectral_norms_every: NonNegativeInt = 100
    update_check_every: NonNegativeInt = 500
    noise_scale_every: NonNegativeInt = 50
    peak_flops: PositiveFloat | Literal["measure", "off"] = "measure"
    spike_sigmas: NonNegativeFloat = 6.0
    spike_window: AtLeastTwo = 100
    spike_stop: NonNegativeInt = 0

    @property
    def zero_stage(self) -> int:
        """What is sharded; see `ZERO_STAGES`."""
        return ZERO_STAGES[self.strategy]

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
        forecast: forecast.json of `mup-lightning forecast`, which TensorBoard shows with the training loss; null: none.
        loggers: where the curves go, some of tensorboard, csv, wandb, mlflow (see docs/guide/train.md); []: none.
    """

    root: str = "runs"
    name: Annotated[str, Bound("the name of a folder for the run", lambda name: name.strip("./ "))] = "default"
    resume: str | None = None
    forecast: str | None = None
    loggers: tuple[Literal["tensorboard", "csv", "wandb", "mlflow"], ...] = ("tensorboard",)


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
        eot = self.model.end_of_text if self.model.document_mask else 0
        tokens, end = self.data.vocabulary(self.model.vocab_size, eot)
        if self.model.document_mask and eot is None:
            self.model.end_of_text = end
        if self.model.vocab_size is None:
            self.model.vocab_size = tokens
        elif self.model.vocab_size != tokens:
            raise UserError(
                f"model.vocab_size is {self.model.vocab_size}, but data.tokenizer {self.data.tokenizer} has {tokens} "
                f"tokens; leave model.vocab_size unset, or choose another tokenizer"
            )
        if self.recipe.base_experts and not self.model.experts:
            base = f"recipe.base_experts is {self.recipe.base_experts}, but model.experts is null"
            raise UserError(f"{base}; give the model experts, or leave recipe.base_experts out")

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> Self:
        """The Config of nested plain values, as config.yaml and checkpoints hold them. Raises UserError."""
        return build(cls, values)

    @property
    def tokens_per_step(self) -> int:
        """B, the tokens of one optimizer step."""
        return self.data.batch_size * self.model.context

    @property
    def tokens(self) -> int:
        """T, the tokens of the run."""
        return self.trainer.max_steps * self.tokens_per_step

    @property
    def scaled_tokens(self) -> int:
        """The T that the recipe scales to: recipe.tokens, or the run's own."""
        return self.recipe.tokens or self.tokens

    def derive(self) -> Recipe:
        """The recipe for this model."""
        shape, base = self.model, self.recipe.base_width
        dims = (shape.head_dim_at(base), shape.head_dim)
        sides: dict[Side, float] = {"head": dims[1] / dims[0], "kv": shape.kv_dim / shape.kv_dim_at(base)}
        if shape.experts:
            sides["experts"] = shape.experts / (self.recipe.base_experts or shape.experts)
        attention = dims if shape.attention_scale == "auto" else (1, 1)
        per_head = self.recipe.optimizer in ("muon", "muon_kimi") and self.rules.get("muon", {}).get("per_head", False)
        return derive(
            self.recipe, shape.width, shape.depth, attention, sides, per_head, self.tokens_per_step, self.scaled_tokens
        )

    def over_time(self) -> list[str]:
        """What recipe.time_rule does in this run, and what speaks against it, in lines; none where it is none."""
        recipe, batch, tokens = self.recipe, self.tokens_per_step, self.scaled_tokens
        if not (recipe.base_batch and recipe.base_tokens):
            return []
        factors = self.derive().values[Role.HIDDEN].over_time
        on = ", ".join(f"{name.replace('_', ' ')} x {factor:.4g}" for name, factor in factors.items())
        times = f"batch {batch / recipe.base_batch:.4g} x and tokens {tokens / recipe.base_tokens:.4g} x"
        lines = [f"time rule {recipe.time_rule}, {times} the base's: {on}"]
        sizes = {"width": self.model.width, "depth": self.model.depth, "batch": batch, "tokens": tokens}
        if recipe.law and (outside := beyond(recipe.law, sizes)):
            lines.append(outside)
        if recipe.time_rule == "sde":
            lines.append(SDE_LOSES)
        return lines


WHOLE = ("recipe.law", "data.path")
"""Keys whose mapping is one value, such as the contents of a file: a later layer replaces all of it."""


def leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one: dotted key -> value."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, Mapping) and f"{prefix}{key}" not in WHOLE
        result |= leaves(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return result
