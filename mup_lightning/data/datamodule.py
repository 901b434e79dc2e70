"""Batches for Lightning: whatever was consumed, the next batch follows from the number of finished steps alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from mup_lightning.config.schema import DataConfig
from mup_lightning.data.progress import align_progress
from mup_lightning.data.sampler import accumulation_steps, batch_counters, sample_id, samples_in
from mup_lightning.data.shards_old import TokenStore, check_vocabulary, manifest_hash
from mup_lightning.data.validation import validation_batches, validation_samples
from mup_lightning.errors import UserError

Batch = dict[str, torch.Tensor]


class TokenWindows(Dataset[Batch]):
    """Micro-batches by counter: `dataset.__getitems__(counters)` is a pure function of its arguments."""

    def __init__(self, store: TokenStore, context: int, seed: int) -> None:
        self.store, self.context, self.seed = store, context, seed
        self.n_samples = samples_in(len(store), context)

    def __len__(self) -> int:
        return self.n_samples

    def __getitems__(self, counters: np.ndarray) -> Batch:
        """The micro-batch of an int64 array of counters: `tokens` (b, context + 1) and `counters` (b,), both int64."""
        starts = sample_id(counters, self.seed, self.n_samples) * self.context
        tokens = self.store.windows(starts, self.context + 1)
        return {"tokens": torch.from_numpy(tokens), "counters": torch.from_numpy(counters)}


class StepSampler:
    """Yields the counters of this rank's micro-batches, from the first step not finished yet to the last of the run.

    Its length is that of the WHOLE run, also after a resume: Lightning adds the batches done before to its count.
    """

    def __init__(self, module: TokenDataModule) -> None:
        self.module = module

    def __len__(self) -> int:
        return self.module.max_steps * self.module.accumulation

    def __iter__(self) -> Iterator[np.ndarray]:
        m = self.module
        shape = {"batch_size": m.config.batch_size, "micro_batch": m.config.micro_batch, "world_size": m.world_size}
        for step in range(m.finished_steps, m.max_steps):
            for micro_step in range(m.accumulation):
                yield batch_counters(step, micro_step, m.rank, **shape)


class ResumableLoader(DataLoader[Batch]):
    """A DataLoader that says it can be resumed: its place is the TokenDataModule's, so it has no state of its own."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing: see TokenDataModule.state_dict."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing: see TokenDataModule.load_state_dict."""


