"""The table of verbs, and what the small ones do that belong to no study. Imports no torch until a verb runs."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from mup_lightning import signals
from mup_lightning.errors import UserError
from mup_lightning.spectral.families import FAMILIES
from mup_lightning.spectral.published import PUBLISHED
from mup_lightning.spectral.recipe import OptimizerName, variant_of
from mup_lightning.typed import Bound, PositiveFloat, PositiveInt, Typed

if TYPE_CHECKING:
    from mup_lightning.config.schema import Config
    from mup_lightning.slurm.options import SubmitSettings


@dataclass(frozen=True)
class Verb:
    """A verb of the command line.

    Attributes:
        name: what the user types: one word, or two as in "data prepare".
        summary: what it does, in one line.
        run: "module:function", which takes the settings, the configuration, or both, and returns the exit code.
        settings: "module:Class", a `Typed` dataclass whose fields are the verb's own options; None: it has none.
        config: whether it takes the configuration of a run: recipe files, presets and --section.key.
        positional: the field of the settings that is given without a name; a list takes several.
        example: a command line that works.
    """

    name: str
    summary: str
    run: str
    settings: str | None = None
    config: bool = False
    positional: str | None = None
    example: str = ""

    def load(self, path: str) -> Any:
        """The function or class called "module:name"."""
        module, _, name = path.partition(":")
        return getattr(importlib.import_module(module), name)


@dataclass
class EvaluateSettings(Typed, prefix="--"):
    """Validation loss of a checkpoint on a prepared corpus.

    Attributes:
        checkpoint: a checkpoint's folder, or a run's folder (its newest checkpoint).
        data: folder of a prepared corpus; null: the one that the run was trained on.
        batch: windows in one forward pass.
        val_tokens: only the first this many tokens; null: all.
        json: print JSON.
    """

    checkpoint: Path
    data: str | None = None
    batch: PositiveInt = 8
    val_tokens: PositiveInt | None = None
    json: bool = False


@dataclass
class ExportSettings(Typed, prefix="--"):
    """Write the weights of a checkpoint, whatever strategy saved it, into a folder.

    Attributes:
        checkpoint: a checkpoint's folder, or a run's folder (its newest checkpoint).
        out: folder, which is made and must not exist.
        format: hf: a plain Hugging Face GPT-2, multipliers folded in, for GPT2LMHeadModel.from_pretrained(FOLDER);
            plain: this package's own parameters in one safetensors file, with configuration and multipliers.
    """

    checkpoint: Path
    out: Path
    format: Literal["hf", "plain"] = "hf"


@dataclass
class PlanSettings(Typed, prefix="--"):
    """Prints every parameter's values, operations, tokens and GPU memory; needs neither GPU nor data.

    Attributes:
        gpus: numbers of GPUs to estimate memory for.
        gpu_memory: GB (10^9 bytes) of one GPU; * marks what exceeds it.
        json: print JSON, with every parameter; memory in bytes.
    """

    gpus: tuple[PositiveInt, ...] = (1, 8, 64, 512, 4096)
    gpu_memory: PositiveFloat = 80.0
    json: bool = False


PublishedName = Annotated[str, Bound(f"one of {', '.join(PUBLISHED)}", lambda name: name in PUBLISHED)]


@dataclass
class RecipeSettings(Typed, prefix="--"):
    """Prints the tables that follow from the spectral condition, or their differences to a published parametrization.

    Attributes:
        optimizer: one optimizer's table; null: all, compact.
        branch_depth: k, matrices in a residual branch: 1, or 2 and more.
        variant: measured: with the update that `mup-lightning probe` found, where it found another.
        diff: compare with a published parametrization, cell by cell (optimizer: adamw unless given).
        json: print JSON; exponents are strings such as -1/2.
    """

    optimizer: OptimizerName | None = None
    branch_depth: PositiveInt = 2
    variant: Literal["published", "measured"] = "published"
    diff: PublishedName | None = None
    json: bool = False


@dataclass
class PrepareSettings(Typed, prefix="--"):
    """Tokenise the data set of a card into shards; a stopped preparation continues.

    Attributes:
        card: YAML card of the data set (see data/README.md).
        out: folder to write; null: data/prepared/CARD-TOKENIZER.
        tokenizer: vocabulary.
        force: overwrite whatever corpus the folder holds.
        quiet: no progress bar.
    """

    card: Path
    out: Path | None = None
    tokenizer: Literal["gpt2", "bytes"] = "gpt2"
    force: bool = False
    quiet: bool = False


@dataclass
class CorpusSettings(Typed, prefix="--"):
    """A prepared corpus.

    Attributes:
        folder: the corpus.
        json: print JSON.
    """

    folder: Path
    json: bool = False


def train(config: Config) -> int:
    """Train, and print at the end what came of it."""
    from mup_lightning.training.hardware import is_first_process, tune_allocator

    tune_allocator()
    from mup_lightning.training import summary
    from mup_lightning.training.train import train

    if is_first_process():
        print(summary.before(config), flush=True)
    result = train(config)
    if is_first_process():
        print(summary.after(config, result), flush=True)
    if result.finished:
        return 0
    if not signals.in_job():
        return 130
    if not is_first_process():  # an exit status other than 0 would make srun kill the process that requeues
        return 0

    from mup_lightning.slurm.requeue import requeue

    return 0 if requeue(result.steps, result.first_step) else 130


def evaluate(settings: EvaluateSettings) -> int:
    """Print the validation loss of a checkpoint."""
    from mup_lightning.training.hardware import tune_allocator

    tune_allocator()
    from mup_lightning.training.evaluate import evaluate

    result = evaluate(settings.checkpoint, settings.data, batch=settings.batch, val_tokens=settings.val_tokens)
    if settings.json:
        print(json.dumps(result, indent=1))
        return 0
    own = result["run_val_tokens"]
    if own not in (None, settings.val_tokens) and settings.data is None:
        print(f"note: the run itself was validated on the first {own:,} tokens (--val-tokens {own})", file=sys.stderr)
    print(
        f"{result['checkpoint']} on {result['data']}:\n"
        f"  validation loss  {result['validation_loss']:.4f} nats per token over {result['tokens']:,} tokens\n"
        f"  unigram model    {result['unigram_loss']:.4f} nats per token"
    )
    return 0


def export(settings: ExportSettings) -> int:
    """Write a checkpoint's weights for use elsewhere."""
    from mup_lightning.training.export import export

    print(export(settings.checkpoint, settings.out, settings.format))
    return 0


