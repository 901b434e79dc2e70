"""What is watched is the same with two processes as with one: losses, gradient norms, spikes, rates, and resumes."""

from pathlib import Path

import pytest

from mup_lightning.studies.features.report import read_scalars
from mup_lightning.training.train import train
from tests.distributed.conftest import HALF, STRATEGIES

pytestmark = pytest.mark.timeout(600)  # the first test of a file pays for all of its runs
TAG, NOISE = "train/gradient_norm", "noise_scale/"
PEAK = 1e9
CHANGES = {
    "trainer.max_steps": 6,
    "trainer.log_every": 4,
    "trainer.peak_flops": PEAK,
    # The limit of a spike is the median of the losses so far: the first losses fall about it.
    "trainer.spike_sigmas": 1e-9,
    "trainer.spike_window": 4,
    "trainer.noise_scale_every": 2,
}
# Wide enough that spectral norms are iterated, in three steps of six.
SPECTRAL = {"model.width": 80, "trainer.max_steps": 6, "trainer.spectral_norms_every": 2}


def curves_of(checkpoint):
    return {tag: dict(curve) for tag, curve in read_scalars(Path(checkpoint).parents[1] / "tensorboard").items()}


@pytest.fixture(scope="module")
def together(config_of, two):
    """Name of a run of two processes -> its curves."""
    configs = [config_of(f"watched-{strategy}", strategy, 2, **CHANGES) for strategy in STRATEGIES]
    for strategy in ("ddp", "zero3"):
        half = f"{configs[0].run.root}/watched-{strategy}/checkpoints/step_{HALF:08d}"
        configs.append(config_of(f"watched-{strategy}-again", strategy, 2, **CHANGES, **{"run.resume": half}))
    configs += [config_of(f"watched-spectral-{strategy}", strategy, 2, **SPECTRAL) for strategy in STRATEGIES]
    return {name.removeprefix("watched-"): curves_of(path) for name, path in two.train(configs).items()}


@pytest.fixture(scope="module")
def alone(config_of):
    return curves_of(train(config_of("watched-alone", "single", 1, **CHANGES), progress=False).checkpoint)


@pytest.fixture(scope="module")
def spectral_alone(config_of):
    return curves_of(train(config_of("watched-spectral", "single", 1, **SPECTRAL), progress=False).checkpoint)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_curves_are_those_of_one_process(together, alone, strategy):
    """Of the noise scale, all processes make the second pass, and the first one's counts: the same sequences."""
    found = together[strategy]
    norms = {f"{TAG}{clipped}{rule}" for clipped in ("", "/after_clipping") for rule in ("", "/adamw", "/muon_kimi")}
    noise = {tag for tag in alone if tag.startswith(NOISE)}
    assert {tag for tag in alone if tag.startswith(TAG)} == norms
    assert {f"{NOISE}variance", f"{NOISE}gradient_square"} <= noise == {tag for tag in found if NOISE in tag}
    for tags, steps, bound in ((norms, [4, 6], 1e-5), (noise, [2, 4, 6], 1e-4), ({"train/loss"}, [4, 6], 1e-6)):
        for tag in tags:
            assert list(alone[tag]) == steps, tag
            assert found[tag] == pytest.approx(alone[tag], rel=bound), tag
    assert found["train/loss_spikes"] == alone["train/loss_spikes"]
    assert any(alone[TAG][step] > 0.96 for step in alone[TAG])  # clipped in earnest
    assert all(alone[f"{TAG}/after_clipping"][step] < 0.951 for step in alone[TAG])
    # Rates count the tokens and the peaks of all: 6N + 12·L·n·T with N = 256·32 + 2·(12·32² + 13·32) + 2·32.
    flops = 6 * (256 * 32 + 2 * (12 * 32**2 + 13 * 32) + 2 * 32) + 12 * 2 * 32 * 16
    for step, speed in found["train/tokens_per_second"].items():
        assert speed * found["train/step_seconds"][step] == pytest.approx(8 * 16, rel=1e-5)
        assert found["train/mfu"][step] == pytest.approx(flops * speed / (2 * PEAK), rel=1e-5)


@pytest.mark.parametrize("strategy", ["ddp", "zero3"])
def test_a_resume_between_points_changes_no_curve(together, strategy):
    """The checkpoint after step 3 has the losses of both processes, exactly."""
    straight, again = together[strategy], together[f"{strategy}-again"]
    for tag in ("train/loss", "train/loss_spikes", TAG, f"{TAG}/after_clipping/muon_kimi"):
        assert again[tag] == straight[tag], tag
    for part in ("variance", "gradient_square"):  # means over all measurements, those before the checkpoint too
        assert again[f"{NOISE}{part}"] == {step: straight[f"{NOISE}{part}"][step] for step in (4, 6)}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_spectral_norms_are_those_of_one_process(together, spectral_alone, strategy):
    """Each matrix is measured by one of the processes; at ZeRO 1 to 3 it has to come together there first."""
    wanted, found = (
        {tag: curve for tag, curve in curves.items() if tag.startswith("spectral/")}
        for curves in (spectral_alone, together[f"spectral-{strategy}"])
    )
    assert (
        found.keys() == wanted.keys() >= {"spectral/norms/input/token/dw", "spectral/condition/mlp/dw2_dw1/layer_001"}
    )
    for tag, curve in wanted.items():
        assert list(curve) == [0, 2, 4]
        assert min(curve.values()) > 0
        assert found[tag] == pytest.approx(curve, rel=1e-4), tag
