"""What happens in each of the processes of case `strategies`: training under one strategy after another."""

from __future__ import annotations

import time
from dataclasses import fields, replace
from typing import Any, cast

from mup_lightning.callbacks.step import StepCallback, WatchedModule
from mup_lightning.config.schema import Config
from mup_lightning.model.gpt2 import build
from mup_lightning.optim.groups import make_groups
from mup_lightning.optim.optimizer import HybridOptimizer
from mup_lightning.plan.memory import Load, Memory, memory
from mup_lightning.plan.rule_memory import rule_memory
from mup_lightning.spectral.recipe import derive
from tests.benchmarks.memory import peak_mb, reset_peak, resident_mb
from tests.benchmarks.settings import Settings

STEPS_OF_MEMORY = 3
"""The second is the first that finds gradients and states in place; after the last of them comes one unmeasured."""


def make_config(settings: Settings, corpus: str, rule: str, strategy: str, processes: int, steps: int) -> Config:
    """A run of all processes, each with its share of the batch; no logs, feature norms or checkpoints.

    Args:
        settings: shape and batch.
        corpus: a prepared corpus.
        rule: of the optimizer.
        strategy: of the trainer.
        processes: how many take part.
        steps: optimizer steps.
    """
    return Config.from_plain(
        {
            "model": {"width": settings.width, "depth": settings.depth, "context": settings.context},
            "recipe": {"optimizer": rule, "lr": 2**-8},
            "schedule": {"warmup_steps": 1},
            "data": {
                "path": corpus,
                "tokenizer": settings.tokenizer,
                "batch_size": settings.batch,
                "micro_batch": settings.batch // processes,
            },
            "trainer": {
                "max_steps": steps,
                "accelerator": "cpu",
                "strategy": strategy,
                "devices": processes,
                "validate_every": 0,
                "feature_norms_every": 0,
                "log_every": steps,
            },
        }
    )


class Watch(StepCallback):
    """Notes when steps end, and the peak of the memory until then.

    Attributes:
        wall: seconds of a clock at the end of each step.
        processor: seconds that this process has computed until then.
        peaks: MB.
    """

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.processor: list[float] = []
        self.peaks: list[float] = []

    def on_step_end(self, trainer: Any, module: WatchedModule, step: int) -> None:
        """See `StepCallback`."""
        self.wall.append(time.perf_counter())
        self.processor.append(time.process_time())
        self.peaks.append(peak_mb())


def take_times(
    corpus: str, rule: str, strategies: list[str], processes: int, settings: dict[str, Any]
) -> dict[str, list[float]]:
    """Milliseconds of a step under each strategy, in their order, mean over the timed steps: "wall" and "processor"."""
    from mup_lightning.training.hardware import tune_allocator

    tune_allocator()
    s = _settings(settings)
    found: dict[str, list[float]] = {"wall": [], "processor": []}
    for strategy in strategies:
        # After the last step comes a validation.
        watch = _train(make_config(s, corpus, rule, strategy, processes, s.warmup + s.steps + 1))
        for kind, ends in (("wall", watch.wall), ("processor", watch.processor)):
            found[kind].append(1e3 * (ends[s.warmup + s.steps - 1] - ends[s.warmup - 1]) / s.steps)
    return found


def take_matrices(settings: dict[str, Any]) -> dict[str, float]:
    """Milliseconds of Muon-Kimi's step on the hidden matrices, the exchange included, by who does the work."""
    import torch.distributed as dist

    from mup_lightning.spectral.roles import Role
    from tests.benchmarks.optimizer_contenders import Workload
    from tests.benchmarks.strategies import REPLICATED, SHARED, SHARED_AGAIN

    s = _settings(settings)
    workload = Workload(s, lambda rows, columns, role: role is Role.HIDDEN, draws=1)
    dist.init_process_group("gloo")
    ours = {share: workload.ours("muon_kimi") for share in (True, False)}
    for share, contender in ours.items():
        cast(HybridOptimizer, contender.optimizer).share_work = share
        contender.seconds(max(1, s.warmup))
    found = {}
    for name in (SHARED, REPLICATED, SHARED_AGAIN):
        dist.barrier()
        found[name] = 1e3 * ours[name != REPLICATED].seconds(s.steps)
    dist.barrier()
    dist.destroy_process_group()
    return found


def take_peak(corpus: str, rule: str, strategy: str, processes: int, settings: dict[str, Any]) -> dict[str, float]:
    """MB at the "peak" of some steps beyond what the process took before there was a model, and MB of the "plan"."""
    s = _settings(settings)
    small = replace(s, width=32, depth=1, context=8, batch=processes)
    _train(make_config(small, corpus, rule, strategy, processes, STEPS_OF_MEMORY + 1))  # libraries are loaded
    before = resident_mb()
    reset_peak()
    config = make_config(s, corpus, rule, strategy, processes, STEPS_OF_MEMORY + 1)
    peak = _train(config).peaks[STEPS_OF_MEMORY - 1] - before
    return {"peak": peak, "plan": planned(config, processes).total / 1e6}


def planned(config: Config, processes: int) -> Memory:
    """What `mup-lightning plan` says of a run, for this machine's CPU instead of a GPU."""
    recipe = derive(config.recipe, config.model.width, config.model.depth)
    model = build(config.model, recipe, 0)  # rules' batches are smaller on CPU than on the meta device
    groups = make_groups(dict(model.named_parameters()), model.parameter_info, recipe, config.rules)
    load = Load(config.model, config.data.micro_batch, rule_memory(groups, half=False), half=False, device="cpu")
    strategy = config.trainer.strategy
    return memory(load, processes, int(strategy[-1]) if strategy.startswith("zero") else 0)


def _settings(settings: dict[str, Any]) -> Settings:
    """Those of them that matter here."""
    return Settings(**{field.name: settings[field.name] for field in fields(Settings)})


def _train(config: Config) -> Watch:
    from mup_lightning.training.train import train

    watch = Watch()
    train(config, callbacks=[watch], progress=False, keep=False)
    return watch