def plan(settings: PlanSettings, config: Config) -> int:
    """Print what a run would use and cost."""
    from mup_lightning.plan.plan import plan
    from mup_lightning.plan.screen import screen

    result = plan(config, settings.gpus)
    print(json.dumps(result.plain(), indent=1) if settings.json else screen(config, result, settings.gpu_memory))
    return 0


def recipe(settings: RecipeSettings) -> int:
    """Print the recipe's tables, or how it differs from what is used elsewhere."""
    from mup_lightning.spectral import comparison, tables

    optimizer, k = settings.optimizer, settings.branch_depth
    if settings.variant == "measured":
        if settings.diff:
            raise UserError("--diff compares the published rules; leave --variant measured out")
        if optimizer and FAMILIES[optimizer].measured is None:
            differing = ", ".join(family.name for family in FAMILIES.values() if family.measured)
            raise UserError(
                f"--variant is measured, but {optimizer} was measured as it is published "
                f"(docs/results/probe.md); leave --variant out, or choose --optimizer {differing}"
            )
    families = {name: variant_of(family, settings.variant) for name, family in FAMILIES.items()}
    if settings.diff:
        compared = (settings.diff, optimizer or "adamw", k)
        print(json.dumps(comparison.as_plain(*compared), indent=1) if settings.json else comparison.as_text(*compared))
    elif settings.json:
        plain = {name: tables.as_plain(family, k) for name, family in families.items()}
        print(json.dumps(plain[optimizer] if optimizer else list(plain.values()), indent=1))
    else:
        print(tables.as_text(families[optimizer], k) if optimizer else tables.all_as_text(k, families))
    return 0


