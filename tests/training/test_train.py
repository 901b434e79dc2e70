"""Training as a whole: against a plain loop, across parametrizations, and what it leaves behind."""

import json
import random
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch.torch_version import TorchVersion
from torch.utils._python_dispatch import TorchDispatchMode

from mup_lightning.cli.main import VERBS, main, parse
from mup_lightning.config.load import build_config
from mup_lightning.config.schema import TrainerConfig
from mup_lightning.data.shards import TokenStore
from mup_lightning.data.tokenizer import Tokenizer
from mup_lightning.errors import UserError
from mup_lightning.files import read_json
from mup_lightning.model.gpt2 import GPT2
from mup_lightning.studies.sweep import grid as grid_module
from mup_lightning.training import train as train_module
from mup_lightning.training.evaluate import evaluate
from mup_lightning.training.module import GPT2Module
from mup_lightning.training.run import RunFolder
from mup_lightning.training.train import after, settle, train
from mup_lightning.training.trainer import resolve
from tests.conftest import WORDS
from tests.data.test_tokenizer import byte_level
from tests.training.reference import assert_same_training, train_plainly, weights_of


def trained(config):
    """Train, and return the last weights."""
    return weights_of(Path(train(config).checkpoint))


def test_a_corpus_whose_source_has_changed_is_said(tiny, monkeypatch, capsys):
    """Before a training and, once, before a sweep, which verify it; not by each trial."""
    asked = []
    for module in (train_module, grid_module):
        monkeypatch.setattr(module, "note_changes", asked.append)
    monkeypatch.setattr(train_module, "resume_from", None)  # what comes next
    for verify in (True, False):
        with pytest.raises(TypeError):
            train(tiny(**{"data.verify": verify}))
    checker = grid_module.Checker()
    for seed in (0, 1):
        checker.check(tiny(seed=seed))
    assert asked == [tiny().data.path] * 2


@pytest.mark.parametrize("branch_depth", [1, 2])
def test_equals_a_plain_loop(tiny, branch_depth):
    """Accumulation, clipping (active), schedule, groups and chunked loss change nothing but rounding."""
    config = tiny(
        **{
            "recipe.optimizer": "adamw",
            "recipe.branch_depth": branch_depth,
            "trainer.gradient_clip": 0.5,
            "model.loss_chunk": 7,
        }
    )
    found = trained(config)
    wanted = train_plainly(config, config.trainer.max_steps)
    start = GPT2Module(config).model.state_dict()
    assert_same_training(found, wanted)
    for name in wanted:
        assert (wanted[name] - start[name]).abs().max() > 1e-4, name


def test_gradients_of_the_last_step_are_freed_before_the_forward_pass(tiny, monkeypatch):
    """With the logits and all activations they would be a run's peak of memory. Micro-batches of a step add up."""
    forward, found = GPT2.loss, []

    def loss(model, *arguments):
        if torch.is_grad_enabled():
            found.append([parameter.grad is not None for parameter in model.parameters()])
        return forward(model, *arguments)

    monkeypatch.setattr(GPT2, "loss", loss)
    config = tiny(**{"trainer.max_steps": 2, "schedule.warmup_steps": 1, "data.micro_batch": 4})
    train(config, keep=False)
    assert [set(each) for each in found] == [{False}, {True}] * 2


@pytest.mark.parametrize("optimizer", ["muon_kimi", "adamw"])
def test_at_the_base_shape_all_parametrizations_train_bit_identically(tiny, optimizer):
    def run(name, base, **recipe):
        shape = {"recipe.base_width": base[0], "recipe.base_depth": base[1], "recipe.optimizer": optimizer}
        return trained(tiny(**{"run.name": name, "trainer.max_steps": 4, **shape, **recipe}))

    sp, k1, k2 = (
        {"recipe.parametrization": p, "recipe.branch_depth": k} for p, k in (("sp", 2), ("mup", 1), ("mup", 2))
    )
    at_base = [run(f"base{i}", (32, 2), **recipe) for i, recipe in enumerate((sp, k1, k2))]
    for name, weight in at_base[0].items():
        assert torch.equal(weight, at_base[1][name]), name
        assert torch.equal(weight, at_base[2][name]), name
    away = [run(f"away{i}", (16, 1), **recipe) for i, recipe in enumerate((sp, k1, k2))]
    hidden = "blocks.0.mlp.up.weight"
    assert not torch.equal(away[0][hidden], away[1][hidden])
    assert not torch.equal(away[1][hidden], away[2][hidden])


