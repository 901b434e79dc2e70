"""Batches for Lightning: the next batch depends only on the number of finished optimizer steps."""

from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from mup_lightning.config.data import DataConfig
from mup_lightning.data.mixture import Corpora, Samples
from mup_lightning.data.sampler import accumulation_steps, samples_in, validation_batches
from mup_lightning.data.shards import TokenStore, check_vocabulary
from mup_lightning.data.tokenizer import Tokenizer
from mup_lightning.errors import UserError

Batch = dict[str, torch.Tensor]


class MicroBatches(Dataset[Batch]):
    """The micro-batches of one process by their number in the run: `dataset[number]` is a pure function."""

    def __init__(self, samples: Samples, micro_batch: int, rank: int = 0, world_size: int = 1) -> None:
        self.samples = samples
        self.micro_batch, self.rank, self.world_size = micro_batch, rank, world_size

    def __getitem__(self, number: int) -> Batch:
        """`tokens` (micro_batch, context + 1), inputs and targets offset by one; all is int64.

        `counters` and `sources`, (micro_batch,), are the samples' places in the run, and the indices of their corpora.
        Micro-batches (outer) and ranks (inner) run through the counters in order, so a step's global batch is the same
        whatever the world size and the accumulation.
        """
        first = (number * self.world_size + self.rank) * self.micro_batch
        counters = np.arange(first, first + self.micro_batch, dtype=np.int64)
        sources, tokens = self.samples.windows(counters)
        arrays = {"tokens": tokens, "counters": counters, "sources": sources}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


class RunLoader(DataLoader[Batch]):
    """Micro-batches from the first unfinished one to the last of a run.

    Its length is that of the WHOLE run, even after a resume: Lightning's count includes the batches done before.
    Lightning treats it as resumable; it has no state itself, as the position is that of the optimizer's steps.
    """

    def __init__(self, dataset: MicroBatches, finished: int, total: int, **options: Any) -> None:
        super().__init__(dataset, sampler=range(finished, total), batch_size=None, **options)
        self.total = total

    def __len__(self) -> int:
        return self.total

    def state_dict(self) -> dict[str, Any]:
        """Empty."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to do."""


class TokenDataModule(pl.LightningDataModule):
    """Training batches (see `MicroBatches`) and validation windows of a prepared corpus, or of several.

    Give the Trainer `use_distributed_sampler=False`, `max_steps`, and
    `accumulate_grad_batches=accumulation_steps(batch_size, micro_batch, world_size)`; one "epoch" is the whole run of
    `max_steps` optimizer steps. `seed` is that of the sample order. `token_bytes` is `Tokenizer.lengths` as a tensor.
    Raises UserError for anything in a corpus that does not fit the configuration.
    """

    def __init__(self, config: DataConfig, context: int, seed: int, max_steps: int) -> None:
        super().__init__()
        self.config, self.context, self.max_steps = config, context, max_steps
        self.rank, self.world_size, self.accumulation = 0, 1, 0
        self.corpora = Corpora(config)
        for manifest in self.corpora.manifests.values():
            check_vocabulary(manifest, config.tokenizer)
        stores, self.val_stores = (
            [TokenStore.open(folder, split, config.verify) for folder in self.corpora.shares]
            for split in ("train", "val")
        )
        self.samples = Samples(stores, list(self.corpora.shares.values()), context, seed)
        self.token_bytes = torch.from_numpy(Tokenizer.find(config.tokenizer, *config.sources).lengths)
        for store in self.val_stores:
            samples_in(store, context, config.val_tokens)

    def setup(self, stage: str | None = None) -> None:
        """Learn which process this is; raises UserError where they cannot share the batch."""
        if self.trainer is not None:
            self.rank, self.world_size = self.trainer.global_rank, self.trainer.world_size
        self.accumulation = accumulation_steps(self.config.batch_size, self.config.sequences, self.world_size)

    def train_dataloader(self) -> DataLoader[Batch]:
        """The micro-batches of this rank, from the first unfinished step; UserError: the Trainer does not fit the data.

        That a checkpoint has the same order of samples is a part of its identity (`training.run`).
        """
        done = 0  # optimizer steps, resumes included: the only counter that batches depend on
        if self.trainer is not None:
            self._align_progress(self.trainer)
            done = self.trainer.global_step
        return RunLoader(
            MicroBatches(self.samples, self.config.sequences, self.rank, self.world_size),
            done * self.accumulation,
            self.max_steps * self.accumulation,
            num_workers=self.config.workers,
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
        )

    def val_windows(self, batch: int | None = None, source: int = 0) -> Iterator[torch.Tensor]:
        """A source's validation windows of this rank (see validation_batches), `batch` or micro_batch at a time."""
        size, store = batch or self.config.sequences, self.val_stores[source]
        return validation_batches(store, self.context, size, self.rank, self.world_size, self.config.val_tokens)

    def describe(self, counters: torch.Tensor) -> str:
        """Describe a batch for error messages: its samples, and the shard and index where each begins."""
        flat, lines = counters.numpy(), []
        for counter, source, sample in zip(flat.tolist(), *self.samples.places(flat), strict=True):
            start, store = int(sample) * self.context, self.samples.stores[source]
            file, index = store.locate(start)
            lines.append(
                f"counter {counter} (step {counter // self.config.batch_size}): sample {sample}, tokens {start} to "
                f"{start + self.context}, from token {index} of {store.path / file}"
            )
        return "\n".join(lines)

    def _align_progress(self, trainer: pl.Trainer) -> None:
        """Set Lightning's count of batches to finished steps x accumulation; raise UserError for a wrong Trainer.

        Lightning stores how many micro-batches are done and steps whenever that count is a multiple of the
        accumulation. After a resume with another world size or micro-batch, or from a checkpoint written in the
        middle of a step, the stored count would end the run early, or step on part of a batch. Lightning has
        restored its loops by the time it asks for the DataLoader.
        """
        if trainer.accumulate_grad_batches != self.accumulation or trainer.max_steps > self.max_steps:
            raise UserError(
                f"the Trainer has accumulate_grad_batches={trainer.accumulate_grad_batches} and max_steps="
                f"{trainer.max_steps}; on {self.world_size} processes the data needs {self.accumulation} micro-batches "
                f"a step and at most {self.max_steps} steps"
            )
        loop = trainer.fit_loop.epoch_loop
        if loop.restarting:
            state, done = loop.batch_progress.state_dict(), trainer.global_step * self.accumulation
            current = state["current"]
            # Lightning reads from `processed - completed` whether the checkpoint was written inside a batch's end hook.
            inside = current["processed"] - current["completed"]
            state["current"] = {"ready": done, "started": done, "processed": done, "completed": done - inside}
            loop.batch_progress.load_state_dict(state)
