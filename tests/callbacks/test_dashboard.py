"""The run's page and docs/guide/tensorboard.md: panels and a table that name the tags of every callback."""

import re
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from mup_lightning.callbacks.dashboard import pages, panels
from mup_lightning.optim.registry import RULES
from mup_lightning.studies.features.report import read_scalars
from mup_lightning.training.module import build_training
from mup_lightning.training.train import train
from tests.callbacks.test_forecast import forecast_of

DOCS = Path(__file__).parents[2] / "docs" / "guide" / "tensorboard.md"
PLACEHOLDERS = {
    "RULE": list(RULES),
    "BRANCH": ["attention", "mlp"],
    "MATRIX": [
        "attention_query",
        "attention_key",
        "attention_value",
        "attention_out",
        "mlp_up",
        "mlp_down",
        "mlp_router",
    ],
    "LAYERS": ["layer_i", "mean", "min", "max"],
}


def expanded(tag):
    """A tag of the table with every word in the place of its placeholders."""
    for placeholder, words in PLACEHOLDERS.items():
        if placeholder in tag.split("/"):
            return [full for word in words for full in expanded(tag.replace(placeholder, word))]
    return [tag]


def written(result):
    """(layouts, title -> texts) in a run's logs."""
    log = EventAccumulator(result.tensorboard).Reload()
    layouts = [Layout.FromString(event.tensor_proto.string_val[0]) for event in log.Tensors("custom_scalars__config__")]
    texts = {
        tag.removesuffix("/text_summary"): [event.tensor_proto.string_val[0].decode() for event in log.Tensors(tag)]
        for tag in log.Tags()["tensors"]
        if tag.endswith("/text_summary")
    }
    return layouts, texts


@pytest.mark.parametrize("switches", [{}, {"model.experts": 3, "model.bias": False}], ids=["gpt2", "with experts"])
def test_the_table_is_what_a_run_writes_and_every_panel_finds_tags(tiny, tmp_path, switches):
    config = tiny(**{"trainer.spectral_norms_every": 4, "trainer.noise_scale_every": 5}, **switches)
    config.run.forecast = forecast_of(config, tmp_path / "forecast.json")
    result = train(config, progress=False)
    tags = read_scalars(Path(result.tensorboard)).keys()
    lines = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in DOCS.open() if line.startswith("| `")]
    assert all(tag and meaning and unit for tag, meaning, unit, _ in lines)
    named = {full for tag, *_ in lines for full in expanded(tag.strip("`"))}
    wanted = {tag for tag in named if tag.split("/")[-1] not in set(RULES) - {"adamw", "muon_kimi"}}
    if not switches:
        wanted = {tag for tag in wanted if not re.search("router|largest_load", tag)}
    assert {re.sub(r"layer_00[01]$", "layer_i", tag) for tag in tags} == wanted

    (layout,), texts = written(result)
    shown = set()
    for category in layout.category:
        for chart in category.chart:
            margins = [tag for series in chart.margin.series for tag in (series.value, series.lower, series.upper)]
            for pattern in [*chart.multiline.tag, *margins]:
                found = {tag for tag in tags if re.match(pattern, tag)}  # as TensorBoard matches
                assert found, (category.title, chart.title, pattern)
                if category.title.startswith("Do features keep"):
                    assert len({tag.split("/")[1] for tag in found}) == 1, chart.title
                shown |= found
    assert {tag for tag in tags if tag.startswith(("features/", "forecast/", "validation/"))} <= shown
    assert len(texts.pop("4_forecast")) == 1
    assert texts == {title: [text] for title, text in pages(config, build_training(config)[0]).items()}


def test_there_is_no_panel_of_what_is_not_logged(tiny):
    off = dict.fromkeys(("feature_norms_every", "spectral_norms_every", "noise_scale_every"), 0)
    off |= {"peak_flops": "off", "spike_sigmas": 0.0}
    layout = panels(tiny(**{f"trainer.{key}": value for key, value in off.items()}).trainer, branch_depth=2)
    assert list(layout) == ["Is it learning?", "Is it stable?", "How fast is it?"]
    assert not any("spikes" in title or "MFU" in title for charts in layout.values() for title in charts)


def test_the_texts_say_what_training_uses(tiny):
    config = tiny()
    texts = pages(config, build_training(config)[0])
    assert list(texts) == ["1_how_to_read_the_panels", "2_this_run", "3_its_values"]
    assert "| model.width | 32 |" in texts["2_this_run"]
    values = texts["3_its_values"]
    # Width twice the base's: the learning rate of Muon-Kimi falls by the square root of 2, the init's too.
    numbers = f"{0.02 / 2**0.5:.6g} | {2**-7 / 2**0.5:.6g} | {0.1 * 2**0.5:.6g} | - |"
    assert f"| hidden (attention, mlp) | muon_kimi | {numbers}" in values
    assert "residual 0.5" in values
    assert "muon_kimi, k = 2" in values

    time = {"time_rule": "sde", "base_batch": 32, "base_tokens": 160}
    timed = tiny(**{f"recipe.{key}": value for key, value in time.items()})
    values = pages(timed, build_training(timed)[0])["3_its_values"]
    assert f"| - | {2**-7 / 2**0.5:.6g} | 0 | {1e-8 / 4:.6g} | beta1 {0.9**0.5:.6g}, beta2 {0.95**0.5:.6g} |" in values
    assert "time rule sde, batch 4 x and tokens 8 x the base's" in values
    assert "B^1/2 T^-1/2" in values

    standard = tiny(**{"recipe.parametrization": "sp"})
    assert "scales no value with width or depth" in pages(standard, build_training(standard)[0])["3_its_values"]


def test_a_resumed_run_has_its_page_once_and_a_fork_its_own(tiny):
    half = train(tiny(**{"trainer.max_steps": 8}), progress=False)
    fork = train(tiny(**{"run.resume": half.checkpoint, "run.name": "fork"}), progress=False)
    again = train(tiny(**{"run.resume": "last"}), progress=False)
    assert again.steps == fork.steps == 10
    for result in (again, fork):
        layouts, texts = written(result)
        assert [len(layouts), *map(len, texts.values())] == [1, 1, 1, 1]
