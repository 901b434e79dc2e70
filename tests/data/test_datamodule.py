"""The batches a run really gets, compared with an order worked out here, never with another run of the same loader."""

import warnings
from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from mup_lightning.config.schema import DataConfig
from mup_lightning.data.datamodule import TokenDataModule
from mup_lightning.errors import UserError

from .conftest import expected_tokens
from .test_sampler import brute_force_run

CONTEXT, SEED, STEPS, BATCH, SAMPLES = 16, 7, 9, 12, 62  # 9 steps of 12 samples are most of 2 epochs of 62


def expected(counters):
    """The tokens of samples, from the definition: windows of 17 at stride 16, in the brute-force order."""
    tokens = expected_tokens(1000)
    run = brute_force_run(SEED, SAMPLES, max(counters) + 1)
    return [tokens[16 * run[c] : 16 * run[c] + 17].tolist() for c in counters]


def module(corpus, max_steps=STEPS, **config):
    path = corpus if isinstance(corpus, dict) else str(corpus)
    config = {"path": path, "tokenizer": "bytes", "batch_size": BATCH, "micro_batch": 3, **config}
    return TokenDataModule(DataConfig(**config), CONTEXT, SEED, max_steps)


class Recorder(pl.LightningModule):
    """Keeps what it was given: (global step, counters, tokens) of every micro-batch."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = []

    def training_step(self, batch, index):
        self.seen.append((self.trainer.global_step, batch["counters"].tolist(), batch["tokens"].tolist()))
        return self.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveInside(pl.Callback):
    """Writes a checkpoint after a given micro-batch, and stops the run there."""

    def __init__(self, after, path):
        self.after, self.path, self.count = after, path, 0

    def on_train_batch_end(self, trainer, *_):
        self.count += 1
        if self.count == self.after:
            trainer.save_checkpoint(self.path)
            raise StopRunError


class StopRunError(Exception):
    pass


def fit(data, accumulation, callbacks=(), ckpt_path=None, max_steps=STEPS):
    recorder = Recorder()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=max_steps,
        accumulate_grad_batches=accumulation,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        limit_val_batches=0,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not resumable.*")
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        try:
            trainer.fit(recorder, data, ckpt_path=ckpt_path)
        except StopRunError:
            assert callbacks
    return recorder, trainer


def check_steps(seen, first, last):
    """The micro-batches in `seen` are those of the steps first .. last - 1, whole and in order."""
    by_step = {}
    for step, counters, tokens in seen:
        by_step.setdefault(step, []).extend(counters)
        assert tokens == expected(counters)
    assert by_step == {step: list(range(step * BATCH, (step + 1) * BATCH)) for step in range(first, last)}


@pytest.mark.parametrize(
    ("workers", "before", "after", "stop"),
    [
        (0, 12, 3, "planned 5"),  # a run that ended is prolonged,
        (2, 4, 1, "planned 5"),
        (0, 3, 6, "stopped at 5"),
        (0, 3, 3, 16),  # or one that was stopped goes on: step 4 has ended,
        (0, 3, 1, 18),  # or in the middle of step 5
        (2, 3, 12, 18),
        (2, 3, 3, 18),
    ],
)
def test_a_run_and_its_continuation_read_what_the_order_says(corpus, tmp_path, workers, before, after, stop):
    """In micro-batches of the sizes `before` and `after`; `stop` is a number of micro-batches."""
    path = tmp_path / "any.ckpt"
    data = module(corpus, workers=workers, micro_batch=before, max_steps=5 if stop == "planned 5" else STEPS)
    if isinstance(stop, str):
        first, trainer = fit(data, BATCH // before, max_steps=5)
        assert (trainer.global_step, trainer.current_epoch) == (5, 1)
        assert trainer.num_training_batches == data.max_steps * BATCH // before
        trainer.save_checkpoint(path)
    else:
        first, _ = fit(data, BATCH // before, [SaveInside(stop, path)])
    whole = 5 if isinstance(stop, str) else 4
    check_steps(first.seen[: whole * BATCH // before], 0, whole)
    rest, trainer = fit(module(corpus, micro_batch=after, workers=workers), BATCH // after, ckpt_path=path)
    check_steps(rest.seen, whole, STEPS)
    assert (trainer.global_step, trainer.current_epoch) == (STEPS, 2 if isinstance(stop, str) else 1)


def rank_batches(corpus, rank, world_size, micro_batch, finished=0):
    """The batches of one rank of a pretended group of processes."""
    data = module(corpus, micro_batch=micro_batch)
    data.trainer = SimpleNamespace(
        global_rank=rank,
        world_size=world_size,
        global_step=finished,
        max_steps=STEPS,
        accumulate_grad_batches=BATCH // (micro_batch * world_size),
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(restarting=False)),
    )
    data.setup("fit")
    loader = data.train_dataloader()
    assert len(loader) == STEPS * BATCH // (micro_batch * world_size)
    return list(loader)


def test_ranks_share_the_batch_and_the_world_may_change(corpus):
    def together(world_size, micro_batch, finished=0):
        ranks = [rank_batches(corpus, rank, world_size, micro_batch, finished) for rank in range(world_size)]
        batches = [batch for step in zip(*ranks, strict=True) for batch in step]
        counters = torch.cat([batch["counters"] for batch in batches]).tolist()
        assert torch.cat([batch["tokens"] for batch in batches]).tolist() == expected(counters)
        return counters

    for layout in [(1, 6), (2, 3), (3, 2), (4, 3), (6, 2)]:
        assert together(*layout) == list(range(STEPS * BATCH))
        assert together(*layout, finished=4) == list(range(4 * BATCH, STEPS * BATCH))


def test_without_a_trainer_there_are_windows_and_descriptions(corpus):
    data = module(corpus)
    data.setup()
    assert sum(len(b) for b in data.val_windows(5)) == 12
    text = data.describe(torch.tensor([13, 70]))
    run = brute_force_run(SEED, SAMPLES, 71)
    start = 16 * run[13]
    assert f"counter 13 (step 1): sample {run[13]}, tokens {start} to {start + 16}" in text
    assert f"from token {start % 300} of {corpus}/train-{start // 300:05d}.bin" in text
    assert f"counter 70 (step 5): sample {run[70]}" in text


def test_a_trainer_that_does_not_fit(corpus):
    with pytest.raises(UserError, match=r"accumulate_grad_batches=2 .* the data needs 4 micro-batches"):
        fit(module(corpus), 2)
    with pytest.raises(UserError, match=r"max_steps=9; .* at most 5 steps"):
        fit(module(corpus, max_steps=5), 4)


def test_shards_are_verified_unless_told_not_to_and_errors_in_workers_keep_their_message(corpus):
    (corpus / "train-00000.bin").write_bytes(np.full(300, 999, dtype="<u2").tobytes())
    with pytest.raises(UserError, match="is damaged"):
        module(corpus).setup()
    data = module(corpus, verify=False, workers=1)
    data.setup()
    with pytest.raises(UserError, match=r"train-00000\.bin is damaged: it has the token id 999"):
        list(data.train_dataloader())
