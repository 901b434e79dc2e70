"""`mup-lightning VERB`: parses a command line by the table of verbs, runs it, and ends a user's mistake in one line."""

import inspect
import os
import pkgutil
import re
import sys
import textwrap
from dataclasses import MISSING, dataclass, is_dataclass
from pathlib import Path
from typing import Any

from mup_lightning import signals
from mup_lightning.config.load import GROUPS, RECIPES, WORDS, Layer, hint_of, merge, preset, unknown_option, word
from mup_lightning.config.schema import Config
from mup_lightning.errors import UsageError, UserError
from mup_lightning.files import FAILING_DISK
from mup_lightning.terminal import spell_signs
from mup_lightning.typed import Option, Raw, as_typed, build, describe, hints, nearest, options
from mup_lightning.versions import versions

TABLE = """
train: train a model, or continue a run
  cli.verbs:train(Config)
  mup-lightning train size=base optimizer=adamw steps=200 run=first --model.dropout 0.1
evaluate: loss, perplexity and bits per byte of a model on a corpus, or its accuracy in multiple choice
  cli.verbs:evaluate(cli.verbs:EvaluateSettings)
  mup-lightning evaluate runs/nano-muon_kimi-mup/checkpoints/step_00000300 --json
  mup-lightning evaluate exported/nano-muon_kimi-mup --task questions.jsonl
sweep: run a grid of configurations into one table of results
  studies.sweep.run:run(studies.sweep.spec:SweepSettings)
  mup-lightning sweep experiment=lr_width --set trainer.max_steps=200
anneal: runs of several lengths, as branches of one run that holds its peak learning rate
  studies.anneal.anneal:run(studies.anneal:AnnealSettings)
  mup-lightning anneal runs/trunk --steps 400,800,1600
tune: find a large model's base learning rate on small ones
  studies.tune.tune:run(studies.tune:TuneSettings, Config)
  mup-lightning tune size=xl optimizer=muon_kimi run=xl
forecast: the loss of a large model, from a law fitted to small ones, with an interval
  studies.forecast.forecast:run(studies.forecast:ForecastSettings, Config)
  mup-lightning forecast runs/sweeps/ladder size=base tokenizer=bytes steps=2000 run=big
submit: run a training, or a sweep as an array, on a SLURM cluster
  cli.verbs:submit(slurm.options:SubmitSettings, Config)
  mup-lightning submit size=xl strategy=ddp nodes=4 --slurm.gpus 8 --slurm.time 12:00:00 run=xl --dry
  mup-lightning submit --sweep recipes/experiment/FILE.yaml --tasks 8 --slurm.gpus 1
export: write a checkpoint's weights as a plain Hugging Face GPT-2, Llama, Qwen3 or Mixtral, or as they are
  training.export:run(training:ExportSettings)
  mup-lightning export runs/nano-muon_kimi-mup --out exported
generate: text that a model makes of a prompt
  training.generate:run(training:GenerateSettings)
  mup-lightning generate runs/nano-muon_kimi-mup --prompt "It is a truth" --temperature 0.8
recipe: how every hyper-parameter scales with width and depth
  cli.verbs:recipe(cli.verbs:RecipeSettings)
  mup-lightning recipe --optimizer adamw
  mup-lightning recipe --diff completep
config: print the configuration that words and files make, as YAML; trains nothing
  cli.verbs:config(Config)
  mup-lightning config size=xl optimizer=adamw --recipe.lr 0.01 > mine.yaml
plan: what a run would use and cost: values, FLOPs, GPU memory
  cli.verbs:plan(cli.verbs:PlanSettings, Config)
  mup-lightning plan size=xl optimizer=muon_kimi --gpus 8,64 --gpu-memory 40
data prepare: tokenise the data set of a card
  cli.corpora:prepare(cli.corpora:PrepareSettings)
  mup-lightning data prepare data/austen.yaml --tokenizer bytes
  mup-lightning data prepare data/c4.yaml --processes 16
data verify: read every shard and compare it with the manifest
  cli.corpora:verify(cli.corpora:CorpusSettings)
  mup-lightning data verify data/prepared/austen-gpt2
data show: print what a prepared corpus holds
  cli.corpora:show(cli.corpora:CorpusSettings)
  mup-lightning data show data/prepared/austen-gpt2 --json
probe: measure how an optimizer's steps scale, against what its family declares
  studies.probe.measure:run(studies.probe:ProbeSettings)
  mup-lightning probe --optimizer muon
  mup-lightning probe --optimizer pytorch_optimizer:Adan
coord-check: whether features keep their size while the model grows, with a verdict
  studies.coordinates.run:run(studies.coordinates:CheckSettings, Config)
  mup-lightning coord-check optimizer=muon_kimi experiment=coord_check --axis depth --depths 2,4,8,16
  mup-lightning coord-check --all recipes/experiment/coordinates.yaml
  mup-lightning coord-check --table runs/coordinates/*
assumptions: measure over depth what the spectral condition assumes
  studies.assumptions.measure:run(studies.assumptions:AssumptionSettings)
  mup-lightning assumptions --network mlp --optimizer sgd,lion --depths 4,16,64,256
gpu-check: whether training is right on this machine's GPUs, how fast it is, and what memory it takes
  studies.gpu.check:run(studies.gpu:GpuCheckSettings)
  mup-lightning gpu-check --sizes small,xl --minutes 5
  mup-lightning gpu-check --rehearse
report transfer: whether the best value stays where it is while the model grows
  studies.transfer.report:run(studies.transfer.report:TransferSettings)
  mup-lightning report transfer runs/sweeps/lr_width --out runs/sweeps/lr_width
report best: the best value of every group of a sweep
  studies.transfer.report:run_best(studies.transfer.report:BestSettings)
  mup-lightning report best runs/sweeps/optimizers
figure: draw feature norms from runs' TensorBoard logs
  studies.features.report:run(studies.features.report:FigureSettings)
  mup-lightning figure runs/nano-muon_kimi-mup
  mup-lightning figure runs/sp-64x4 runs/sp-256x4 runs/mup-64x4 runs/mup-256x4 --out growth.png
"""
"""Every verb in one word or two, and what it does; the function that does it, in this package, and what that takes: a
`Typed` dataclass whose fields are the verb's own options, the configuration of a run, or both; examples. The name of
an option may be left out if it is the first and has no default. A function returns the exit code, or None: 0."""


