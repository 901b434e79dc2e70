"""The coordinate check at work: what it measures, and that it leaves no trace."""

import json
from collections import Counter
from dataclasses import asdict

import pytest
import torch

from mup_lightning.config.schema import Config
from mup_lightning.data.shards import TokenStore
from mup_lightning.errors import UserError
from mup_lightning.model.taps import POINTS
from mup_lightning.studies.coordinates.cells import Cell, cells
from mup_lightning.studies.coordinates.check import FeatureProbe, measure, observe
from mup_lightning.studies.coordinates.recorder import ChangeRecorder
from mup_lightning.studies.coordinates.run import FILE, Check
from mup_lightning.studies.coordinates.settings import CheckSettings
from mup_lightning.studies.result_write import write
from mup_lightning.training.module import GPT2Module
from mup_lightning.training.train import train

SMALL = CheckSettings(widths=[16, 32, 64], seeds=2, workers=0, alone=True)


def one_cell(config, seed=1):
    return next(cell for cell in cells(config, SMALL) if (cell.width, cell.seed) == (32, seed))


def test_the_recorder_compares_with_what_it_saw_first():
    recorder, x, y = ChangeRecorder(), torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    for feature in (x, x, y):
        recorder.feature("mlp", 1, feature)
        recorder.feature("mlp_scaled", 1, feature, 0.5)
    rms = [float(t.square().mean().sqrt()) for t in (x, y, y - x)]
    assert recorder.norms["mlp/1"] == pytest.approx([rms[0], rms[0], rms[1]])
    assert recorder.changes["mlp/1"] == pytest.approx([0, 0, rms[2]])
    assert recorder.norms["mlp_scaled/1"] == pytest.approx([rms[0] / 2, rms[0] / 2, rms[1] / 2])
    assert recorder.changes["mlp_scaled/1"] == pytest.approx([0, 0, rms[2] / 2])


def test_the_recorder_keeps_what_is_changed_in_place_later():
    recorder, x = ChangeRecorder(), torch.ones(4)
    recorder.feature("residual", 0, x)
    recorder.feature("residual", 0, x.add_(2.0))
    assert recorder.changes["residual/0"] == pytest.approx([0.0, 2.0])


def test_logits_are_whole_and_the_model_s_own(tiny):
    """The logits that are recorded are those of the forward pass; the tiny vocabulary of 256 needs no padding, so one
    that does is made."""
    config = tiny()
    config.model.vocab_size = 250
    model = GPT2Module(config).model
    tokens = torch.randint(250, (3, 16))
    seen = {}
    recorder = ChangeRecorder()
    recorder.feature = lambda point, layer, x, scale=1.0: seen.update({(point, layer): x})
    with torch.no_grad():
        observe(model, tokens, recorder)
        assert torch.equal(seen["logits", None], model(tokens))
    assert seen["logits", None].shape == (3, 16, 250)
    assert {point for point, _ in seen} == set(POINTS)


