"""Cases `strategies` and `strategy_memory`: what ZeRO costs and saves against ddp, on two processes of one thread each.

Times: in every round one pair of processes trains under all strategies in turn, ddp first and last (the control).
Memory: a pair of processes for each strategy, next to what `mup-lightning plan` says of a CPU.
"""

from dataclasses import replace
from typing import Any

from mup_lightning.config.schema import Config
from mup_lightning.plan.plan import plan
from tests.benchmarks.harness import Case, Settings, Turn, make_config
from tests.benchmarks.process import MAPPED, measure, peak_of
from tests.benchmarks.trainer import corpus_for

PROCESSES = 2
RULES = ("adamw", "muon_kimi")
DDP, AGAIN = "ddp", "ddp again"
AIMS = {"zero0": "at most 1.05", "zero1": "at most 1.15", "zero2": "at most 1.15", "zero3": "at most 1.15"}
STRATEGIES = (DDP, *AIMS)


def times(settings: Settings) -> Turn:
    """One round: milliseconds of a step; the slowest process counts."""
    found: Turn = {}
    with corpus_for(settings) as corpus:
        for rule in RULES:
            job: dict[str, Any] = {"corpus": corpus, "rule": rule, "strategies": [*STRATEGIES, DDP]}
            ranks = measure(take, settings, processes=PROCESSES, **job)
            steps = (max(turn["ms"] for turn in turns) for turns in zip(*ranks, strict=True))
            found[f"a step, {rule} (ms)"] = dict(zip([*STRATEGIES, AGAIN], steps, strict=True))
    return found


def peaks(settings: Settings) -> Turn:
    """The peak memory of a process by strategy, and what `plan` says."""
    found: Turn = {}
    with corpus_for(settings) as corpus:
        for rule in RULES:
            found[f"peak memory of a process, {rule} (MB)"] = mine = {}
            for strategy in STRATEGIES:
                job: dict[str, Any] = {"corpus": corpus, "rule": rule, "strategies": [strategy]}
                ranks = measure(take, settings, processes=PROCESSES, environment=MAPPED, **job)
                mine |= {strategy: max(turn["peak"] for (turn,) in ranks), f"{strategy} by plan": ranks[0][0]["plan"]}
    return found


def shared(s: Settings, corpus: str, rule: str, strategy: str) -> Config:
    """A run of all processes, each with its share of the batch; no validation and no feature norms."""
    trainer = {"strategy": strategy, "devices": PROCESSES, "max_steps": s.warmup + s.steps}
    trainer |= {"validate_every": 0, "feature_norms_every": 0}
    more = {"recipe.optimizer": rule, "schedule.warmup_steps": 1, "data.micro_batch": s.batch // PROCESSES}
    return make_config(s, corpus, more | {f"trainer.{key}": value for key, value in trainer.items()})


def take(s: Settings, corpus: str, rule: str, strategies: list[str]) -> list[dict[str, float]]:
    """Train under each strategy: "ms" of a step but the first, MB at the "peak" over those before, MB of the "plan"."""
    from mup_lightning.training.train import train

    small = replace(s, width=32, depth=1, context=8, warmup=1, steps=1)
    train(shared(small, corpus, rule, strategies[0]), progress=False, keep=False)  # libraries are loaded
    found = []
    for strategy in strategies:
        config = shared(s, corpus, rule, strategy)
        result, peak = peak_of(train, config, progress=False, keep=False)
        found.append({"ms": 1e3 * s.tokens / result.tokens_per_second, "peak": peak, "plan": planned_mb(config)})
    return found


def planned_mb(config: Config) -> float:
    """What `mup-lightning plan` says of a run that keeps nothing, for this machine's CPU instead of a GPU."""
    zero = config.trainer.zero_stage
    unwatched = replace(config, trainer=replace(config.trainer, precision="fp32", spectral_norms_every=0))
    return next(m.total for m in plan(unwatched, (PROCESSES,), "cpu").memory if m.zero == zero) / 1e6


TIMES = Case(
    "what a step costs with ZeRO, against ddp on two processes",
    Settings(width=256, depth=4, context=256, batch=8, tokenizer="bytes", rounds=5, steps=6, warmup=1, threads=1),
    times,
    {f"a step, {rule} (ms)": [(s, DDP, aim) for s, aim in (AIMS | {AGAIN: ""}).items()] for rule in RULES},
)
MEMORY = Case(
    "peak memory of a process by strategy, against what plan says",
    Settings(width=512, depth=8, context=64, batch=2, tokenizer="bytes", rounds=1, steps=2, warmup=1, threads=1),
    peaks,
    {
        f"peak memory of a process, {rule} (MB)": [(s, f"{s} by plan", "within 10 % of 1") for s in STRATEGIES]
        for rule in RULES
    },
)
