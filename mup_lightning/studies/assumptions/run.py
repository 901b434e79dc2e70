"""`mup-lightning assumptions`: measures over depth what the spectral condition assumes, while small networks train."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from mup_lightning.config.load import build_config, preset
from mup_lightning.config.schema import Config
from mup_lightning.files import check_folder, read_yaml, write_atomic
from mup_lightning.studies import style
from mup_lightning.studies.assumptions import AssumptionSettings
from mup_lightning.studies.assumptions.measure import measure
from mup_lightning.studies.assumptions.networks import open_corpus
from mup_lightning.studies.assumptions.report import CLAIMS, Assumptions, conclude, markdown, picture, text
from mup_lightning.studies.scaling import exit_code
from mup_lightning.studies.workers import cores, run_all
from mup_lightning.typed import PositiveFloat, convert

BASE = {"mlp": (64, 4), "gpt2": (256, 4)}
"""The (width, depth) at which each network's learning rates are given."""

_WORK = {"mlp": 1.0, "gpt2": 6.0}
"""Time of a block of either network, relative to the MLP's."""


def run(settings: AssumptionSettings) -> int:
    """Check, write, draw, and print what was found; returns the exit status of the verdict over all assumptions."""
    out = Path(settings.out)
    check_folder(out)
    result = check(settings)
    write_atomic(out / "table.md", f"{markdown(result)}\n")
    result.write(out / "assumptions.json")
    for assumption in CLAIMS:
        style.save(picture(result, assumption), out / f"assumptions_{assumption}.png")
    words = f"{text(result)}\n\nwrote {out / 'assumptions.json'}, table.md and figures"
    print(json.dumps(result.short(), indent=1) if settings.json else words)
    return exit_code(result.findings)


def check(settings: AssumptionSettings) -> Assumptions:
    """Check all; UserError where the corpus cannot be read, a training diverged, or an optimizer cannot be checked."""
    todo = trainings(settings)
    work = [_WORK[network] * config.model.depth for network, config in todo]
    runs = run_all("assumptions", measure, todo, cores() if settings.workers is None else settings.workers, work)
    base_lr: dict[str, dict[str, float]] = {}
    for network, config in todo:
        base_lr.setdefault(network, {})[config.recipe.optimizer] = config.recipe.lr
    findings = [
        conclude([one for one in runs if one.of == (network, optimizer)], assumption, settings)
        for assumption in CLAIMS
        for network in settings.networks
        for optimizer in settings.optimizer
    ]
    return Assumptions(settings=settings, base_lr=base_lr, findings=findings, runs=runs)


def trainings(settings: AssumptionSettings) -> list[tuple[str, Config]]:
    """Every network that is trained: mlp or gpt2, and its configuration."""
    result = []
    for network in settings.networks:
        for optimizer in settings.optimizer:
            config = base_config(network, optimizer, settings)
            if network == "gpt2":
                open_corpus(config)  # refused now rather than in a worker
            for depth in settings.depths:
                sized = replace(config, model=replace(config.model, depth=depth))
                result += [(network, replace(sized, seed=seed)) for seed in range(settings.seeds)]
    return result


def base_config(network: str, optimizer: str, settings: AssumptionSettings) -> Config:
    """Everything but depth and seed: μP at k >= 2 without weight decay, and after the warm-up a constant rate.

    The base learning rate is that of `settings.rates`, or of the optimizer's recipe.
    """
    expected = "base learning rates by network and optimizer, such as recipes/experiment/assumptions.yaml has"
    rates = convert(read_yaml(Path(settings.rates), expected), dict[str, dict[str, PositiveFloat]], settings.rates)
    recipe = build_config([preset("optimizer", optimizer)]).recipe
    lr = rates.get(network, {}).get(optimizer, recipe.lr)
    width, depth = BASE[network]
    samples = settings.batch if network == "mlp" else settings.sequences
    warmup = settings.steps // 10 if settings.warmup is None else settings.warmup
    own: dict[str, Any] = {
        "model": {"width": settings.width, "context": settings.context, "tied": False},
        "recipe": {"lr": lr, "base_width": width, "base_depth": depth},
        "schedule": {"warmup_steps": warmup, "min_lr": lr},
        "data": {"path": settings.data, "tokenizer": "bytes", "verify": False},
        "data.batch_size": samples,
        "data.micro_batch": samples,
        "trainer.max_steps": settings.steps + 1,
    }
    return build_config([preset("optimizer", optimizer), own])