def submit(settings: SubmitSettings, config: Config) -> int:
    """Submit a training, or a sweep as an array job."""
    from mup_lightning.config.schema import Config
    from mup_lightning.slurm import submit as slurm

    if settings.sweep is None:
        settings.slurm.checked_gpus()
        return slurm.submit_training(config, settings.slurm, dry=settings.dry)
    if config != Config():
        raise UserError(
            "--sweep takes no keys of a configuration: a sweep's values are in its file; use --set KEY=VALUE"
        )
    assert settings.tasks is not None
    from mup_lightning.cli import sweep
    from mup_lightning.studies.sweep.spec import load

    out = settings.out or Path("runs") / "sweeps" / load(str(settings.sweep)).name
    for name, what in ((str(out), "--out"), (str(Path.cwd()), "the working directory")):
        slurm.name_is_plain(name, what)
    command = ["sweep", str(settings.sweep), "--out", str(out)]
    command += ["--workers", str(settings.workers)] if settings.workers is not None else []
    command += [item for setting in settings.set for item in ("--set", setting)]
    with contextlib.redirect_stdout(io.StringIO()):  # builds and checks every configuration as the sweep itself will
        sweep.main([*command[1:], "--dry-run"])
    asked = replace(settings.slurm, gpus=settings.slurm.gpus or 0)  # small models need no GPU unless one is asked for
    return slurm.submit_sweep(settings.sweep, command, asked, out=out, tasks=settings.tasks, dry=settings.dry)


def prepare(settings: PrepareSettings) -> int:
    """Tokenise a corpus."""
    from mup_lightning.data.card import load_card
    from mup_lightning.data.prepare import prepare, summary
    from mup_lightning.data.shards import MANIFEST

    card = load_card(settings.card)
    folder = settings.out or Path("data/prepared") / f"{card.name}-{settings.tokenizer}"
    was_there = (folder / MANIFEST).exists() and not settings.force
    manifest = prepare(card, folder, settings.tokenizer, progress=not settings.quiet, force=settings.force)
    print("already prepared, nothing to do" if was_there else "prepared", f"({folder})")
    print(summary(manifest))
    return 0


def verify(settings: CorpusSettings) -> int:
    """Read every shard of a corpus and compare it with the manifest."""
    from mup_lightning.data.prepare import summary
    from mup_lightning.data.shards import SPLITS, TokenStore

    for split in SPLITS:
        store = TokenStore.open(settings.folder, split, verify=True)
    print(f"{summary(store.manifest)}\nevery shard matches the manifest")
    return 0


def show(settings: CorpusSettings) -> int:
    """Print what a prepared corpus holds."""
    from mup_lightning.data.prepare import facts, summary
    from mup_lightning.data.shards import Manifest

    manifest = Manifest.load(settings.folder)
    print(json.dumps(facts(manifest), indent=1, ensure_ascii=False) if settings.json else summary(manifest))
    return 0


_HERE = "mup_lightning.cli.commands"
_STUDIES = "mup_lightning.studies"

