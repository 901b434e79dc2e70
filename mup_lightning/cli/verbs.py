"""The verbs that belong to no study: their options and what they call. Imports no torch until one runs."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml

from mup_lightning import signals
from mup_lightning.config.forecast import Forecast
from mup_lightning.config.schema import Config
from mup_lightning.data.sampler import accumulation_steps
from mup_lightning.errors import UserError
from mup_lightning.files import check_folder
from mup_lightning.slurm.options import SubmitSettings
from mup_lightning.spectral import published, tables
from mup_lightning.spectral.base import OptimizerName
from mup_lightning.spectral.families import FAMILIES
from mup_lightning.spectral.horizon import TimeRule, horizon_of, read_law
from mup_lightning.spectral.recipe import variant_of
from mup_lightning.terminal import holds_unicode
from mup_lightning.training import launch, tune_allocator
from mup_lightning.typed import Bound, Picture, PositiveFloat, PositiveInt, Typed


@dataclass
class EvaluateSettings(Typed, prefix="--"):
    """Loss, perplexity and bits per byte of a model on a prepared corpus, or its answers to a file of questions.

    Attributes:
        checkpoint: a checkpoint's folder, a run's folder (its newest checkpoint), or that of a Hugging Face model,
            such as an export.
        data: folder of a prepared corpus; null: the one that the run was trained on.
        task: JSONL of multiple-choice questions in place of a corpus, with the keys ctx, endings, label (HellaSwag's)
            or query, choices, gold.
        batch: windows, or choices, in one forward pass.
        val_tokens: only the first this many tokens of the corpus; null: all.
        context: tokens of a window; null: as many as the model was trained on.
        json: print JSON, not YAML.
    """

    checkpoint: Path
    data: str | None = None
    task: Path | None = None
    batch: PositiveInt = 8
    val_tokens: PositiveInt | None = None
    context: PositiveInt | None = None
    json: bool = False

    def __post_init__(self) -> None:
        """Raise UserError for a corpus and questions."""
        super().__post_init__()
        if self.task and (self.data or self.val_tokens):
            raise UserError(f"--task {self.task} takes the place of a corpus; leave --data and --val-tokens out")


@dataclass
class PlanSettings(Typed, prefix="--"):
    """Prints every parameter's values, operations, tokens, GPU memory and time; needs neither GPU nor data.

    Attributes:
        gpus: numbers of GPUs to estimate memory and time for.
        gpu: their kind, whose memory and speed are those of its data sheet.
        gpu_memory: GB (10^9 bytes) of one GPU; * marks what exceeds it; null: the kind's.
        noise_scale: folder of a run or a sweep, or its result.json or results.csv: a note compares the batch with the
            gradient noise scale measured there.
        forecast: forecast.json of `mup-lightning forecast`, whose loss is printed as well; null: run.forecast.
        figure: draw the speed of each GPU over the numbers of GPUs, for every strategy.
        json: print JSON, with every parameter; memory in bytes.
    """

    gpus: tuple[PositiveInt, ...] = (1, 8, 64, 512, 4096)
    gpu: Literal["h100", "a100", "h200", "b200"] = "h100"
    gpu_memory: PositiveFloat | None = None
    noise_scale: Path | None = None
    forecast: Path | None = None
    figure: Picture | None = None
    json: bool = False


_KNOWN = published.PUBLISHED
PublishedName = Annotated[str, Bound(f"one of {', '.join(_KNOWN)}", lambda name: name in _KNOWN)]


@dataclass
class RecipeSettings(Typed, prefix="--"):
    """Prints the tables that follow from the spectral condition, or their differences to a published parametrization.

    Attributes:
        optimizer: one optimizer's table; null: all, compact.
        branch_depth: k, matrices in a residual branch: 1, or 2 and more.
        variant: measured: with the update that `mup-lightning probe` found, where it found another.
        time_rule: how values follow batch and horizon, too: none, sde, or fitted:FILE (see recipe.time_rule).
        diff: compare with a published parametrization, cell by cell, or the time rule sde with a published one
            (optimizer: adamw, or the one that it has, unless given).
        json: print JSON; exponents are strings such as -1/2.
    """

    optimizer: OptimizerName | None = None
    branch_depth: PositiveInt = 2
    variant: Literal["published", "measured"] = "published"
    time_rule: TimeRule = "none"
    diff: PublishedName | None = None
    json: bool = False


def train(config: Config) -> int:
    """Train, in this process or in several that it starts, and print at the end what came of it."""
    process = launch.this_process(config.trainer)
    if note := launch.note(config.trainer):
        print(note, flush=True)
    if process is None:
        data = config.data  # the processes would refuse it, too, but only once they have started
        together = 1 if data.micro_batch == "auto" else data.micro_batch
        accumulation_steps(data.batch_size, together, config.trainer.devices)
        return launch.start_all(config)
    with launch.reporting(process):
        tune_allocator()
        from mup_lightning.training.train import after, before, train

        first = process.rank == 0  # which speaks
        if first:
            print(before(config), flush=True)
        result = train(config)
        if first:
            print(after(config, result), flush=True)
        if result.finished or not signals.in_job():
            return 0 if result.finished else 130
        if not first:  # an exit status other than 0 would make srun kill the process that requeues
            return 0
        from mup_lightning.slurm.submit import requeue

        return 0 if requeue(result.steps, result.first_step) else 130


def evaluate(settings: EvaluateSettings) -> None:
    """Print how good a model is."""
    tune_allocator()
    from mup_lightning.training.evaluate import answer, evaluate

    path, batch, context = settings.checkpoint, settings.batch, settings.context
    if settings.task:
        found = answer(path, settings.task, batch=batch, context=context)
    else:
        found = evaluate(path, settings.data, batch=batch, val_tokens=settings.val_tokens, context=context)
    print_plain(found, settings.json)


def plan(settings: PlanSettings, config: Config) -> None:
    """Print what a run would use and cost."""
    from mup_lightning.plan.plan import plan, screen
    from mup_lightning.plan.time import GPUS

    machine = GPUS[settings.gpu]
    gb = settings.gpu_memory or machine.memory / 1e9
    result = plan(config, settings.gpus, memory=gb * 1e9, machine=machine)
    if settings.noise_scale:
        from mup_lightning.studies.noise import against

        result.notes.append(against(settings.noise_scale, config.tokens_per_step)[1])
    plain, said = result.plain(), screen(config, result, gb, settings.gpu.upper())
    if file := settings.forecast or config.run.forecast:
        forecast = Forecast.read(Path(file))
        forecast.refuse_other(config, result.parameter_count)
        plain |= {"forecast": {key: getattr(forecast, key) for key in ("loss", "low", "high")}}
        said += f"\n\nForecast: {forecast} ({file})"
    if settings.figure:
        from mup_lightning.studies.speed import draw

        model, blocks = f"{result.parameter_count / 1e9:.3g} B parameters", config.model.family
        batch = f"{config.data.batch_size} x {config.model.context} tokens a step"
        title = f"{blocks}, {model}, {config.recipe.optimizer}, {batch}, {settings.gpu.upper()} ({gb:g} GB)"
        said += f"\n\nfigure: {draw(result.time, gb * 1e9, title, settings.figure)}"
    print_plain(plain if settings.json else said)


def recipe(settings: RecipeSettings) -> None:
    """Print the recipe's tables, or how it differs from what is used elsewhere."""
    optimizer, k = settings.optimizer, settings.branch_depth
    if settings.diff and settings.variant == "measured":
        raise UserError("--diff compares the published rules; leave --variant measured out")
    if settings.diff and settings.time_rule != "none":
        raise UserError("--diff compares the time rule sde, where there is one to compare; leave --time-rule out")
    law = read_law(settings.time_rule)
    if law and optimizer not in (None, law.optimizer):
        raise UserError(f"the law of --time-rule is of {law.optimizer}; leave --optimizer {optimizer} out")
    optimizer, horizon = law.optimizer if law else optimizer, horizon_of(settings.time_rule, law)
    families = {name: variant_of(family, settings.variant) for name, family in FAMILIES.items()}
    if settings.diff:
        known = published.PUBLISHED[settings.diff].tables
        compared = (settings.diff, optimizer or ("adamw" if "adamw" in known else next(iter(known))), k)
        print_plain(published.as_plain(*compared) if settings.json else published.as_text(*compared))
    elif settings.json:
        plain = {name: tables.as_plain(family, k, horizon) for name, family in families.items()}
        print_plain(plain[optimizer] if optimizer else list(plain.values()))
    else:
        one = families[optimizer] if optimizer else None
        print(tables.as_text(one, k, horizon) if one else tables.all_as_text(k, families, horizon))


def submit(settings: SubmitSettings, config: Config) -> None:
    """Submit a training, or a sweep as an array job."""
    from mup_lightning.slurm import submit as slurm

    if settings.sweep is None:
        return slurm.submit_training(config, settings.slurm, dry=settings.dry)
    if config != Config():
        raise UserError("--sweep takes no keys of a configuration: its values are in its file; use --set KEY=VALUE")
    assert settings.tasks is not None
    from mup_lightning.studies.sweep.grid import expand
    from mup_lightning.studies.sweep.spec import load

    sweep = load(settings.sweep, settings.set)
    expand(sweep)  # refuses what the sweep itself would refuse
    out = settings.out or sweep.folder
    check_folder(out)
    command = ["sweep", str(settings.sweep), "--out", str(out)]
    command += ["--workers", str(settings.workers)] if settings.workers is not None else []
    command += [item for setting in settings.set for item in ("--set", setting)]
    asked = replace(settings.slurm, gpus=settings.slurm.gpus or 0)  # small models need no GPU unless one is asked for
    return slurm.submit_sweep(settings.sweep, command, asked, out=out, tasks=settings.tasks, dry=settings.dry)


def config(config: Config) -> None:
    """Print the whole configuration as YAML."""
    print_plain(asdict(config), as_json=False)


def print_plain(value: Any, as_json: bool = True) -> None:
    """Print text as it is, and plain values as JSON or YAML."""
    letters = holds_unicode()
    dumped = json.dumps(value, indent=1, ensure_ascii=not letters)
    if not as_json:
        dumped = yaml.safe_dump(json.loads(dumped), sort_keys=False, allow_unicode=letters).rstrip("\n")
    print(value if isinstance(value, str) else dumped)
