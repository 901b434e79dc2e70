"""The measured peak memory of a few training steps, to check `memory.memory` against.

They are made in a process of their own, which repeats the order of Lightning's steps: forward, drop the old gradients,
backward, optimizer. On CPU every large tensor is mapped from the system on its own, so that the kernel's high-water
mark counts exactly what is alive.
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from mup_lightning.config.schema import Config


def measure(configs: list[Config], device: str = "cpu") -> list[int]:
    """Peak bytes of three steps beyond what the process takes without a model, on "cpu" (Linux alone) or "cuda"."""
    # Blocks from 64 KB on are mapped one by one: freed is freed, and nothing stays in pools.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-m", __name__, device],
        input=json.dumps([asdict(config) for config in configs]),
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout.splitlines()[-1])


def _train(config: Config, device: str) -> None:
    """The second step is the first that finds gradients and states in place."""
    import torch

    from mup_lightning.model.gpt2 import build
    from mup_lightning.optim.groups import make_groups
    from mup_lightning.optim.optimizer import HybridOptimizer

    recipe = config.derive()
    model = build(config.model, recipe, config.seed, device=device)
    optimizer = HybridOptimizer(make_groups(dict(model.named_parameters()), model.parameter_info, recipe, config.rules))
    for _ in range(3):
        window = torch.randint(model.vocab_size, (config.data.micro_batch, config.model.context + 1), device=device)
        with torch.autocast(device, torch.bfloat16, enabled=config.trainer.precision == "bf16"):
            loss = model.loss(window)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _peak(config: Config, device: str) -> int:
    import torch

    small = Config.from_plain(asdict(config))
    small.model.width, small.model.depth, small.model.heads = 16, 1, None
    small.model.context, small.data.micro_batch, small.model.vocab_size = 8, 1, 256
    _train(small, device)  # libraries are loaded and threads started
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        _train(config, device)
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark becomes what is there
    before = _status("VmRSS")
    _train(config, device)
    return _status("VmHWM") - before


def _status(key: str) -> int:
    lines = [line.split() for line in Path("/proc/self/status").read_text().splitlines()]
    return next(int(words[1]) * 1024 for words in lines if words and words[0] == f"{key}:")


if __name__ == "__main__":
    print(json.dumps([_peak(Config.from_plain(values), sys.argv[1]) for values in json.load(sys.stdin)]))