_VERBS = (
    Verb(
        "train",
        "train a model, or continue a run",
        run=f"{_HERE}:train",
        config=True,
        example="mup-lightning train size=base optimizer=adamw steps=200 run=first --model.dropout 0.1",
    ),
    Verb(
        "evaluate",
        "validation loss of a checkpoint on a prepared corpus",
        run=f"{_HERE}:evaluate",
        settings=f"{_HERE}:EvaluateSettings",
        positional="checkpoint",
        example="mup-lightning evaluate runs/nano-muon_kimi-mup/checkpoints/step_00000300 --json",
    ),
    Verb("sweep", "run a grid of configurations into one table of results", "mup_lightning.cli.sweep:main", "argv"),
    Verb("tune", "find a large model's base learning rate on small ones", "mup_lightning.cli.tune:main", "argv"),
    Verb(
        "submit",
        "run a training, or a sweep as an array, on a SLURM cluster",
        run=f"{_HERE}:submit",
        settings="mup_lightning.slurm.options:SubmitSettings",
        config=True,
        example="mup-lightning submit size=xl strategy=ddp nodes=4 --slurm.gpus 8 --slurm.time 12:00:00 run=xl --dry\n"
        "mup-lightning submit --sweep recipes/experiment/FILE.yaml --tasks 8 --slurm.gpus 1",
    ),
    Verb(
        "export",
        "write a checkpoint's weights as a plain Hugging Face GPT-2, or as they are",
        run=f"{_HERE}:export",
        settings=f"{_HERE}:ExportSettings",
        positional="checkpoint",
        example="mup-lightning export runs/nano-muon_kimi-mup --out exported",
    ),
    Verb(
        "recipe",
        "how every hyper-parameter scales with width and depth",
        run=f"{_HERE}:recipe",
        settings=f"{_HERE}:RecipeSettings",
        example="mup-lightning recipe --optimizer adamw\nmup-lightning recipe --diff completep",
    ),
    Verb(
        "plan",
        "what a run would use and cost: values, FLOPs, GPU memory",
        run=f"{_HERE}:plan",
        settings=f"{_HERE}:PlanSettings",
        config=True,
        example="mup-lightning plan size=xl optimizer=muon_kimi --gpus 8,64 --gpu-memory 40",
    ),
    Verb(
        "data prepare",
        "tokenise the data set of a card",
        run=f"{_HERE}:prepare",
        settings=f"{_HERE}:PrepareSettings",
        positional="card",
        example="mup-lightning data prepare data/austen.yaml --tokenizer bytes",
    ),
    Verb(
        "data verify",
        "read every shard and compare it with the manifest",
        run=f"{_HERE}:verify",
        settings=f"{_HERE}:CorpusSettings",
        positional="folder",
        example="mup-lightning data verify data/prepared/austen-gpt2",
    ),
    Verb(
        "data show",
        "print what a prepared corpus holds",
        run=f"{_HERE}:show",
        settings=f"{_HERE}:CorpusSettings",
        positional="folder",
        example="mup-lightning data show data/prepared/austen-gpt2 --json",
    ),
    Verb(
        "probe",
        "measure how an optimizer's steps scale, against what its family declares",
        run=f"{_STUDIES}.probe.run:run",
        settings=f"{_STUDIES}.probe.settings:ProbeSettings",
        example="mup-lightning probe --optimizer muon\nmup-lightning probe --optimizer pytorch_optimizer:Adan",
    ),
    Verb(
        "coord-check",
        "whether features keep their size while the model grows, with a verdict",
        run=f"{_STUDIES}.coordinates.check:run",
        settings=f"{_STUDIES}.coordinates.settings:CheckSettings",
        config=True,
        positional="table",
        example="mup-lightning coord-check optimizer=muon_kimi experiment=coord_check --axis depth --depths 2,4,8,16\n"
        "mup-lightning coord-check --all recipes/experiment/coordinates.yaml\n"
        "mup-lightning coord-check --table runs/coordinates/*",
    ),
    Verb(
        "assumptions",
        "measure over depth what the spectral condition assumes",
        run=f"{_STUDIES}.assumptions.run:run",
        settings=f"{_STUDIES}.assumptions.settings:AssumptionSettings",
        example="mup-lightning assumptions --network mlp --optimizer sgd,lion --depths 4,16,64,256",
    ),
    Verb(
        "report transfer",
        "whether the best value stays where it is while the model grows",
        run=f"{_STUDIES}.transfer.report:run",
        settings=f"{_STUDIES}.transfer.settings:TransferSettings",
        positional="results",
        example="mup-lightning report transfer runs/sweeps/lr_width --out runs/sweeps/lr_width",
    ),
    Verb(
        "report best",
        "the best value of every group of a sweep",
        run=f"{_STUDIES}.transfer.best:run",
        settings=f"{_STUDIES}.transfer.settings:BestSettings",
        positional="results",
        example="mup-lightning report best runs/sweeps/optimizers",
    ),
    Verb(
        "figure",
        "draw feature norms from runs' TensorBoard logs",
        run=f"{_STUDIES}.features.report:run",
        settings=f"{_STUDIES}.features.report:FigureSettings",
        positional="runs",
        example="mup-lightning figure runs/nano-muon_kimi-mup\n"
        "mup-lightning figure runs/sp-64x4 runs/sp-256x4 runs/mup-64x4 runs/mup-256x4 --out growth.png",
    ),
)

VERBS: dict[str, Verb] = {verb.name: verb for verb in _VERBS}
"""Name -> verb, in the order of the help."""
