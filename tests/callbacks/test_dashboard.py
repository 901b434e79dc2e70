"""The run's page: panels of all callbacks that find their tags, and texts, written once."""

import re
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from mup_lightning.spectral.recipe import derive
from mup_lightning.spectral.roles import Role
from mup_lightning.studies.features.runs import read_scalars
from mup_lightning.training.train import train


def events(result):
    return EventAccumulator(result.tensorboard).Reload()


def texts(result):
    log = events(result)
    return {
        tag: [e.tensor_proto.string_val[0].decode() for e in log.Tensors(tag)]
        for tag in log.Tags()["tensors"]
        if tag.endswith("/text_summary")
    }


def layouts(result):
    found = []
    for event in events(result).Tensors("custom_scalars__config__"):
        layout = Layout()
        layout.ParseFromString(event.tensor_proto.string_val[0])
        found.append(layout)
    return found


def test_every_panel_finds_tags_and_every_feature_has_one(tiny):
    result = train(tiny(), progress=False)
    tags = read_scalars(Path(result.tensorboard)).keys()
    (layout,) = layouts(result)
    shown = set()
    for category in layout.category:
        for chart in category.chart:
            patterns = [
                *chart.multiline.tag,
                *(tag for s in chart.margin.series for tag in (s.value, s.lower, s.upper)),
            ]
            assert patterns, chart.title
            for pattern in patterns:
                found = {tag for tag in tags if re.match(pattern, tag)}  # as TensorBoard matches
                assert found, (category.title, chart.title, pattern)
                shown |= found
    assert {tag for tag in tags if tag.startswith(("features/", "validation/"))} <= shown


def test_a_panel_has_one_point_of_the_model_alone(tiny):
    (layout,) = layouts(train(tiny(), progress=False))
    panels = [chart for c in layout.category if c.title.startswith("Do features keep") for chart in c.chart]
    assert len(panels) == 8
    tags = read_scalars(Path(tiny().run.root) / "tiny" / "tensorboard")
    for chart in panels:
        (pattern,) = chart.multiline.tag
        points = {tag.split("/")[1] for tag in tags if re.match(pattern, tag)}
        assert len(points) == 1, chart.title


def test_models_of_different_depths_share_their_panels(tiny):
    (shallow,) = layouts(train(tiny(**{"run.name": "a"}), progress=False))
    (deep,) = layouts(train(tiny(**{"run.name": "b", "model.depth": 3}), progress=False))
    assert shallow == deep


def test_the_texts_say_what_training_uses(tiny):
    config = tiny()
    pages = texts(train(config, progress=False))
    assert [tag.split("/")[0] for tag in sorted(pages)] == [
        "1_how_to_read_the_panels",
        "2_this_run",
        "3_its_values",
    ]
    assert all(len(text) == 1 for text in pages.values())
    this = pages["2_this_run/text_summary"][0]
    assert "width 32, depth 2, context 16" in this
    values = pages["3_its_values/text_summary"][0]
    hidden = derive(config.recipe, 32, 2).values[Role.HIDDEN]
    # Width twice the base's: the learning rate of Muon-Kimi falls by the square root of 2, the init's too.
    assert hidden.lr == pytest.approx(config.recipe.lr / 2**0.5)
    assert f"| hidden | muon_kimi | {0.02 / 2**0.5:.6g} | {2**-7 / 2**0.5:.6g} | {0.1 * 2**0.5:.6g} | - |" in values
    assert "residual 0.5" in values
    assert "muon_kimi, k = 2" in values


def test_a_standard_run_says_that_it_is_one(tiny):
    pages = texts(train(tiny(**{"recipe.parametrization": "sp"}), progress=False))
    assert "| recipe.parametrization | sp |" in pages["2_this_run/text_summary"][0]
    assert "no value depends on width or depth" in pages["3_its_values/text_summary"][0]


def test_a_resumed_run_has_its_page_once_and_a_fork_its_own(tiny):
    half = train(tiny(**{"trainer.max_steps": 8}), progress=False)
    fork = train(tiny(**{"run.resume": half.checkpoint, "run.name": "fork"}), progress=False)
    again = train(tiny(**{"run.resume": "last"}), progress=False)
    assert again.steps == fork.steps == 10
    for result in (again, fork):
        assert len(layouts(result)) == 1
        assert [len(pages) for pages in texts(result).values()] == [1, 1, 1]
