"""The command line: help, errors, and the recipes that ship."""

import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from mup_lightning import __version__
from mup_lightning.cli.main import VERBS, main, parse
from mup_lightning.config.load import build_config
from mup_lightning.config.schema import Config
from mup_lightning.training.module import build_training
from mup_lightning.versions import versions

PACKAGE = Path(__file__).resolve().parents[2] / "mup_lightning"
RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def names(folder):
    return sorted(path.stem for path in (RECIPES / folder).glob("*.yaml"))


def compose(*files):
    return build_config([RECIPES / f"{file}.yaml" for file in files])


SHAPES = {"base": (256, 4), "small": (768, 12), "medium": (1024, 24), "large": (1280, 36), "xl": (1600, 48)}


@pytest.mark.parametrize(
    ("size", "optimizer"),
    [("nano", name) for name in names("optimizer")] + [(name, "muon_kimi") for name in names("size")],
)
def test_every_preset_parses_and_builds_on_the_meta_device(size, optimizer):
    for strategy in names("strategy"):
        config = compose("gpt2", f"size/{size}", f"optimizer/{optimizer}", f"strategy/{strategy}")
        assert (config.recipe.optimizer, config.trainer.strategy) == (optimizer, strategy)
    shape = (config.model.width, config.model.depth)
    assert (size == "nano") or (*shape, config.model.context, config.model.head_dim) == (*SHAPES[size], 1024, 64)
    model, built = build_training(config, device="meta")
    parameters = [p for group in built.param_groups for p in group["params"]]
    assert len(parameters) == len(list(model.parameters()))
    assert all(p.device == torch.device("meta") for p in parameters)
    if size == "xl":
        assert sum(p.numel() for p in parameters) == 1_557_686_400  # GPT-2 XL with 50304 instead of 50257 tokens


def test_words_options_and_files_mix_and_the_later_one_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(RECIPES.parent)
    file = tmp_path / "mine.yaml"
    file.write_text("model: {width: 512, depth: 2}\nrecipe: {lr: 1}\n")
    words = "size=xl optimizer=adamw strategy=zero1 trainer.max_steps=50 -c FILE --recipe.lr 0.01 --model.depth=8"
    (config,) = parse(VERBS["train"], [*words.replace("FILE", str(file)).split(), "wd=0.1"])
    model, recipe, trainer = config.model, config.recipe, config.trainer
    assert (model.width, model.depth, recipe.lr, recipe.weight_decay) == (512, 8, 0.01, 0.1)
    assert (recipe.optimizer, trainer.strategy, trainer.max_steps) == ("adamw", "zero1", 50)
    assert parse(VERBS["train"], ["--recipe.lr", "0.01", f"--config={file}"])[0].recipe.lr == 1


def test_a_flag_needs_no_value_and_a_list_may_be_repeated():
    words = "--sweep a.yaml --tasks 2 --dry --set a=1 --set b=2 --slurm.extra [--x,--y] slurm=default".split()
    settings, config = parse(VERBS["submit"], words)
    assert (settings.dry, settings.set, settings.slurm.extra) == (True, ["a=1", "b=2"], [])
    assert config == Config()
    words = "--model.tied False --model.bias no --model.qk_norm --model.parallel seed=1".split()
    (config,) = parse(VERBS["train"], words)
    model = config.model
    assert (model.tied, model.bias, model.qk_norm, model.parallel, config.seed) == (False, False, True, True, 1)


def test_the_version_names_what_a_result_depends_on(capsys):
    assert main(["--version"]) == 0
    assert f"mup-lightning {__version__}" in capsys.readouterr().out
    assert (versions()["git"] is not None) == (RECIPES.parent / ".git").exists()


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ("train --model.widht 3", 1, "unknown option model.widht; did you mean model.width? mup-lightning train"),
        ("train stpes=5", 1, "unknown option stpes; did you mean steps?"),
        ("train --model.width", 1, "--model.width needs a value"),
        ("train adamw", 1, "unexpected argument 'adamw'"),
        ("report transfer a.csv b.csv", 2, "unexpected argument 'b.csv'"),
        ("evaluate --val_tokens 4 runs/a --json runs/b", 2, "unexpected argument 'runs/b'"),
        ("train size=xll", 1, "there is no recipes/size/xll.yaml; size can be: base large medium nano small xl"),
        ("plan --gpus 1,x", 1, "--gpus is 1,x; expected a list, each whole number of at least 1"),
        ("submit --sweep x.yaml", 1, "--sweep needs --tasks N"),
        ("submit --tasks 2", 1, "--tasks, --out, --workers and --set belong to a sweep"),
        ("submit --sweep x.yaml --tasks 2 steps=3", 1, "--sweep takes no keys of a configuration"),
        ("evaluate", 2, "CHECKPOINT is missing: a checkpoint's folder"),
        ("data prepare CARD.yaml --tok bytes", 2, "unknown option tok"),
        ("data nonsense", 2, "unknown verb 'data nonsense'; expected one of data prepare, data verify, data show"),
        ("trian", 2, "unknown verb 'trian'; did you mean train?"),
        ("size=nano train", 2, "unknown verb 'size=nano'; expected one of train"),
        ("sweep a.yaml --dryrun", 2, "unknown option dryrun; did you mean dry"),
        ("train strategy=ddp devices=3 batch=16", 1, "data.batch_size = 16 cannot be divided"),
        ("plan size=nano --recipe.base.router.lr 2", 1, "recipe.base.router is set, but nothing in this model is of"),
        ("train --frobnicate", 1, "unknown option frobnicate"),
        ("train --size", 1, "--size needs a value"),
        ("train --model.tied maybe", 1, "model.tied is maybe; expected true or false"),
        ("plan --model.parallel 2 --json", 1, "model.parallel is 2; expected true or false"),
        ("train run=", 1, "run.name is ''; expected the name of a folder"),
        ("plan --schedule.warmup_steps 50 --trainer.max_steps 50", 1, "schedule.warmup_steps is 50, but"),
        ("plan --gpu h10", 1, "--gpu is h10; expected one of h100, a100, h200, b200; did you mean h100?"),
        ("plan --figure speed.doc", 1, "--figure is speed.doc; expected a file name that ends in .png, .pdf or .svg"),
        (
            "recipe --diff depth-mup --optimizer lion",
            1,
            "depth-mup has no rule for lion; compare with --optimizer adamw",
        ),
        ("recipe --diff mup --variant measured", 1, "--diff compares the published rules; leave --variant"),
        ("recipe --diff mup --time-rule sde", 1, "--diff compares the time rule sde, where there is one"),
        ("recipe --diff pum", 1, "--diff is pum; expected one of "),
        ("recipe --branch 1", 2, "unknown option branch; did you mean branch_depth?"),
        ("recipe adamw", 2, "unexpected argument 'adamw'"),
        ("probe", 1, "expected either --optimizer NAME or --all"),
        ("probe --optimizer torch.optim:LBFGS", 1, "--optimizer torch.optim:LBFGS cannot be probed: its step needs"),
        ("probe --optimizer muon --widths 64,32,16", 1, "--widths is 64,32,16; expected at least three"),
        ('probe --optimizer muon --arguments {"steps":0}', 1, "rules.muon.steps is 0"),
        ('probe --optimizer soap --arguments {"beta3":1}', 1, "unknown option rules.soap.beta3; did you mean"),
    ],
)
def test_a_bad_command_line_is_one_clear_line(words, status, message, refused, monkeypatch):
    monkeypatch.chdir(RECIPES.parent)
    monkeypatch.setattr("mup_lightning.training.launch.start_all", None)  # nothing starts before it is refused
    assert refused(words.split(), status).startswith(message)


