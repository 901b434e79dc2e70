"""The coordinate check can fail: one wrong factor in one role, and it says so, by the name of a feature that suffers.

Tiny models are noisy, so bands are wider here than by default. The recipe passes them, and every fault that scales like
a forgotten or a doubled factor leaves them.
"""

from dataclasses import replace

import pytest

from mup_lightning.config.schema import Config
from mup_lightning.spectral.roles import Role
from mup_lightning.studies.coordinates import CheckSettings
from mup_lightning.studies.coordinates.report import worst
from mup_lightning.studies.coordinates.run import check as run_check

BANDS = {"growth_at_init": 0.25, "feature_band": 0.25, "change_band": 0.3}
SIZES = {"width": (32, 64, 128), "depth": (2, 4, 8, 16)}
STEPS = {"width": 5, "depth": 10}
SEEDS = {"width": 3, "depth": 4}  # with 2, the 97.5 % point of t is 12.7: nothing could be told


def faulty(axis, what, role, power):
    """`Config.derive` with one value too large by (size / base size)^power."""
    right = Config.derive

    def derive(self):
        recipe, base = right(self), self.recipe
        ratio = self.model.width / base.base_width if axis == "width" else self.model.depth / base.base_depth

        def wrong(values):
            return replace(values, **{what: getattr(values, what) * ratio**power})

        def exactly(info):
            return wrong(recipe.of(info)) if info.role is role else recipe.of(info)

        if role is None:
            return replace(recipe, multipliers=wrong(recipe.multipliers))
        return replace(recipe, values=recipe.values | {role: wrong(recipe.values[role])}, exactly=exactly)

    return derive


@pytest.fixture
def check(corpus):
    def run(axis, bias=True, rounds=1, **recipe):
        values = {
            "model": {"width": 32, "depth": 2, "context": 32, "tied": False, "bias": bias},
            "recipe": {"base_width": 32, "base_depth": 2, **recipe},
            "data": {"path": str(corpus), "tokenizer": "bytes", "batch_size": 8, "micro_batch": 8, "val_tokens": 512},
            "trainer": {"max_steps": STEPS[axis], "accelerator": "cpu"},
        }
        sizes = {f"{axis}s": list(SIZES[axis])}
        settings = CheckSettings(axis=axis, seeds=rounds * SEEDS[axis], workers=0, alone=True, **BANDS, **sizes)
        return run_check(settings, Config.from_plain(values)).asked

    return run


@pytest.mark.parametrize(("axis", "bias"), [("width", True), ("depth", False)])
def test_the_recipe_passes(check, axis, bias):
    found = check(axis, bias, rounds=2)  # a PASS asks for the narrower interval
    assert found.verdict == "PASS", found.sentence


BRANCH = ("attention", "mlp", "residual")

FAULTS = [
    # axis, what, role (None: a multiplier), power of the ratio, whether the model has biases, who may be named
    ("width", "lr", Role.HIDDEN, 0.5, False, BRANCH),
    ("width", "lr", Role.INPUT, 1.0, True, ("embedding",)),
    ("width", "lr", Role.OUTPUT, 1.0, True, (*BRANCH, "logits")),  # a head that overshoots stirs all that is below it
    ("width", "lr", Role.HIDDEN_BIAS, 1.0, True, BRANCH),
    ("width", "init_std", Role.HIDDEN, 0.5, True, BRANCH),
    ("width", "init_std", Role.INPUT, 0.5, True, ("embedding",)),
    ("width", "init_std", Role.OUTPUT, -0.5, True, ("logits",)),
    ("width", "input", None, 0.5, True, ("embedding",)),
    ("width", "residual", None, -1.0, True, ("residual",)),
    ("width", "output", None, 1.0, True, ("logits",)),
    ("depth", "residual", None, 1.0, True, ("residual",)),
    ("depth", "lr", Role.HIDDEN, 0.5, False, BRANCH),
    ("depth", "init_std", Role.HIDDEN, 0.5, True, BRANCH),
]
"""Biases hide the learning rate of the matrices next to them; without them tiny branches hide behind the embedding."""


@pytest.mark.parametrize(("axis", "what", "role", "power", "bias", "names"), FAULTS)
def test_one_wrong_factor_fails_by_name(check, monkeypatch, axis, what, role, power, bias, names):
    monkeypatch.setattr(Config, "derive", faulty(axis, what, role, power))
    found = check(axis, bias=bias)
    assert found.verdict == "FAIL", found.sentence
    assert worst(found.lines).label[0].split(",")[0] in names, found.sentence


def test_sp_fails(check):
    assert check("width", parametrization="sp").verdict == "FAIL"


def test_k_1_fails_over_depth_because_its_branches_stop_learning(check):
    """A Transformer's branches have two matrices and more: at k = 1 their own change shrinks like 1/√L."""
    found = check("depth", branch_depth=1)
    assert found.verdict == "FAIL"
    assert "L^-0." in found.sentence
    assert worst(found.lines).label[0].split(",")[0] in ("mlp", "attention")
