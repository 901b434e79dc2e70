"""Case `strategies`: what ZeRO costs and saves against ddp, and what sharing the work on matrices gains.

Two processes, one thread each. Times: in every round one pair of processes trains under all strategies in turn, ddp
first and last (the control); processor time is given too, because other programs hardly change it. Matrix work: the
optimizer's step alone, shared, replicated, shared again. Memory: once, a pair of processes for each strategy.
"""

import time
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

from mup_lightning.callbacks.step import StepCallback, WatchedModule
from mup_lightning.config.schema import Config
from mup_lightning.optim.optimizer import HybridOptimizer
from mup_lightning.plan.plan import plan
from tests.benchmarks.harness import Case, Quantity, Settings, Turn
from tests.benchmarks.process import MAPPED, measure, peak_mb, reset_peak, resident_mb
from tests.benchmarks.trainer import corpus_for

PROCESSES = 2
DDP, AGAIN = "ddp", "ddp again"
AIMS = {"zero0": "at most 1.05", "zero1": "at most 1.15", "zero2": "at most 1.15", "zero3": "at most 1.15"}
STRATEGIES = (DDP, *AIMS)
SHARED, REPLICATED, SHARED_AGAIN = "shared", "replicated", "shared again"
MATRICES = "optimizer's step, hidden matrices"
PEAK_STEPS = 3
"""The second is the first that finds gradients and states in place; after the last of them comes one unmeasured."""


@dataclass(frozen=True)
class StrategySettings(Settings):
    """See `Settings`.

    Attributes:
        rules: optimizers to train with.
        memory: strategies whose memory is measured, at twice the width and depth.
    """

    rules: tuple[str, ...] = ("adamw", "muon_kimi")
    memory: tuple[str, ...] = STRATEGIES


def times(settings: Settings) -> Turn:
    """One round. Of wall times the slowest process's counts, of processor times the sum."""
    assert isinstance(settings, StrategySettings)
    found: Turn = {}
    common: dict[str, Any] = {"threads": settings.threads, "processes": PROCESSES, "settings": asdict(settings)}
    with corpus_for(settings) as corpus:
        for rule in settings.rules:
            ranks = measure(take_times, corpus=corpus, rule=rule, strategies=[*STRATEGIES, DDP], **common)
            for name, kind, join in ((f"a step, {rule}", "wall", max), (f"processor time, {rule}", "processor", sum)):
                values = map(join, zip(*(rank[kind] for rank in ranks), strict=True))
                found[name] = dict(zip([*STRATEGIES, AGAIN], values, strict=True))
    ranks = measure(take_matrices, **common)
    return found | {MATRICES: {who: max(rank[who] for rank in ranks) for who in ranks[0]}}


def peaks(settings: Settings) -> Turn:
    """The peak memory of a process by strategy, and what `plan` says; nothing where the peak cannot be reset."""
    assert isinstance(settings, StrategySettings)
    found: Turn = {}
    large = replace(settings, width=2 * settings.width, depth=2 * settings.depth, batch=PROCESSES)
    large = replace(large, context=min(64, settings.context))
    with corpus_for(settings) as corpus:
        for rule in settings.rules if reset_peak() else ():
            found[f"peak memory of a process, {rule}"] = mine = {}
            for strategy in settings.memory:
                arguments = {"corpus": corpus, "rule": rule, "strategy": strategy, "settings": asdict(large)}
                ranks = measure(take_peak, threads=1, processes=PROCESSES, environment=MAPPED, **arguments)
                mine |= {strategy: max(rank["peak"] for rank in ranks), f"{strategy} by plan": ranks[0]["plan"]}
    return found


def make_config(settings: Settings, corpus: str, rule: str, strategy: str, steps: int) -> Config:
    """A run of all processes, each with its share of the batch; no logs, feature norms or checkpoints."""
    return Config.from_plain(
        {
            "model": {"width": settings.width, "depth": settings.depth, "context": settings.context},
            "recipe": {"optimizer": rule, "lr": 2**-8},
            "schedule": {"warmup_steps": 1},
            "data": {
                "path": corpus,
                "tokenizer": settings.tokenizer,
                "batch_size": settings.batch,
                "micro_batch": settings.batch // PROCESSES,
            },
            "trainer": {
                "max_steps": steps,
                "accelerator": "cpu",
                "strategy": strategy,
                "devices": PROCESSES,
                "validate_every": 0,
                "feature_norms_every": 0,
                "log_every": steps,
            },
        }
    )