def test_it_learns_and_keeps_what_repeats_it(tiny, capsys):
    config = tiny(**{"trainer.max_steps": 60, "recipe.lr": 0.02, "data.val_tokens": None})
    result, folder = train(config), RunFolder(config)
    assert "step 1/60: loss 5.554, time left unknown" in capsys.readouterr().err  # no speed that nobody measured
    assert (result.finished, result.steps, result.tokens) == (True, 60, 60 * 8 * 16)
    assert result.validation_loss < result.unigram_loss - 0.1
    saved = read_json(folder.result_file, "a result")
    assert saved == asdict(result)
    assert {"torch", "lightning", "python", "git"} <= saved["versions"].keys()
    assert [path.name for path in sorted(folder.checkpoints.iterdir())] == ["step_00000056", "step_00000060"]
    proposed = next(line for line in after(config, result).splitlines() if "size=base" in line)
    (larger,) = parse(VERBS["train"], proposed.split("    ")[0].split()[2:])
    settle(larger)  # fits together
    assert (larger.model.width, larger.data.path, larger.run.name) == (256, config.data.path, "tiny-base")
    imported = replace(config, model=replace(config.model, weights="theirs"))
    assert "size=base" not in after(imported, result)  # it has the size of its weights
    again = build_config([folder.config_file, {"run.name": "again"}])
    assert train(again).validation_loss == result.validation_loss


