"""The measured peak memory of a few training steps, to check `memory.memory` against.

They are made in a process of their own, which repeats the order of Lightning's steps: forward, drop the old gradients,
backward, optimizer.
"""

import os
from dataclasses import asdict
from typing import Any

import torch

from mup_lightning.config.schema import Config
from mup_lightning.training.module import build_training
from tests.benchmarks import process
from tests.benchmarks.harness import QUICK


def measure(configs: list[Config], device: str = "cpu") -> list[float]:
    """Peak bytes of three steps beyond what the process takes without a model, on "cpu" (Linux alone) or "cuda"."""
    environment = process.MAPPED | {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0")}
    plain = [asdict(config) for config in configs]
    return process.measure(peaks, QUICK, environment=environment, configs=plain, device=device)[0]


def peaks(_: Any, configs: list[dict[str, Any]], device: str) -> list[float]:
    """In the process."""
    return [_peak(Config.from_plain(values), device) for values in configs]


def _train(config: Config, device: str) -> None:
    """The second step is the first that finds gradients and states in place."""
    model, optimizer = build_training(config, device)
    for _ in range(3):
        window = torch.randint(model.vocab_size, (config.data.micro_batch, config.model.context + 1), device=device)
        with torch.autocast(device, torch.bfloat16, enabled=config.trainer.precision == "bf16"):
            loss = model.loss(window)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _peak(config: Config, device: str) -> float:
    small = Config.from_plain(asdict(config))
    small.model.width, small.model.depth, small.model.heads = 16, 1, None
    small.model.context, small.data.micro_batch, small.model.vocab_size = 8, 1, 256
    _train(small, device)  # libraries are loaded and threads started
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        _train(config, device)
        return torch.cuda.max_memory_allocated() - before
    return 1e6 * process.peak_of(_train, config, device)[1]
