"""A bare PyTorch loop with stock choices, as one writes it without us: whole logits, torch's own loss and AdamW."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from mup_lightning.config.schema import ModelConfig, vocab_size
from mup_lightning.model.gpt2 import build
from mup_lightning.spectral.recipe import RecipeConfig, derive
from tests.benchmarks.clock import StepClock
from tests.benchmarks.memory import resident_mb
from tests.benchmarks.settings import Settings


def train(shard: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Train the same architecture, with torch's default allocator.

    Args:
        shard: raw uint16 tokens.
        settings: of `Settings`, as a dict.

    Returns:
        "step_seconds" of each timed step, "peak_mb", "others" (see `StepClock`), and "imports_mb", resident once
        everything is imported.
    """
    s = Settings(**settings)
    imports_mb = resident_mb()
    config = ModelConfig(width=s.width, depth=s.depth, context=s.context, vocab_size=vocab_size(s.tokenizer))
    model = build(config, derive(RecipeConfig(), s.width, s.depth), seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    tokens = np.memmap(shard, dtype=np.uint16, mode="r")

    with StepClock(s.warmup, s.steps) as clock:
        for step in range(s.warmup + s.steps + 1):
            starts = torch.randint(len(tokens) - s.context, (s.batch,)).tolist()
            window = np.stack([tokens[start : start + s.context + 1] for start in starts]).astype(np.int64)
            x, y = torch.from_numpy(window[:, :-1]), torch.from_numpy(window[:, 1:])
            # The model's blocks; its own loss would do in chunks what is done at once here.
            logits = model.features(x) @ model.output_matrix.t()
            loss = F.cross_entropy(logits.view(-1, logits.shape[-1]), y.reshape(-1))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if step % 10 == 0:
                print(f"step {step}: loss {loss.item():.3f}", flush=True)
    return {"step_seconds": clock.seconds, "peak_mb": clock.peak, "others": clock.others, "imports_mb": imports_mb}