def test_validation_loss_is_that_of_the_whole_split(tiny, capsys):
    """Or of its first tokens. Dropout must be off."""
    few = train(tiny(**{"trainer.max_steps": 2, "data.val_tokens": 64, "schedule.warmup_steps": 1}))
    capsys.readouterr()
    assert main(["evaluate", few.checkpoint, "--val-tokens", "64"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (printed["tokens"], printed["run_val_tokens"]) == (64, 64)
    assert printed["validation_loss"] == pytest.approx(few.validation_loss, abs=1e-5)

    config = tiny(**{"trainer.max_steps": 5, "model.dropout": 0.1, "run.name": "all", "data.val_tokens": None})
    result = train(config)
    model = GPT2Module(config).model.eval()
    model.load_state_dict(weights_of(result.checkpoint))
    store = TokenStore.open(config.data.path, "val")
    tokens = torch.from_numpy(store.windows([0], len(store))[0])
    windows = tokens[: (len(tokens) - 1) // 16 * 16 + 1].unfold(0, 17, 16)
    with torch.no_grad():
        wanted = float(F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten()))
    assert result.validation_loss == pytest.approx(wanted, abs=1e-5)
    capsys.readouterr()
    assert main(["evaluate", result.checkpoint, "--batch", "3", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["validation_loss"], again["tokens"]) == (pytest.approx(wanted, abs=1e-5), 16 * len(windows))
    assert main(["evaluate", result.checkpoint, "--data", "nowhere"]) == 1
    assert "no prepared corpus at nowhere" in capsys.readouterr().err


def test_a_nan_stops_before_the_optimizer_step(tiny, monkeypatch):
    step = GPT2Module.training_step

    def poisoned(self, batch, batch_idx):
        loss = step(self, batch, batch_idx)
        if batch_idx == 11:  # the second micro-batch of the sixth step
            loss = loss * float("nan")
            self.micro_losses[-1] = (loss.detach(), batch)
        return loss

    monkeypatch.setattr(GPT2Module, "training_step", poisoned)
    with pytest.raises(UserError, match=r"the loss is nan in step 6(.|\n)*counter 44 \(step 5\)") as error:
        train(tiny())
    assert "counter 40 " not in str(error.value)  # of the first micro-batch, which was sound
    newest = RunFolder(tiny()).checkpoints / "step_00000004"
    assert (newest / "checkpoint.json").is_file()
    assert all(torch.isfinite(weight).all() for weight in weights_of(newest).values())


def test_an_infinite_gradient_stops_too(tiny, monkeypatch):
    config = tiny()
    monkeypatch.setattr("mup_lightning.training.module.total_norm", lambda grads: torch.tensor(float("inf")))
    with pytest.raises(UserError, match="norm of the gradients is inf in step 1"):
        train(config)


@pytest.mark.parametrize(("scale", "wanted"), [(1e-30, 1e-30), (1e-3, 1e-3), (1e3, 1.0), (1e30, 1.0)])
def test_gradients_of_any_size_are_clipped(tiny, scale, wanted):
    module = GPT2Module(tiny(**{"recipe.scale_clip": False}))
    module.micro_losses = [(torch.tensor(0.0), {})]
    parameters = list(module.model.parameters())
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, scale / sum(p.numel() for p in parameters) ** 0.5)
    module._clip(module.hybrid.param_groups)
    assert float(module.gradient_norm) == pytest.approx(scale, rel=1e-4)
    assert float(torch.cat([p.grad.double().flatten() for p in parameters]).norm()) == pytest.approx(wanted, rel=1e-4)


class MadeOfNumbers(TorchDispatchMode):
    """Counts the tensors made of Python's numbers, on whose way to a GPU the CPU would wait."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        MadeOfNumbers.count += func is torch.ops.aten.lift_fresh.default
        return func(*args, **(kwargs or {}))


def test_clipping_sends_nothing_to_the_device(tiny, monkeypatch):
    """A GPU counts its waits in `mup-lightning gpu-check`."""
    clip, seen = GPT2Module._clip, []

    def watched(self, groups):
        with MadeOfNumbers():
            clip(self, groups)
        seen.append(MadeOfNumbers.count)

    monkeypatch.setattr(GPT2Module, "_clip", watched)
    train(tiny(**{"trainer.max_steps": 2}))
    assert seen == [0, 0]


def test_a_run_knows_its_tokenizer(tiny, tmp_path):
    """Its folder has a copy; it is measured on corpora of the same vocabulary alone, wherever they were prepared."""
    words = [" ".join(random.Random(i).choices(WORDS, k=60)) for i in range(80)]
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in words))
    card = "name: own\nlicence: none\nsource: {kind: jsonl, files: docs.jsonl}\nvalidation: {fraction: 0.2}\n"
    (tmp_path / "card.yaml").write_text(card)
    for name, size in (("a", 300), ("b", 301)):
        byte_level(tmp_path / f"{name}.json", size)
        words = ["data", "prepare", str(tmp_path / "card.yaml"), "--tokenizer", str(tmp_path / f"{name}.json")]
        assert main([*words, "--out", str(tmp_path / name), "--quiet"]) == 0
    (tmp_path / "a.json").unlink()
    config = tiny(
        **{"data.path": str(tmp_path / "a"), "data.tokenizer": "corpus", "data.val_tokens": None},
        **{"trainer.max_steps": 4},
    )
    result = train(config)
    folder = Path(config.run.root) / config.run.name
    assert result.validation_loss is not None
    kept = Tokenizer.find(config.data.tokenizer, folder)
    assert (kept.vocab_size, kept.name) == (300, "a")
    (tmp_path / "a").rename(tmp_path / "moved")
    assert evaluate(folder, str(tmp_path / "moved"))["validation_loss"] == pytest.approx(result.validation_loss)
    for path in (str(tmp_path / "b"), config.data.path):
        with pytest.raises(UserError, match=r"another vocabulary, b:|no prepared corpus at"):
            evaluate(folder, path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.path": "/nowhere"}, r"no prepared corpus at /nowhere.*data prepare data/austen.yaml \("),
        ({"data.tokenizer": "gpt2"}, r"another vocabulary.*tokenizer 'bytes'"),
        ({"model.context": 100_000}, r"context of 100000 needs"),
        ({"data.batch_size": 9}, r"data\.batch_size = 9 .* 8 or 12"),
        ({"schedule.warmup_steps": 10}, r"schedule\.warmup_steps is 10"),
        ({"trainer.accelerator": "gpu"}, r"no GPU here"),
        (
            {"trainer.compile": "on"},
            r"trainer\.compile is on, but there is no C\+\+ compiler .*set trainer\.compile off",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(tiny, monkeypatch, changes, message):
    monkeypatch.setenv("PATH", "")  # so that there is no compiler
    if "trainer.accelerator" in changes and torch.cuda.is_available():
        changes, message = (
            {"trainer.accelerator": "gpu", "trainer.devices": 999, "trainer.strategy": "ddp"},
            "GPUs here",
        )
    config = tiny(**changes)
    with pytest.raises(UserError, match=message):
        train(config)
    assert not Path(config.run.root).exists()


def test_compiled_zero3_is_refused_where_torch_gets_it_wrong(monkeypatch):
    trainer = TrainerConfig(strategy="zero3", compile="on", accelerator="cpu")
    resolve(trainer)
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.11.0+cu130"))
    with pytest.raises(
        UserError, match=r"under torch 2.11.0.* loses .*; set trainer.compile off, or install torch 2.13"
    ):
        resolve(trainer)
    resolve(TrainerConfig(strategy="zero2", compile="on", accelerator="cpu"))


def test_sophia_is_not_deterministic_on_a_gpu(tiny, monkeypatch):
    monkeypatch.setattr("mup_lightning.training.train.resolve", lambda trainer: None)  # as if there were one
    with pytest.raises(UserError, match=r"trainer\.deterministic is true, but sophia"):
        train(tiny(**{"trainer.accelerator": "gpu", "trainer.deterministic": True, "recipe.optimizer": "sophia"}))