@dataclass(frozen=True)
class Verb:
    """A verb of `TABLE`; `run` and `settings` are "module:name", and `config` says whether it takes a configuration."""

    name: str
    summary: str
    run: str
    settings: str
    config: bool
    example: str


VERBS: dict[str, Verb] = {
    name: Verb(name, text, run, takes.removesuffix("Config").rstrip(", "), takes.endswith("Config"), example)
    for name, text, run, takes, example in re.findall(r"(?m)^(\S[^:]*): (.*)\n  (\S+)\((.*)\)\n((?:  .*\n)+)", TABLE)
}

HELP = ("-h", "--help")


def main(argv: list[str] | None = None) -> int:
    """Run one verb, and return the exit code: 0, or what the verb returns (3 and 4: a verdict of FAIL and UNCLEAR).

    1 is a user's mistake; 2 an unknown verb, or a wrong option of a verb that takes no configuration; 130 Ctrl-C.
    """
    spell_signs()
    words = sys.argv[1:] if argv is None else argv
    verb = VERBS.get(" ".join(words[:2])) or VERBS.get("".join(words[:1]))
    if verb is None:
        return _overview(words)
    if signals.in_job():
        signals.catch()
    try:
        return _run(verb, words[len(verb.name.split()) :])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of our output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.filename is None and error.errno not in FAILING_DISK:
            raise
        print(f"error: {f'{error.filename}: ' if error.filename else ''}{error.strerror}", file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError) as error:  # torch says it in several ways, and is not imported here
        text = str(error) or repr(error)
        if not re.search("out of memory|not enough memory|can't allocate memory|MemoryError", text):
            raise
        smaller = "lower data.micro_batch, or choose a smaller model; mup-lightning plan estimates what is needed"
        print(f"error: out of memory ({text.splitlines()[0]}); {smaller}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _run(verb: Verb, argv: list[str]) -> int:
    if not set(HELP).isdisjoint(argv):
        print(help_of(verb), flush=True)
        return 0
    try:
        arguments = parse(verb, argv)
    except UsageError as error:
        joint = " " if str(error).endswith("?") else "; "
        print(f"error: {error}{joint}mup-lightning {verb.name} --help shows what it takes", file=sys.stderr)
        return 1 if verb.config else 2
    return int(_load(verb.run)(*arguments) or 0)


def _load(path: str) -> Any:
    """The function or class "module:name" of this package; None of none."""
    return pkgutil.resolve_name(f"mup_lightning.{path}") if path else None


def parse(verb: Verb, argv: list[str]) -> list[Any]:
    """The arguments of a verb's function: its settings, its configuration, or both.

    Takes `--option VALUE`, `--option=VALUE`, `option=VALUE` and `-c FILE` in any order; they apply left to right.
    Raises UserError naming the option, its value and what was expected.
    """
    settings = _load(verb.settings)
    classes = [cls for cls in (settings, Config if verb.config else None) if cls]
    target = _positional(settings)
    layers: list[Layer] = []
    repeated: dict[str, list[Raw]] = {}
    rest = list(argv)
    while rest:
        item = rest.pop(0)
        flag = item.startswith("-")
        name, equals, value = item.lstrip("-").partition("=")
        if not flag and not re.fullmatch(r"[A-Za-z_][\w.-]*=", name + equals):
            if not target:
                raise UsageError(f"unexpected argument {item!r}")
            name, value = target, item
        name = "config" if item[:2] == "-c" and name == "c" else name.replace("-", "_")
        hint = hint_of(name, classes)
        if flag and not equals:
            # A folder may follow a verb's own flag; what follows a switch of the configuration is its value.
            switched = "." in name and rest and not re.search("^-|=", rest[0])
            if hint is bool and not switched and rest[:1] not in (["true"], ["false"]):
                value = "true"
            elif not rest and hint is None and name not in ("config", *GROUPS, *WORDS):
                raise unknown_option(name, classes)
            elif not rest:
                raise UsageError(f"{item} needs a value")
            else:
                value = rest.pop(0)
        own = settings is not None and name in hints(settings) and not is_dataclass(hint)
        if own and hint in (list[str], list[Path]):  # repeated, while lists of numbers are 1,2,4
            repeated.setdefault(name, []).append(Raw(value))
            layers.append({name: list(repeated[name])})
            target = target or name
        elif own:
            layers.append({name: Raw(value)})
            target = None if name == target else target  # a second one would silently replace it
        elif verb.config:
            layers += word(name, value)
        elif target and name in GROUPS:
            layers.append({target: preset(name, value)})
        else:
            raise unknown_option(name, classes)
    values = merge(layers, classes)
    arguments: list[Any] = []
    if settings is not None:
        own_values = {name: values.pop(name) for name in hints(settings) if name in values}
        for option in options(settings):
            if option.default is MISSING and option.key not in own_values:
                raise UsageError(f"{_shown(option, _positional(settings))} is missing: {option.text}")
        arguments.append(build(settings, own_values, "--"))
    return [*arguments, Config.from_plain(values)] if verb.config else arguments


def _positional(settings: Any) -> str | None:
    """The option whose name may be left out: the first, if it has no default."""
    first = next(iter(options(settings)), None) if settings else None
    return first.key if first and first.default is MISSING else None


def help_of(verb: Verb) -> str:
    """Everything a verb takes, with an example."""
    settings = _load(verb.settings)
    own = list(options(settings)) if settings else []
    positional = _positional(settings)
    usage = f"usage: mup-lightning {verb.name}" + (f" {positional.upper()}" if positional else "")
    usage += " [--option VALUE ...]" * (len(own) > bool(positional))
    usage += " [-c FILE.yaml ...] [size=NAME ...] [--section.key VALUE ...]" * verb.config
    about = re.split(r"\n\s*Attributes:", inspect.getdoc(settings) or "")[0] if settings else ""
    lines = [usage, "", f"{verb.summary[0].upper()}{verb.summary[1:]}.", about, "", "example:", verb.example.rstrip()]
    lines += ["", "options:", *(_explained(option, positional) for option in own)] if own else []
    if verb.config:
        lines += ["", "presets (files in recipes/, which -c FILE takes too):"]
        for folder in sorted(RECIPES.glob("*/")):
            lines.append(_row(f"{folder.name}=NAME", " | ".join(sorted(file.stem for file in folder.glob("*.yaml")))))
        lines += ["", "everyday words:", *(_row(f"{short}=VALUE", f"--{key}") for short, key in WORDS.items())]
        lines += ["", "all keys of the configuration:", *map(_explained, options(Config))]
    return "\n".join(lines)


def _shown(option: Option, positional: str | None) -> str:
    """An option as it is typed."""
    key = option.key if "." in option.key else option.key.replace("_", "-")
    return option.key.upper() if option.key == positional else f"--{key}"


def _explained(option: Option, positional: str | None = None) -> str:
    """An option, what it means, what it can be, and its default."""
    value = option.default
    plain = ",".join(map(str, value)) or "none" if isinstance(value, list | tuple) else as_typed(value)
    default = "required" if value is MISSING else f"default: {plain}"
    return _row(_shown(option, positional), f"{option.text} ({describe(option.hint)}; {default})")


def _row(name: str, text: str) -> str:
    """A name, and the text that explains it in a column of its own."""
    return textwrap.fill(text, 118, initial_indent=f"  {name}  ".ljust(32), subsequent_indent=" " * 32)


def _overview(words: list[str]) -> int:
    """Print the list of verbs, or of those that begin with a word such as `data`; refuse anything else."""
    first, second = [*words, "", ""][:2]
    family = [verb for verb in VERBS if verb.startswith(f"{first} ")]
    known, asked = (family, second) if family else (list(VERBS), first)
    if asked == "--version":
        print(", ".join(f"{name} {found}" for name, found in versions().items() if found))
        return 0
    if asked not in ("", "help", *HELP):
        near = (not family and nearest(asked, known)) or f"; expected one of {', '.join(known)}"
        print(f"error: unknown verb {' '.join(words[: 1 + bool(family)])!r}{near}", file=sys.stderr)
        return 2
    about = "Pre-train GPT-2, Llama, Qwen3 and Mixtral, with hyper-parameters derived from one spectral condition."
    lines = ["usage: mup-lightning VERB [options]", "", about, ""]
    lines += [f"  {verb:<16} {VERBS[verb].summary}" for verb in known]
    lines += ["", "example:", VERBS[known[0]].example, "mup-lightning VERB --help explains a verb."]
    print("\n".join(lines))
    return 0 if asked else 2


if __name__ == "__main__":
    sys.exit(main())
