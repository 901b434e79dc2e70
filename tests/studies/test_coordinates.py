"""The coordinate check at work: what it measures, and that it leaves no trace."""

from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from mup_lightning.config.schema import ScheduleConfig
from mup_lightning.data.shards import TokenStore
from mup_lightning.errors import UserError
from mup_lightning.model.taps import POINTS
from mup_lightning.studies.coordinates import CheckSettings
from mup_lightning.studies.coordinates import measure as measuring
from mup_lightning.studies.coordinates.measure import FeatureProbe, observe
from mup_lightning.studies.coordinates.run import check, trainings
from mup_lightning.training import checkpoint as checkpoints
from mup_lightning.training.finished import load_model
from mup_lightning.training.module import GPT2Module
from mup_lightning.training.train import train
from tests.families import MIXTRAL, model
from tests.training.test_resume import assert_equal

SMALL = CheckSettings(widths=[16, 32, 64], seeds=2, workers=0, alone=True)


def middle(config):
    """The training at width 32, seed 1."""
    return next(one for one in trainings(SMALL, config)[0] if (one.model.width, one.seed) == (32, 1))


def measure(config):
    return measuring.measure("width", config)


def rms(x):
    return float(x.square().mean().sqrt())


def test_features_are_compared_with_what_was_seen_first():
    probe, x, y = FeatureProbe(), torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    for feature in (x, x, y):
        probe.feature("mlp", 1, feature, 0.5)  # without its multiple
    assert probe.norms == {"mlp/1": pytest.approx([rms(x), rms(x), rms(y)])}
    assert probe.changes == {"mlp/1": pytest.approx([0, 0, rms(y - x)])}
    probe.feature("residual", 0, x)
    probe.feature("residual", 0, x.add_(2.0))  # the model may overwrite a feature
    assert probe.changes["residual/0"] == pytest.approx([0.0, 2.0])


def test_logits_are_whole_and_the_model_s_own(tiny):
    """The logits that are recorded are those of the forward pass; the tiny vocabulary of 256 needs no padding, so one
    that does is made."""
    config = tiny()
    config.model.vocab_size = 250
    model = GPT2Module(config).model
    tokens = torch.randint(250, (3, 16))
    seen = {}
    recorder = FeatureProbe()
    recorder.feature = lambda point, layer, x, multiplier=None: seen.update({(point, layer): x})
    with torch.no_grad():
        observe(model, tokens, recorder)
        assert torch.equal(seen["logits", None], model(tokens))
    assert seen["logits", None].shape == (3, 16, 250)
    assert {point for point, _ in seen} == {point for point in POINTS if not point.endswith("_scaled")}


class Blind(FeatureProbe):
    """Keeps the losses alone."""

    def _look(self, module):
        pass


def test_what_is_measured_is_right_and_leaves_no_trace_in_the_training(tiny, monkeypatch):
    """Against a run of the same configuration that nobody looked into, and hooks on its model before and after it."""
    config, kept = middle(tiny(**{"model.dropout": 0.3, "data.val_tokens": 512})), []

    def keeping(config, **options):
        kept.append(train(config, **options | {"keep": True}))
        return kept[-1]

    monkeypatch.setattr(measuring, "train", keeping)
    run, blind = measure(replace(config, run=replace(config.run, name="seeing"))), Blind()
    trained = train(config, callbacks=[blind], progress=False).checkpoint
    assert_equal(kept[0].checkpoint, trained)
    assert run.losses == blind.losses
    assert len(run.losses) == config.trainer.max_steps
    windows = TokenStore.open(config.data.path, "val").windows(torch.arange(512 // 16).numpy() * 16, 16)
    seen = []
    for network in (GPT2Module(config).model, load_model(checkpoints.read(Path(trained)), config)):
        network.eval()  # without dropout
        found = {}
        for place, block in zip(("first", "last"), network.blocks, strict=True):
            for part, name in ((block, f"residual, {place} block"), (block.mlp, f"mlp, {place} block")):
                part.register_forward_hook(
                    lambda _, __, out, name=name, found=found: found.update(
                        {name: out[0] if isinstance(out, tuple) else out}
                    )
                )
        with torch.no_grad():
            found["logits"] = network(torch.from_numpy(windows))
        seen.append(found)
    norms, changes = run.measured.values()
    assert len(seen[0]) == 5
    for name, start in seen[0].items():
        end = seen[1][name]
        assert [norms[name][0], norms[name][-1], changes[name][-1]] == pytest.approx(
            list(map(rms, (start, end, end - start))), rel=1e-4
        )
        assert changes[name][0] == 0
        assert len(norms[name]) == config.trainer.max_steps + 1
    assert norms["mlp, largest"] == list(map(max, norms["mlp, first block"], norms["mlp, last block"]))


def test_trainings_differ_in_size_seed_and_parametrization_alone(tiny):
    config = tiny()
    found, work, _ = trainings(CheckSettings(axis="depth", depths=[1, 2, 4], seeds=4, control_seeds=2), config)
    seeds = Counter((c.recipe.parametrization, c.model.width, c.model.depth) for c in found)
    assert seeds == {("mup", 32, L): 4 for L in (1, 2, 4)} | {("sp", 32, L): 2 for L in (1, 2, 4)}
    assert work[0] < work[4] < work[8]  # the expected time of depths 1, 2 and 4
    for values, base in ((asdict(c), asdict(config)) for c in found):
        assert asdict(ScheduleConfig(kind="constant", warmup_steps=0)) == values["schedule"]
        assert values["recipe"] | {"parametrization": "mup"} == base["recipe"]
    asked = trainings(replace(SMALL, alone=False), tiny(**{"recipe.parametrization": "sp"}))[0]
    assert Counter(c.recipe.parametrization for c in asked) == {"sp": 6}


def test_the_number_of_experts_is_an_axis(tiny):
    """Every model's router is measured with it; sizes are numbers of experts, counted from the base's."""
    config = tiny(**model(MIXTRAL), **{"recipe.base_experts": 4, "trainer.max_steps": 1})
    settings = CheckSettings(axis="experts", experts=[4, 8, 16], seeds=2, workers=0)
    found = trainings(settings, config)[0]
    experts = [(c.model.width, c.model.depth, c.model.experts) for c in found if c.recipe.parametrization == "mup"]
    assert experts == [(32, 2, size) for size in (4, 4, 8, 8, 16, 16)]
    assert {c.recipe.base_experts for c in found} == {4}
    run = measuring.measure("experts", found[2])
    assert run.shape == (32, 2, 8)
    assert run.measured["changes"]["router, last block"][1] > 0
    with pytest.raises(UserError, match=r"--axis experts needs recipe\.base_experts, .* set recipe\.base_experts 4"):
        trainings(settings, tiny(**model(MIXTRAL)))
    with pytest.raises(UserError, match=r"at width 32, depth 2, experts 1: model\.experts is 1; expected a whole"):
        trainings(replace(settings, experts=[1, 2, 4]), config)


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
        trainings(SMALL, tiny(**changes))


def test_a_loss_that_only_rises_has_diverged_too(tiny):
    """At this rate the features stay finite, and the loss."""
    run = measure(middle(tiny(**{"recipe.lr": 3.0, "trainer.max_steps": 4})))
    assert len(run.losses) == 4
    assert max(run.losses) > run.losses[0] + 1
    assert "the loss is" in run.diverged


def test_worker_processes_find_the_same(tiny):
    config = tiny(**{"trainer.max_steps": 2})
    here, there = (check(replace(SMALL, workers=workers), config) for workers in (0, 2))
    assert len(here.runs) == 6
    assert (here.runs, here.findings) == (there.runs, there.findings)
