"""The measured peak memory of a few training steps, to check `memory.memory` against.

Each measurement is a fresh process, which repeats the order of Lightning's steps: forward, drop the old gradients,
backward, optimizer. On CPU every large tensor is mapped from the system on its own, so that the kernel's high-water
mark counts exactly what is alive.
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mup_lightning.config.schema import Config

_STATUS = Path("/proc/self/status")


def measure(config: Config, device: str = "cpu", steps: int = 3) -> int:
    """Peak bytes of training beyond what the process takes without a model.

    Args:
        config: model, recipe, rules and micro-batch; precision bf16 means autocast.
        device: "cpu" (Linux alone) or "cuda".
        steps: optimizer steps; the second is the first that finds gradients and states in place.

    Raises:
        RuntimeError: the process failed; with its last words.
    """
    # Blocks from 64 KB on are mapped one by one: freed is freed, and nothing stays in pools.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-m", __name__, device, str(steps)],
        input=json.dumps(asdict(config)),
        env=environment,
        capture_output=True,
        text=True,
    )
    if run.returncode:
        raise RuntimeError(f"the measuring process ended with status {run.returncode}:\n{run.stderr[-2000:]}")
    return int(run.stdout.split()[-1])


def _train(config: Config, device: str, steps: int) -> None:
    import torch

    from mup_lightning.model.gpt2 import build
    from mup_lightning.optim.optimizer import build_optimizer
    from mup_lightning.spectral.recipe import derive

    recipe = derive(config.recipe, config.model.width, config.model.depth)
    model = build(config.model, recipe, config.seed, device=device)
    optimizer = build_optimizer(dict(model.named_parameters()), model.parameter_info, recipe, config.rules)
    symbols = config.model.vocab_size or 0
    half = config.trainer.precision == "bf16"
    for _ in range(steps):
        window = torch.randint(symbols, (config.data.micro_batch, config.model.context + 1), device=device)
        with torch.autocast(device, torch.bfloat16, enabled=half):
            loss = model.loss(window)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _peak(config: Config, device: str, steps: int) -> int:
    import torch

    small = Config.from_plain(asdict(config))
    small.model.width, small.model.depth, small.model.heads = 16, 1, None
    small.model.context, small.data.micro_batch = 8, 1
    small.model.vocab_size = 256
    _train(small, device, steps)  # libraries are loaded and threads started
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        _train(config, device, steps)
        return torch.cuda.max_memory_allocated() - before
    before = _status("VmRSS")
    _train(config, device, steps)
    return _status("VmHWM") - before


def _status(key: str) -> int:
    lines: list[list[str]] = [line.split() for line in _STATUS.read_text().splitlines()]
    return next(int(words[1]) * 1024 for words in lines if words and words[0] == f"{key}:")


def _main(device: str, steps: str) -> None:
    values: dict[str, Any] = json.load(sys.stdin)
    print(_peak(Config.from_plain(values), device, int(steps)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
