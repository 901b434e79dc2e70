"""`mup-lightning assumptions`: measures over depth what the spectral condition assumes, while small networks train."""

import json
from dataclasses import asdict, replace
from pathlib import Path

from tqdm import tqdm

from mup_lightning.config.load import build_config, preset
from mup_lightning.config.schema import Config
from mup_lightning.files import check_folder, read_yaml, write_atomic, write_json
from mup_lightning.studies.assumptions.measure import Training, measure
from mup_lightning.studies.assumptions.networks import open_corpus
from mup_lightning.studies.assumptions.report import AssumptionResult, draw, markdown, text
from mup_lightning.studies.assumptions.settings import AssumptionSettings
from mup_lightning.studies.assumptions.verdict import FORMULAS, conclude
from mup_lightning.studies.fit import overall
from mup_lightning.studies.workers import cores, each
from mup_lightning.typed import PositiveFloat, convert
from mup_lightning.versions import versions

BASE = {"mlp": (64, 4), "gpt2": (256, 4)}
"""The (width, depth) at which each network's learning rates are given."""

_WORK = {"mlp": 1.0, "gpt2": 6.0}
"""Time of a block of either network, relative to the MLP's."""


def run(settings: AssumptionSettings) -> int:
    """Check, write, draw, and print what was found.

    Returns:
        The exit status of the verdict over all assumptions.
    """
    out = Path(settings.out)
    check_folder(out)
    result = check(settings)
    write_json(out / "assumptions.json", asdict(result))
    write_atomic(out / "table.md", f"{markdown(result)}\n")
    figures = ", ".join(file.name for file in draw(result, out))
    if settings.json:
        print(json.dumps({key: value for key, value in asdict(result).items() if key != "runs"}, indent=1))
    else:
        print(f"{text(result)}\n\nwrote {out / 'assumptions.json'}, table.md, {figures}")
    return overall(finding.verdict for finding in result.findings).exit_code


def check(settings: AssumptionSettings) -> AssumptionResult:
    """Check all assumptions.

    Raises:
        UserError: the corpus cannot be read, a training diverged, or an optimizer cannot be checked.
    """
    todo = trainings(settings)
    workers = cores() if settings.workers is None else settings.workers
    runs = []
    work = sum(map(_work, todo))
    with tqdm(total=work, desc="assumptions", bar_format=_BAR, leave=False, disable=None) as bar:
        for training, found in each(measure, todo, workers):
            runs.append(found)
            bar.update(_work(training))
    runs.sort(key=lambda found: (found.depth, found.seed))
    findings = [
        conclude([one for one in runs if (one.network, one.optimizer) == (network, optimizer)], assumption, settings)
        for network in settings.networks
        for optimizer in settings.optimizer
        for assumption in FORMULAS
    ]
    base_lr: dict[str, dict[str, float]] = {network: {} for network in settings.networks}
    for training in todo:
        base_lr[training.network][training.config.recipe.optimizer] = training.config.recipe.lr
    return AssumptionResult(settings, base_lr, findings, versions(), runs)


_BAR = "{desc} {percentage:3.0f}% |{bar}| [{elapsed}<{remaining}]"


def trainings(settings: AssumptionSettings) -> list[Training]:
    """Every network that is trained, the longest first, so that no worker is left alone with a long one."""
    result = []
    for network in settings.networks:
        for optimizer in settings.optimizer:
            config = base_config(network, optimizer, settings)
            if network == "gpt2":
                open_corpus(config)  # refused now rather than in a worker
            for depth in settings.depths:
                sized = replace(config, model=replace(config.model, depth=depth))
                for seed in range(settings.seeds):
                    result.append(Training(network, replace(sized, seed=seed), settings.measured_at))
    return sorted(result, key=_work, reverse=True)


def _work(training: Training) -> float:
    return _WORK[training.network] * training.config.model.depth


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
    return build_config(
        [
            preset("optimizer", optimizer),
            {
                "model.width": settings.width,
                "model.context": settings.context,
                "model.tied": False,
                "recipe.lr": lr,
                "recipe.base_width": width,
                "recipe.base_depth": depth,
                "schedule.warmup_steps": settings.steps // 10 if settings.warmup is None else settings.warmup,
                "schedule.min_lr": lr,
                "data.path": settings.data,
                "data.tokenizer": "bytes",
                "data.batch_size": samples,
                "data.micro_batch": samples,
                "data.verify": False,
                "trainer.max_steps": settings.steps + 1,
            },
        ]
    )
