"""What is watched is the same with two processes as with one: losses, gradient norms, spikes, rates, and resumes."""

from dataclasses import replace
from pathlib import Path

import pytest

from mup_lightning.config.schema import Config
from mup_lightning.studies.features.runs import read_scalars
from mup_lightning.training.train import train
from tests.distributed.launch import train_together

pytestmark = pytest.mark.timeout(1500)  # the launch, which the first test pays for, on a busy machine
STRATEGIES = ["ddp", "zero0", "zero1", "zero2", "zero3"]
TAG = "train/gradient_norm"
PEAK = 1e9


@pytest.fixture(scope="module")
def config_of(corpus, tmp_path_factory):
    """config_of(strategy, processes, name): 6 steps, points after 4 and 6, a checkpoint after 3."""
    root = tmp_path_factory.mktemp("watched")

    def make(strategy, processes, name, resume=None):
        return Config.from_plain(
            {
                "model": {"width": 32, "depth": 2, "heads": 2, "context": 16},
                "recipe": {"base_width": 16, "base_depth": 1, "eps": 1e-8, "weight_decay": 0.1},
                "data": {"path": str(corpus), "tokenizer": "bytes", "batch_size": 8, "micro_batch": 2},
                "schedule": {"warmup_steps": 2},
                "trainer": {
                    "max_steps": 6,
                    "log_every": 4,
                    "checkpoint_every": 3,
                    "validate_every": 0,
                    "feature_norms_every": 0,
                    "gradient_clip": 0.95,
                    "peak_flops": PEAK,
                    # The limit of a spike is the median of the losses so far: the first losses fall about it.
                    "spike_sigmas": 1e-9,
                    "spike_window": 4,
                    "accelerator": "cpu",
                    "strategy": strategy,
                    "devices": processes,
                },
                "run": {"root": str(root), "name": name, "resume": resume},
            }
        )

    return make


def curves_of(checkpoint):
    return {tag: dict(curve) for tag, curve in read_scalars(Path(checkpoint).parents[1] / "tensorboard").items()}


def spectral(config):
    """Wide enough that spectral norms are iterated, in three steps of six."""
    trainer = replace(config.trainer, spectral_norms_every=2)
    return replace(config, model=replace(config.model, width=80, depth=3), trainer=trainer)


@pytest.fixture(scope="module")
def together(config_of, tmp_path_factory):
    """label -> curves of two processes."""
    straight = {strategy: config_of(strategy, 2, strategy) for strategy in STRATEGIES}
    resumed = {}
    for strategy in ("ddp", "zero3"):
        config = straight[strategy]
        half = Path(config.run.root) / strategy / "checkpoints" / "step_00000003"
        name = f"{strategy}-again"
        resumed[name] = replace(config, run=replace(config.run, name=name, resume=str(half)))
    measured = {
        f"spectral-{strategy}": spectral(config_of(strategy, 2, f"spectral-{strategy}")) for strategy in STRATEGIES
    }
    answers = train_together(straight | resumed | measured, 2, tmp_path_factory.mktemp("watching"))
    return {label: curves_of(answer["checkpoint"]) for label, answer in answers.items()}


@pytest.fixture(scope="module")
def alone(config_of):
    return curves_of(train(config_of("single", 1, "alone"), progress=False).checkpoint)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_gradient_norms_are_those_of_one_process(together, alone, strategy):
    tags = {f"{TAG}{clipped}{rule}" for clipped in ("", "/after_clipping") for rule in ("", "/adamw", "/muon_kimi")}
    assert {tag for tag in alone if tag.startswith(TAG)} == tags
    for tag in tags:
        assert together[strategy][tag] == pytest.approx(alone[tag], rel=1e-5), tag
    assert any(alone[TAG][step] > 0.96 for step in alone[TAG])  # clipped in earnest
    assert all(alone[f"{TAG}/after_clipping"][step] < 0.951 for step in alone[TAG])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_losses_are_the_means_of_all_processes(together, alone, strategy):
    assert list(alone["train/loss"]) == [4, 6]
    assert together[strategy]["train/loss"] == pytest.approx(alone["train/loss"], rel=1e-6)
    assert together[strategy]["train/loss_spikes"] == alone["train/loss_spikes"]


@pytest.mark.parametrize("strategy", ["ddp", "zero3"])
def test_a_resume_between_points_changes_no_curve(together, strategy):
    """The checkpoint after step 3 has the losses of both processes, exactly."""
    straight, again = together[strategy], together[f"{strategy}-again"]
    for tag in ("train/loss", "train/loss_spikes", TAG, f"{TAG}/after_clipping/muon_kimi"):
        assert again[tag] == straight[tag], tag


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_rates_count_the_tokens_and_the_peaks_of_all_processes(together, strategy):
    curves = together[strategy]
    # 6N + 12·L·n·T with N = 256·32 + 2·(12·32² + 13·32) + 2·32
    flops = 6 * (256 * 32 + 2 * (12 * 32**2 + 13 * 32) + 2 * 32) + 12 * 2 * 32 * 16
    for step, speed in curves["train/tokens_per_second"].items():
        assert speed * curves["train/step_seconds"][step] == pytest.approx(8 * 16, rel=1e-5)
        assert curves["train/mfu"][step] == pytest.approx(flops * speed / (2 * PEAK), rel=1e-5)


@pytest.fixture(scope="module")
def spectral_alone(config_of):
    return curves_of(train(spectral(config_of("single", 1, "spectral-alone")), progress=False).checkpoint)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_spectral_norms_are_those_of_one_process(together, spectral_alone, strategy):
    """Each matrix is measured by one of the processes; at ZeRO 1 to 3 it has to come together there first."""
    wanted = {tag: curve for tag, curve in spectral_alone.items() if tag.startswith("spectral/")}
    found = {tag: curve for tag, curve in together[f"spectral-{strategy}"].items() if tag.startswith("spectral/")}
    assert (
        found.keys() == wanted.keys() >= {"spectral/norms/input/token/dw", "spectral/condition/mlp/dw2_dw1/layer_002"}
    )
    for tag, curve in wanted.items():
        assert list(curve) == [0, 2, 4]
        assert min(curve.values()) > 0
        assert found[tag] == pytest.approx(curve, rel=1e-4), tag