def test_a_word_that_a_later_preset_overrides_is_said(capsys, monkeypatch):
    monkeypatch.chdir(RECIPES.parent)
    (config,) = parse(VERBS["train"], "steps=3 batch=2 lr=0.1 size=nano batch=4".split())
    assert (config.trainer.max_steps, config.data.batch_size) == (80, 4)
    said = (
        "note: recipes/size/nano.yaml overrides data.batch_size, trainer.max_steps, set before it; put presets first\n"
    )
    assert capsys.readouterr().err == said
    parse(VERBS["train"], "size=nano steps=3 batch=2 optimizer=adamw".split())
    parse(VERBS["train"], "steps=80 size=nano -c recipes/gpt2.yaml".split())
    assert not capsys.readouterr().err


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried"), None])
def test_too_little_memory_is_one_line(error, capsys, monkeypatch):
    def train(config):
        if error:
            raise error
        torch.empty(10**15)

    monkeypatch.setattr("mup_lightning.cli.verbs.train", train)
    assert main(["train"]) == 1
    assert capsys.readouterr().err.startswith("error: out of memory (")


def test_help_has_an_example_and_imports_no_torch():
    code = (
        "import sys; from mup_lightning.cli.main import VERBS, main\n"
        "for verb in VERBS:\n"
        "    assert main([*verb.split(), '--help']) == 0\n"
        "    assert not {'torch', 'datasets'} & sys.modules.keys(), verb"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("\nexample:\n  mup-lightning ") == len(VERBS)


def printed(monkeypatch, encoding, *words):
    """What a verb prints on a terminal of an encoding."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding, newline="", write_through=True) for _ in range(2))
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        status = main(list(words))
    return status, out.buffer.getvalue().decode(encoding), err.buffer.getvalue().decode(encoding)


def test_help_results_and_errors_in_ascii(monkeypatch):
    monkeypatch.chdir(RECIPES.parent)
    for words, said in (
        *((f"{verb} --help", "example:") for verb in VERBS),
        ("recipe --diff completep", "alpha"),
        ("report best docs/results/lr_width_adamw.csv", "best recipe.lr"),
    ):
        status, text, error = printed(monkeypatch, "ascii", *words.split())
        assert (status, error) == (0, "")
        assert said in text
        assert "\\" not in text  # every sign is spelt
    assert printed(monkeypatch, "latin-1", "recipe", "--diff", "completep")[0] == 0
    status, _, error = printed(monkeypatch, "ascii", "data", "show", "naïve-東-\udcff")
    assert (status, error.count("\n")) == (1, 1)
    assert r"naïve-東-".encode("ascii", "backslashreplace").decode() in error
    plain = [printed(monkeypatch, encoding, "config", "data=naïve")[1] for encoding in ("ascii", "utf-8")]
    assert [yaml.safe_load(text)["data"]["path"] for text in plain] == ["naïve"] * 2
    assert "naïve" in plain[1]


def test_all_signs_that_the_package_writes_are_spelt():
    texts = (file.read_text(encoding="utf-8") for file in PACKAGE.rglob("*.py"))
    signs = {sign for text in texts for sign in re.sub("^SAMPLE = .*", "", text, flags=re.M) if not sign.isascii()}
    signs -= {"▁"}  # SentencePiece's blank, which is looked for and not written
    assert len(signs) > 20
    assert not [sign for sign in signs if "\\" in sign.encode("ascii", "spelt").decode()]
    assert "x̂ᵀ ≤ √λ² ± 1₀…".encode("ascii", "spelt").decode() == "x^^T <= sqrt lambda^2 +- 1_0..."