class Watch(StepCallback):
    """Notes at the end of each step: the clock, this process's computing time (both in seconds), its peak in MB."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.processor: list[float] = []
        self.peaks: list[float] = []

    def on_step_end(self, trainer: Any, module: WatchedModule, step: int) -> None:
        """See `StepCallback`."""
        self.wall.append(time.perf_counter())
        self.processor.append(time.process_time())
        self.peaks.append(peak_mb())


def take_times(corpus: str, rule: str, strategies: list[str], settings: dict[str, Any]) -> dict[str, list[float]]:
    """Milliseconds of a step under each strategy, in their order, mean over the timed steps: "wall" and "processor"."""
    from mup_lightning.training import tune_allocator

    tune_allocator()
    s = StrategySettings(**settings)
    found: dict[str, list[float]] = {"wall": [], "processor": []}
    for strategy in strategies:
        # After the last step comes a validation.
        watch = _train(make_config(s, corpus, rule, strategy, s.warmup + s.steps + 1))
        for kind, ends in (("wall", watch.wall), ("processor", watch.processor)):
            found[kind].append(1e3 * (ends[s.warmup + s.steps - 1] - ends[s.warmup - 1]) / s.steps)
    return found


def take_matrices(settings: dict[str, Any]) -> dict[str, float]:
    """Milliseconds of Muon-Kimi's step on the hidden matrices, the exchange included, by who does the work."""
    import torch.distributed as dist

    from tests.benchmarks.contenders import Workload

    s = StrategySettings(**settings)
    workload = Workload(s, lambda rows, columns: True, draws=1)
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


def take_peak(corpus: str, rule: str, strategy: str, settings: dict[str, Any]) -> dict[str, float]:
    """MB at the "peak" of some steps beyond what the process took before there was a model, and MB of the "plan"."""
    s = StrategySettings(**settings)
    small = replace(s, width=32, depth=1, context=8, batch=PROCESSES)
    _train(make_config(small, corpus, rule, strategy, PEAK_STEPS + 1))  # libraries are loaded
    before = resident_mb()
    reset_peak()
    config = make_config(s, corpus, rule, strategy, PEAK_STEPS + 1)
    peak = _train(config).peaks[PEAK_STEPS - 1] - before
    return {"peak": peak, "plan": planned_mb(config)}


def planned_mb(config: Config) -> float:
    """What `mup-lightning plan` says of a run that keeps nothing, for this machine's CPU instead of a GPU."""
    strategy = config.trainer.strategy
    zero = int(strategy[-1]) if strategy.startswith("zero") else 0
    unwatched = replace(config, trainer=replace(config.trainer, precision="fp32", spectral_norms_every=0))
    return next(m.total for m in plan(unwatched, (PROCESSES,), "cpu").memory if m.zero == zero) / 1e6


def _train(config: Config) -> Watch:
    from mup_lightning.training.train import train

    watch = Watch()
    train(config, callbacks=[watch], progress=False, keep=False)
    return watch


def _quantities(settings: Settings) -> list[Quantity]:
    assert isinstance(settings, StrategySettings)
    against = [*((strategy, DDP, aim) for strategy, aim in AIMS.items()), (AGAIN, DDP, "")]
    planned = [(strategy, f"{strategy} by plan", "within 10 % of 1") for strategy in settings.memory]
    return [
        *(
            Quantity(f"{what}, {rule}", "ms", against)
            for rule in settings.rules
            for what in ("a step", "processor time")
        ),
        Quantity(MATRICES, "ms", [(REPLICATED, SHARED, "at least 1.7"), (SHARED_AGAIN, SHARED, "")]),
        *(Quantity(f"peak memory of a process, {rule}", "MB", planned) for rule in settings.rules),
    ]


_SHARED: dict[str, Any] = {"tokenizer": "bytes", "threads": 1}
STRATEGY_CASE = Case(
    "ZeRO against ddp on two processes: time and memory; matrix work shared against replicated",
    StrategySettings(width=256, depth=4, context=256, batch=8, rounds=5, steps=5, warmup=2, **_SHARED),
    StrategySettings(
        **{"width": 32, "depth": 1, "context": 16, "batch": 2, "rounds": 1, "steps": 1, "warmup": 1, **_SHARED},
        rules=("muon_kimi",),
        memory=(DDP,),
    ),
    times,
    _quantities,
    peaks,
)