class TokenDataModule(pl.LightningDataModule):
    """Training batches and validation windows of a prepared corpus.

    A batch is a dict: `tokens` int64 (micro_batch, context + 1), inputs and targets one apart, and `counters` int64
    (micro_batch,), the samples' places in the run. Give the Trainer `use_distributed_sampler=False`, `max_steps`, and
    `accumulate_grad_batches=accumulation_steps(batch_size, micro_batch, world_size)`; one "epoch" is the whole run.

    Args:
        config: Corpus, batch size, workers.
        context: Tokens the model sees at once; a sample has one token more.
        seed: Seed of the sample order.
        max_steps: Optimizer steps of the whole run.
    """

    def __init__(self, config: DataConfig, context: int, seed: int, max_steps: int) -> None:
        super().__init__()
        for name, value, least in (("context", context, 1), ("seed", seed, 0), ("max_steps", max_steps, 1)):
            if value < least:
                raise UserError(f"{name} is {value}; the data needs a whole number of at least {least}.")
        self.config, self.context, self.seed, self.max_steps = config, context, seed, max_steps
        self.rank, self.world_size, self.accumulation = 0, 1, 0
        self.train_store: TokenStore | None = None
        self.val_store: TokenStore | None = None
        self._resumed: dict[str, Any] | None = None
        self._start = 0  # the first step where there is no Trainer to ask

    def setup(self, stage: str | None = None) -> None:
        """Open and check the corpus; raises UserError for anything in it that does not fit the recipe."""
        if self.trainer is not None:
            self.rank, self.world_size = self.trainer.global_rank, self.trainer.world_size
        config = self.config
        self.accumulation = accumulation_steps(config.batch_size, config.micro_batch, self.world_size)
        if self.train_store is None:
            train = TokenStore.open(config.path, "train", config.verify)
            check_vocabulary(train.manifest, config.tokenizer)
            if samples_in(len(train), self.context) < 1:
                raise UserError(
                    f"the train split of {config.path} has {len(train)} tokens, but a context of {self.context} needs "
                    f"at least {self.context + 1}. Use a shorter context or a larger corpus."
                )
            val = TokenStore.open(config.path, "val", config.verify)
            validation_samples(val, self.context, config.val_tokens)
            self.train_store, self.val_store = train, val
            self.windows = TokenWindows(train, self.context, self.seed)
        self._check_identity()

    @property
    def finished_steps(self) -> int:
        """Optimizer steps done since the run began, resumes included: the one counter that batches follow from."""
        return self.trainer.global_step if self.trainer is not None else self._start

    @property
    def corpus_hash(self) -> str:
        """Identifies the corpus in checkpoints and result files (see manifest_hash)."""
        return manifest_hash(self._opened(self.train_store).manifest)

    def train_dataloader(self) -> DataLoader[Batch]:
        """The micro-batches of this rank, from the first step that is not finished yet."""
        self._check_position()
        cuda = False
        if self.trainer is not None:
            align_progress(self.trainer, self.max_steps, self.accumulation)
            cuda = self.trainer.strategy.root_device.type == "cuda"
        return ResumableLoader(
            self.windows,
            batch_sampler=StepSampler(self),  # type: ignore[arg-type]  # arrays of counters, not lists of indices
            collate_fn=_as_it_is,  # __getitems__ has stacked the batch already
            num_workers=self.config.workers,
            pin_memory=cuda,
        )

    def val_windows(self, batch: int | None = None) -> Iterator[torch.Tensor]:
        """This rank's validation windows in order (see validation_batches), `batch` or micro_batch at a time."""
        store = self._opened(self.val_store)
        size = batch or self.config.micro_batch
        return validation_batches(store, self.context, size, self.rank, self.world_size, self.config.val_tokens)

    def state_dict(self) -> dict[str, Any]:
        """How far the run is, in samples, and what that number depends on."""
        return {"consumed_samples": self.finished_steps * self.config.batch_size, **self._identity()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a checkpoint. World size, micro_batch and workers may differ.

        Raises UserError for another batch size, seed, context or corpus: the sample order would be another one.
        """
        self._resumed = dict(state_dict)
        self._start = self._resumed["consumed_samples"] // self.config.batch_size
        self._check_identity()

    def describe(self, counters: torch.Tensor | np.ndarray) -> str:
        """Text for error messages: which samples a batch holds, and where in which shard each begins."""
        store, flat = self._opened(self.train_store), np.asarray(counters, dtype=np.int64).reshape(-1)
        lines = []
        for counter, sample in zip(flat.tolist(), sample_id(flat, self.seed, self.windows.n_samples), strict=True):
            start = int(sample) * self.context
            file, place = store.locate(start)
            lines.append(
                f"counter {counter} (step {counter // self.config.batch_size}): sample {sample}, tokens {start} to "
                f"{start + self.context}, from token {place} of {store.path / file}"
            )
        return "\n".join(lines)

    def _identity(self) -> dict[str, Any]:
        return {
            "batch_size": self.config.batch_size,
            "seed": self.seed,
            "context": self.context,
            "corpus": self.corpus_hash,
        }

    def _check_identity(self) -> None:
        """Compare what a loaded state says of the sample order with this run."""
        if self._resumed is None or self.train_store is None:
            return
        for key, now in self._identity().items():
            if self._resumed.get(key, now) != now:
                raise UserError(
                    f"the checkpoint was written with {key} = {self._resumed[key]}, this run has {key} = {now}: the "
                    f"samples would come in another order. Resume with the old value, or start a new run."
                )

    def _check_position(self) -> None:
        """Compare the loaded count of samples with the Trainer's count of steps, once both are restored."""
        if self._resumed is None:
            return
        consumed, expected = self._resumed["consumed_samples"], self.finished_steps * self.config.batch_size
        if consumed != expected:
            raise UserError(
                f"the checkpoint says that {consumed} samples were consumed, but {self.finished_steps} steps of "
                f"{self.config.batch_size} are {expected}. The checkpoint is inconsistent; resume from another one."
            )
        self._resumed = None

    def _opened(self, store: TokenStore | None) -> TokenStore:
        if store is None:
            raise RuntimeError("call setup() before using the data")
        return store


def _as_it_is(batch: Any) -> Any:
    return batch
