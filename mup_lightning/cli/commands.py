"""The table of verbs: what each does, the function that does it, and the class that explains its options."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Verb:
    """A verb of the command line.

    Attributes:
        name: what the user types: one word, or two as in "data prepare".
        summary: what it does, in one line.
        run: "module:function", which takes the settings, the configuration, or both; returns the exit code or None: 0.
        settings: "module:Class", a `Typed` dataclass whose fields are the verb's own options; None: it has none. The
            name of its first field may be left out where that has no default; a list takes several values.
        config: whether it takes the configuration of a run: recipe files, presets and --section.key.
        example: command lines that work.
    """

    name: str
    summary: str
    run: str
    settings: str | None = None
    config: bool = False
    example: str = ""


_OWN = "mup_lightning.cli.verbs"
_STUDIES = "mup_lightning.studies"

_VERBS = (
    Verb(
        "train",
        "train a model, or continue a run",
        run=f"{_OWN}:train",
        config=True,
        example="mup-lightning train size=base optimizer=adamw steps=200 run=first --model.dropout 0.1",
    ),
    Verb(
        "evaluate",
        "validation loss of a checkpoint on a prepared corpus",
        run=f"{_OWN}:evaluate",
        settings=f"{_OWN}:EvaluateSettings",
        example="mup-lightning evaluate runs/nano-muon_kimi-mup/checkpoints/step_00000300 --json",
    ),
    Verb(
        "sweep",
        "run a grid of configurations into one table of results",
        run=f"{_STUDIES}.sweep.run:run",
        settings=f"{_STUDIES}.sweep.spec:SweepSettings",
        example="mup-lightning sweep experiment=lr_width --set trainer.max_steps=200",
    ),
    Verb(
        "tune",
        "find a large model's base learning rate on small ones",
        run=f"{_STUDIES}.tune.tune:run",
        settings=f"{_STUDIES}.tune.settings:TuneSettings",
        config=True,
        example="mup-lightning tune size=xl optimizer=muon_kimi run=xl",
    ),
    Verb(
        "submit",
        "run a training, or a sweep as an array, on a SLURM cluster",
        run=f"{_OWN}:submit",
        settings="mup_lightning.slurm.options:SubmitSettings",
        config=True,
        example="mup-lightning submit size=xl strategy=ddp nodes=4 --slurm.gpus 8 --slurm.time 12:00:00 run=xl --dry\n"
        "mup-lightning submit --sweep recipes/experiment/FILE.yaml --tasks 8 --slurm.gpus 1",
    ),
    Verb(
        "export",
        "write a checkpoint's weights as a plain Hugging Face GPT-2, or as they are",
        run=f"{_OWN}:export",
        settings=f"{_OWN}:ExportSettings",
        example="mup-lightning export runs/nano-muon_kimi-mup --out exported",
    ),
    Verb(
        "recipe",
        "how every hyper-parameter scales with width and depth",
        run=f"{_OWN}:recipe",
        settings=f"{_OWN}:RecipeSettings",
        example="mup-lightning recipe --optimizer adamw\nmup-lightning recipe --diff completep",
    ),
    Verb(
        "config",
        "print the configuration that words and files make, as YAML; trains nothing",
        run=f"{_OWN}:config",
        config=True,
        example="mup-lightning config size=xl optimizer=adamw --recipe.lr 0.01 > mine.yaml",
    ),
    Verb(
        "plan",
        "what a run would use and cost: values, FLOPs, GPU memory",
        run=f"{_OWN}:plan",
        settings=f"{_OWN}:PlanSettings",
        config=True,
        example="mup-lightning plan size=xl optimizer=muon_kimi --gpus 8,64 --gpu-memory 40",
    ),
    Verb(
        "data prepare",
        "tokenise the data set of a card",
        run=f"{_OWN}:prepare",
        settings=f"{_OWN}:PrepareSettings",
        example="mup-lightning data prepare data/austen.yaml --tokenizer bytes",
    ),
    Verb(
        "data verify",
        "read every shard and compare it with the manifest",
        run=f"{_OWN}:verify",
        settings=f"{_OWN}:CorpusSettings",
        example="mup-lightning data verify data/prepared/austen-gpt2",
    ),
    Verb(
        "data show",
        "print what a prepared corpus holds",
        run=f"{_OWN}:show",
        settings=f"{_OWN}:CorpusSettings",
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
        run=f"{_STUDIES}.coordinates.run:run",
        settings=f"{_STUDIES}.coordinates.settings:CheckSettings",
        config=True,
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
        settings=f"{_STUDIES}.transfer.report:TransferSettings",
        example="mup-lightning report transfer runs/sweeps/lr_width --out runs/sweeps/lr_width",
    ),
    Verb(
        "report best",
        "the best value of every group of a sweep",
        run=f"{_STUDIES}.transfer.best:run",
        settings=f"{_STUDIES}.transfer.best:BestSettings",
        example="mup-lightning report best runs/sweeps/optimizers",
    ),
    Verb(
        "figure",
        "draw feature norms from runs' TensorBoard logs",
        run=f"{_STUDIES}.features.report:run",
        settings=f"{_STUDIES}.features.report:FigureSettings",
        example="mup-lightning figure runs/nano-muon_kimi-mup\n"
        "mup-lightning figure runs/sp-64x4 runs/sp-256x4 runs/mup-64x4 runs/mup-256x4 --out growth.png",
    ),
)

VERBS: dict[str, Verb] = {verb.name: verb for verb in _VERBS}
"""Name -> verb, in the order of the help."""