def test_the_start_is_the_initialisation_on_the_first_validation_windows(tiny):
    """Against hooks on a model built anew, and windows read from the shards by hand."""
    cell = one_cell(tiny(**{"model.dropout": 0.3}))
    run = measure(cell)
    found = {}
    module = GPT2Module(cell.config).eval()  # without dropout
    for i, block in enumerate(module.model.blocks):
        block.register_forward_hook(lambda _, __, out, i=i: found.update({f"residual/{i}": out}))
        block.mlp.register_forward_hook(lambda _, __, out, i=i: found.update({f"mlp/{i}": out}))
    store = TokenStore.open(cell.config.data.path, "val")
    windows = torch.from_numpy(store.windows(torch.arange(512 // 16).numpy() * 16, 16))
    with torch.no_grad():
        found["logits"] = module.model(windows)
    for tap, feature in found.items():
        assert run["norms"][tap][0] == pytest.approx(float(feature.square().mean().sqrt()), rel=1e-4)
        assert run["changes"][tap][0] == 0


def test_the_change_is_that_of_the_trained_weights(tiny):
    """The last round against a run of the same configuration that was saved and loaded from its checkpoint."""
    from pathlib import Path

    from mup_lightning.training import checkpoint as checkpoints
    from mup_lightning.training.evaluate import load_model

    config = one_cell(tiny()).config
    run = measure(Cell("mup", 32, 2, 1, config, 1.0, 1))
    start = GPT2Module(config).model
    result = train(config, progress=False)
    trained = load_model(checkpoints.read(Path(result.checkpoint)), config)
    store = TokenStore.open(config.data.path, "val")
    windows = torch.from_numpy(store.windows(torch.arange(32).numpy() * 16, 16))
    with torch.no_grad():
        before, after = start(windows), trained(windows)
    assert run["norms"]["logits"][-1] == pytest.approx(float(after.square().mean().sqrt()), rel=1e-4)
    assert run["changes"]["logits"][-1] == pytest.approx(float((after - before).square().mean().sqrt()), rel=1e-4)
    assert len(run["norms"]["logits"]) == config.trainer.max_steps + 1 == len(run["losses"]) + 1


def test_measuring_leaves_no_trace_in_the_training(tiny):
    config = one_cell(tiny(**{"model.dropout": 0.3})).config

    class Weights(FeatureProbe):
        def on_train_end(self, trainer, pl_module):
            self.weights = {name: p.detach().clone() for name, p in pl_module.named_parameters()}

    class Blind(Weights):
        def _look(self, module):
            pass

    seeing, blind = Weights(), Blind()
    for callback in (seeing, blind):
        train(config, callbacks=[callback], progress=False, keep=False)
    assert seeing.losses == blind.losses
    assert seeing.recorder.norms
    assert not blind.recorder.norms
    assert all(torch.equal(weight, blind.weights[name]) for name, weight in seeing.weights.items())


def test_cells_differ_in_size_seed_and_parametrization_alone(tiny):
    config = tiny()
    settings = CheckSettings(axis="depth", depths=[1, 2, 4], seeds=2)
    found = cells(config, settings)
    assert {(c.parametrization, c.width, c.depth, c.seed) for c in found} == {
        (parametrization, 32, depth, seed)
        for parametrization in ("mup", "sp")
        for depth in (1, 2, 4)
        for seed in (1, 2)
    }
    assert [c.depth for c in found] == sorted((c.depth for c in found), reverse=True)  # the longest first
    for cell in found:
        values, base = asdict(cell.config), asdict(config)
        assert values["schedule"] == {"warmup_steps": 0, "min_lr": config.recipe.lr}  # a constant rate
        assert (values["model"]["depth"], values["seed"]) == (cell.depth, cell.seed)
        assert values["recipe"] == base["recipe"] | {"parametrization": cell.parametrization}
        assert values["rules"] == base["rules"]
    assert {c.parametrization for c in cells(tiny(**{"recipe.parametrization": "sp"}), settings)} == {"sp"}


def test_sp_has_fewer_seeds_as_a_control_but_not_where_it_was_asked_for(tiny):
    def seeds(parametrization):
        settings = CheckSettings(widths=[16, 32, 64], seeds=4, control_seeds=2)
        found = cells(tiny(**{"recipe.parametrization": parametrization}), settings)
        return Counter((cell.parametrization, cell.width) for cell in found)

    assert seeds("mup") == {("mup", n): 4 for n in (16, 32, 64)} | {("sp", n): 2 for n in (16, 32, 64)}
    assert seeds("sp") == {("sp", n): 4 for n in (16, 32, 64)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.path": "nowhere"}, "nowhere"),
        ({"trainer.strategy": "ddp", "trainer.devices": 2}, "trainer.strategy is ddp"),
        ({"model.heads": 3, "model.width": 48}, "at width 16, depth 2: .*divisible by the heads"),
    ],
)
def test_what_training_would_refuse_is_refused_before_any_training(tiny, changes, message):
    with pytest.raises(UserError, match=message):
        Check(tiny(**changes), SMALL)


def test_a_base_rate_that_diverges_is_inconclusive(tiny):
    result = Check(tiny(**{"recipe.lr": 1e38, "recipe.optimizer": "sgd"}), SMALL).run()
    check = result["checks"]["mup"]
    assert check["verdict"] == "INCONCLUSIVE"
    assert "the base learning rate is too large" in check["sentence"]
    assert len(check["diverged"]) == 6
    json.dumps(result, allow_nan=False)


def test_a_loss_that_only_rises_has_diverged_too(tiny):
    """At this rate the features stay finite, and the loss."""
    run = measure(one_cell(tiny(**{"recipe.lr": 3.0, "trainer.max_steps": 4})))
    assert len(run["losses"]) == 4
    assert max(run["losses"]) > run["losses"][0] + 1
    assert "the loss is" in run["diverged"]


def test_worker_processes_find_the_same(tiny, tmp_path):
    done = []
    config = tiny(**{"trainer.max_steps": 2})
    here = Check(config, SMALL).run(lambda cell, run: done.append(cell.label))
    settings = CheckSettings(widths=[16, 32, 64], seeds=2, workers=2, alone=True)
    check = Check(config, settings)
    assert check.workers == 2
    there = check.run()
    assert len(done) == 6
    for ours, theirs in zip(here["runs"], there["runs"], strict=True):
        assert ours | {"seconds": 0} == theirs | {"seconds": 0}
    assert not write(there, tmp_path / "deep" / "folder" / FILE)
    assert write(there, tmp_path / "deep" / "folder" / FILE)
    saved = json.loads((tmp_path / "deep" / "folder" / "coordinates.json").read_text())
    assert Config.from_plain(saved["config"]).model.width == 16
    assert saved["checks"] == there["checks"]
    assert saved["versions"]["torch"].startswith("2.")
