"""Everything that training would refuse in a configuration, found before a study begins, and what a run will cost."""

import math
from dataclasses import dataclass

from mup_lightning.config.schema import Config
from mup_lightning.data.datamodule import TokenDataModule
from mup_lightning.data.shards import Manifest, manifest_hash
from mup_lightning.errors import UserError
from mup_lightning.plan.plan import plan
from mup_lightning.training.trainer import resolve

_OVERHEAD, _OVERHEAD_PER_BLOCK = 1.0e8, 6.0e7
"""What a micro-batch costs on top of its operations (interpreter, hooks), in operations of one core. Only the order of
the runs and the first estimate of their time depend on it."""


@dataclass(frozen=True)
class Checked:
    """What is known of a run before it begins.

    Attributes:
        corpus: hash of the corpus's manifest.
        unigram_loss: of the corpus, nats per token.
        tokens: in the run.
        flops: of the run, as computed.
        work: expected time, in operations of one busy core.
        memory: bytes that training takes at its peak.
        parameters: of the model.
    """

    corpus: str
    unigram_loss: float
    tokens: int
    flops: float
    work: float
    memory: int
    parameters: int


class Checker:
    """Checks configurations one by one; a corpus is read and verified once."""

    def __init__(self) -> None:
        self._opened: dict[tuple[str, str, int, int | None], Manifest] = {}

    def check(self, config: Config) -> Checked:
        """Check a configuration, and fill in what `auto` means on this machine.

        Raises:
            UserError: as `train` would, without training; or for what a study cannot do.
        """
        trainer, data = config.trainer, config.data
        resolve(trainer)
        if trainer.strategy != "single":
            raise UserError(
                f"trainer.strategy is {trainer.strategy}; the runs of a study take one process each (single), and "
                f"--workers says how many of them run at once"
            )
        planned = plan(config, device="cpu" if trainer.accelerator == "cpu" else "cuda")
        micro_batches = planned.accumulation[1]
        if micro_batches is None:
            raise UserError(
                f"data.batch_size {data.batch_size} is not a multiple of data.micro_batch {data.micro_batch}"
            )
        manifest, steps = self._open(config), trainer.max_steps
        flops = planned.flops_of(steps)
        validations = max(1, steps // (trainer.validate_every or steps))
        seen = min(data.val_tokens or math.inf, manifest.splits["val"].tokens)
        validating = validations * seen * planned.flops.matmul_per_token / 3  # forward alone
        overhead = steps * micro_batches * (_OVERHEAD + _OVERHEAD_PER_BLOCK * config.model.depth)
        return Checked(
            corpus=manifest_hash(manifest),
            unigram_loss=manifest.unigram_loss,
            tokens=planned.tokens,
            flops=flops,
            work=flops + validating + overhead,
            memory=planned.memory[0].total,
            parameters=planned.parameter_count,
        )

    def _open(self, config: Config) -> Manifest:
        """The manifest of a corpus that has been opened with this context and verified."""
        key = (config.data.path, config.data.tokenizer, config.model.context, config.data.val_tokens)
        if key not in self._opened:
            TokenDataModule(config.data, config.model.context, config.seed, config.trainer.max_steps).setup()
            self._opened[key] = Manifest.load(config.data.path)
        return self._opened[key]
