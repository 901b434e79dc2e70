"""Cases `trainer`, `overhead`, `feature_norms` and `spectral_norms`: the real trainer, on a synthetic corpus.

`trainer` compares it, with its default callbacks, with a bare PyTorch loop of the same model, and with one that has our
loss and optimizer, too; `overhead` with the latter alone, where a step is next to nothing. The other two ask what a
monitor costs at its default interval: it measures in every third step, and each measured step is followed by two
without, the first to compare with, the second as control. So steps of all three kinds lie side by side in one process.
The cost at the interval N is (measured - plain) / plain / N.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.utils import clip_grads_with_norm_

from mup_lightning.config.data import VOCABULARIES
from mup_lightning.config.schema import Config, TrainerConfig
from mup_lightning.data.prepare import unigram_loss
from mup_lightning.data.shards import Manifest, SplitWriter
from mup_lightning.model.gpt2 import build
from mup_lightning.optim.registry import resolve_rules
from mup_lightning.optim.spectral_norm import total_norm
from tests.benchmarks.harness import Case, Settings, Turn, make_config
from tests.benchmarks.process import UNTUNED, StepClock, measure, peak_mb, resident_mb

OURS, BARE, TUNED, AGAIN = "ours", "bare", "tuned loop", "ours again"
QUIET = "without callbacks"
Step = Callable[[torch.Tensor], torch.Tensor]
"""Trains on a batch (B, T + 1) of tokens, and returns its loss."""
WITH, WITHOUT, WITHOUT_AGAIN = "measured", "without", "without again"


@contextmanager
def corpus_for(settings: Settings) -> Iterator[str]:
    """A prepared corpus of uniformly random tokens, which cost what text costs, as long as it is needed."""
    with tempfile.TemporaryDirectory(prefix="mup-lightning-bench-") as name:
        folder, size = Path(name), VOCABULARIES[settings.tokenizer].size
        generator, manifest = np.random.default_rng(0), Manifest.begin("synthetic", settings.tokenizer)
        for split, tokens in (("train", 1_000_000), ("val", settings.tokens + 1)):
            writer = SplitWriter(folder, split, tokens, manifest.splits[split])
            writer.append(generator.integers(size, size=tokens))
            writer.close_shard()
        manifest.unigram_loss = unigram_loss(folder, manifest.splits, size)
        manifest.save(folder)
        yield name


def ours(s: Settings, corpus: str, *, quiet: bool = False, **every: int) -> dict[str, Any]:
    """Train as `mup-lightning train` does, with all callbacks.

    `quiet`: no progress bar, logs, checkpoints and monitors. `every` has intervals of `trainer`, such as
    feature_norms_every; others have their defaults. Returns "step_seconds" of each timed step, "peak_mb" up to the last
    of them, "imports_mb", resident once everything is imported, and "whole_run_peak_mb", with validation and checkpoint
    at the end.
    """
    from mup_lightning.training.train import train

    imports_mb = resident_mb()
    with tempfile.TemporaryDirectory(prefix="mup-lightning-bench-") as runs, StepClock(s.warmup, s.steps) as clock:
        changes = {"run.root": runs} | {f"trainer.{key}": value for key, value in every.items()}
        train(make_config(s, corpus, changes), keep=not quiet, progress=not quiet)
    return _measured(clock, imports_mb)


def loop(s: Settings, corpus: str, *, stock: bool) -> dict[str, Any]:
    """Train the same architecture as one writes it without us: whole logits, torch's own loss, AdamW and allocator.

    Without `stock`, in the same loop with everything of ours but the trainer. Returns as `ours`.
    """
    imports_mb, config = resident_mb(), make_config(s, corpus)
    step = _stock(config) if stock else _own(config)
    tokens = np.memmap(f"{corpus}/train-00000.bin", dtype=np.uint16, mode="r")
    with StepClock(s.warmup, s.steps) as clock:
        for number in range(s.warmup + s.steps + 1):
            starts = torch.randint(len(tokens) - s.context, (s.batch,)).tolist()
            window = np.stack([tokens[start : start + s.context + 1] for start in starts]).astype(np.int64)
            loss = step(torch.from_numpy(window))
            if number % 10 == 0:
                print(f"step {number}: loss {loss.item():.3f}", flush=True)
    return _measured(clock, imports_mb)


def _stock(config: Config) -> Step:
    model = build(config.model, config.derive(), seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def step(window: torch.Tensor) -> torch.Tensor:
        x, y = window[:, :-1], window[:, 1:]
        # The model's blocks; its own loss would do in chunks what is done at once here.
        logits = model.features(x) @ model.output_matrix.t()
        loss = F.cross_entropy(logits.view(-1, logits.shape[-1]), y.reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss

    return step


def _own(config: Config) -> Step:
    from mup_lightning.training.module import build_training

    resolve_rules(config)
    model, optimizer = build_training(config)
    optimizer.check, parameters = False, list(model.parameters())

    def step(window: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        loss = model.loss(window)
        loss.backward()
        clip_grads_with_norm_(parameters, 1.0, total_norm([p.grad for p in parameters if p.grad is not None]))
        optimizer.step()
        return loss

    return step


def _measured(clock: StepClock, imports_mb: float) -> dict[str, Any]:
    memory = {"peak_mb": clock.peak_mb, "imports_mb": imports_mb, "whole_run_peak_mb": peak_mb()}
    return {"step_seconds": clock.seconds, **memory}


def against_bare(settings: Settings) -> Turn:
    """One round of `trainer`: ours, the loops, ours again (the control), each in a process of its own."""
    with corpus_for(settings) as corpus:
        turns: dict[str, dict[str, Any]] = {
            OURS: measure(ours, settings, corpus=corpus)[0],
            BARE: measure(loop, settings, environment=UNTUNED, corpus=corpus, stock=True)[0],
            TUNED: measure(loop, settings, corpus=corpus, stock=False)[0],
            AGAIN: measure(ours, settings, corpus=corpus)[0],
        }
    seconds = {who: turn["step_seconds"] for who, turn in turns.items()}
    return {
        "speed (tokens/s)": {who: settings.tokens * len(times) / sum(times) for who, times in seconds.items()},
        "peak memory (MB)": {who: turn["peak_mb"] for who, turn in turns.items()},
        "peak memory above imports (MB)": {who: turn["peak_mb"] - turn["imports_mb"] for who, turn in turns.items()},
        "peak memory with final save (MB)": {OURS: turns[OURS]["whole_run_peak_mb"]},
    }


def overhead(settings: Settings) -> Turn:
    """One round of `overhead`: milliseconds of a tiny step, and how many more than in the loop."""
    quiet = {"quiet": True, "feature_norms_every": 0, "spectral_norms_every": 0, "update_check_every": 0}
    with corpus_for(settings) as corpus:
        turns: dict[str, dict[str, Any]] = {
            TUNED: measure(loop, settings, corpus=corpus, stock=False)[0],
            QUIET: measure(ours, settings, corpus=corpus, **quiet)[0],
            OURS: measure(ours, settings, corpus=corpus)[0],
            AGAIN: measure(ours, settings, corpus=corpus)[0],
        }
    steps = {who: 1e3 * sum(turn["step_seconds"]) / settings.steps for who, turn in turns.items()}
    return {"a step (ms)": steps, "beyond the loop's (ms)": {who: ms - steps[TUNED] for who, ms in steps.items()}}


def monitor(key: str, shapes: int) -> Callable[[Settings], Turn]:
    """`turn` of a case that says what a monitor costs; its settings' `steps` counts groups of three steps.

    `key` is the interval, such as feature_norms_every; the other monitor is off. With 2 `shapes` it is also measured at
    half the width and half the context.
    """
    off = dict.fromkeys({"feature_norms_every", "spectral_norms_every"} - {key}, 0)
    every = getattr(TrainerConfig(), key)

    def turn(settings: Settings) -> Turn:
        found: Turn = {}
        for shape in (settings, replace(settings, width=settings.width // 2, context=settings.context // 2))[:shapes]:
            # Whole groups only, so that the first timed step is a measured one.
            training = replace(shape, warmup=-(-shape.warmup // 3) * 3, steps=3 * shape.steps)
            with corpus_for(shape) as corpus:
                seconds = measure(ours, training, corpus=corpus, **{key: 3}, **off)[0]["step_seconds"]
            name, kinds = f"({shape.width}, {shape.depth}), {shape.tokens} tokens", (WITH, WITHOUT, WITHOUT_AGAIN)
            found[f"{name}: a step (ms)"] = {who: 1e3 * median(seconds[n::3]) for n, who in enumerate(kinds)}
            found[f"{name}: cost at every {every} steps (%)"] = costs(seconds, every)
        return found

    return turn


def costs(step_seconds: list[float], every: int) -> dict[str, float]:
    """Percent of a step, the median over groups of (measured, plain, plain again): of measuring, and of nothing."""
    groups = list(zip(*(step_seconds[place::3] for place in range(3)), strict=True))
    return {
        WITH: 100 / every * median((measured - plain) / plain for measured, plain, _ in groups),
        WITHOUT_AGAIN: 100 / every * median((again - plain) / plain for _, plain, again in groups),
    }


_DEFAULT = Settings(width=256, depth=4, context=256, batch=8, tokenizer="gpt2", rounds=5, steps=10, warmup=3)
TRAINER = Case(
    "our trainer with its default callbacks against a bare PyTorch loop",
    _DEFAULT,
    against_bare,
    {
        "speed (tokens/s)": [(OURS, BARE, "at least 1.35"), (OURS, TUNED, "at least 0.98"), (OURS, AGAIN, "")],
        "peak memory (MB)": [(OURS, BARE, "at most 0.4"), (OURS, AGAIN, "")],
        "peak memory above imports (MB)": [(OURS, BARE, ""), (OURS, AGAIN, "")],
    },
)
OVERHEAD = Case(
    "what Lightning and our callbacks add to a tiny step (aims: 1.0 ms without callbacks, 2.5 ms with all of them)",
    Settings(width=32, depth=1, context=16, batch=2, tokenizer="bytes", rounds=5, steps=300, warmup=50, threads=1),
    overhead,
)
FEATURE_NORMS = Case(
    "what the feature norms cost at their default interval (aim: at most 0.5 %)",
    replace(_DEFAULT, steps=8),
    monitor("feature_norms_every", shapes=1),
)
SPECTRAL_NORMS = Case(
    # At small batches, where a step is short and the cost, which does not depend on the batch, weighs most.
    "what the spectral monitor costs at its default interval, at two shapes (aim: at most 1 %)",
    replace(_DEFAULT, batch=2, steps=8),
    monitor("spectral_norms_every", shapes=2),
)
