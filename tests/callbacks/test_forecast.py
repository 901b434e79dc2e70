"""A run beside its forecast: what is drawn and said, of which run it is, and that a resume changes nothing."""

from dataclasses import asdict

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mup_lightning.callbacks import loss_checks
from mup_lightning.cli.main import VERBS, main, parse
from mup_lightning.config.forecast import Forecast
from mup_lightning.errors import UserError
from mup_lightning.files import write_json
from mup_lightning.plan.plan import plan
from mup_lightning.studies.features.report import read_scalars
from mup_lightning.training.train import train

EMPTY = {"flops": 1e9, "hours": None, "beyond": {}, "law": {}, "held_out": None, "caveats": [], "cells": []}


def forecast_of(config, file, curve=(), **changes):
    """A file with a forecast of a run: 5 nats, give or take 4."""
    values = {
        "parameters": plan(config, device="cpu").parameter_count,
        "target_size": 1.0,
        "tokens": config.tokens,
        "tokenizer": "bytes",
        "corpus": "",
        "loss": 5.0,
        "low": 1.0,
        "high": 9.0,
        "widened": 1.0,
        "curve": list(curve),
        "sources": [],
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, asdict(Forecast(**(EMPTY | values | changes))))
    return str(file)


LEFT = [(0.2, 5.0, 1.0, 9.0), (0.4, 5.0, 1.0, 9.0), (0.45, 1.0, 0.5, 1.5), (0.85, 1.0, 0.5, 1.5), (0.9, 5.0, 1.0, 9.0)]
"""Points that a run of 5 nats leaves at 0.6 of it, and comes back to at the end."""


def texts_of(result):
    events = EventAccumulator(result.tensorboard).Reload().Tensors("4_forecast/text_summary")
    return [(event.step, event.tensor_proto.string_val[0].decode()) for event in events]


def test_a_run_that_leaves_its_forecast_says_so_once_and_that_it_is_back(tiny, tmp_path, capsys, monkeypatch):
    """Also where a resume, at step 9, lies between the two."""
    monkeypatch.setattr(loss_checks, "CURVE_POINTS", 5)  # the loss is smoothed over two steps
    often = {"trainer.checkpoint_every": 3}
    config = tiny(**often)
    config.run.forecast = forecast_of(config, tmp_path / "forecast.json", LEFT)
    result = train(config, progress=False)
    found = read_scalars(tmp_path / "runs/tiny/tensorboard")
    points = {name: dict(found[f"forecast/{name}"]) for name in ("loss", "low", "high", "smoothed")}
    assert {name: list(points[name]) for name in points} == {name: [2, 4, 6, 8, 10] for name in points}
    assert points["low"] == pytest.approx({2: 1.0, 4: 1.0, 6: 0.5, 8: 0.5, 10: 1.0})
    assert points["smoothed"] == pytest.approx(dict(found["train/loss"]))
    assert points["smoothed"][8] > 1.5
    warnings = [line for line in capsys.readouterr().err.splitlines() if "forecast" in line]
    assert [line.split(":")[0] for line in warnings] == ["warning", "note", warnings[2].split(":")[0]]
    assert "has left its forecast's interval, 0.5000 to 1.5000 (step 6)" in warnings[0]
    assert "is back in its forecast's interval, 1.0000 to 9.0000 (step 10)" in warnings[1]
    assert warnings[2] == (
        f"validation loss {result.validation_loss:.4f}; the forecast was 5.000 nats per token, 95 % between 1.000 and "
        "9.000: inside (step 10)"
    )
    assert texts_of(result) == [
        (step, line.rpartition(" (")[0]) for step, line in zip([6, 10, 10], warnings, strict=True)
    ]
    fork = tiny(**often, **{"run.name": "fork", "run.resume": f"{tmp_path}/runs/tiny/checkpoints/step_00000009"})
    fork.run.forecast = config.run.forecast
    assert train(fork, progress=False).validation_loss == result.validation_loss
    assert [line for line in capsys.readouterr().err.splitlines() if "forecast" in line] == warnings[1:]
    assert read_scalars(tmp_path / "runs/fork/tensorboard")["forecast/smoothed"] == found["forecast/smoothed"][-1:]


def test_without_a_curve_only_the_end_is_judged_and_training_is_the_same(tiny, tmp_path, capsys):
    config = tiny(**{"run.name": "beside"})
    config.run.forecast = forecast_of(config, tmp_path / "forecast.json", low=0.5, loss=1.0, high=1.5)
    assert train(config, progress=False).validation_loss == train(tiny(), progress=False).validation_loss
    assert [line.split(":")[1] for line in capsys.readouterr().err.splitlines() if "forecast" in line] == [
        " OUTSIDE (step 10)"
    ]
    assert set(dict(read_scalars(tmp_path / "runs/beside/tensorboard")["forecast/loss"]).values()) == {1.0}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"parameters": 1000}, "the forecast is of another run: its parameters 1,000, this run's"),
        ({"tokens": 1000}, "the forecast is of another run: its tokens 1,000, this run's 1,280"),
        ({"tokenizer": "gpt2"}, "the forecast is of another run: its tokenizer gpt2, this run's bytes"),
        ({"corpus": "abc"}, "the forecast is of another run: its corpus abc, this run's"),
        (None, "forecast.json: parameters is missing"),
    ],
)
def test_another_run_s_forecast_or_none_is_refused_before_anything_is_written(tiny, tmp_path, content, message):
    config = tiny()
    config.run.forecast = forecast_of(config, tmp_path / "forecast.json", **content or {})
    if content is None:
        write_json(tmp_path / "forecast.json", {})
    with pytest.raises(UserError, match=message):
        train(config, progress=False)
    assert not (tmp_path / "runs").exists()


def test_plan_shows_the_forecast(tiny, tmp_path, capsys):
    words = ["tokenizer=bytes", "steps=10", "batch=8", "size=nano"]
    config = parse(VERBS["plan"], words)[1]
    file = forecast_of(config, tmp_path / "forecast.json")
    for option in ("--forecast", "--run.forecast"):
        assert main(["plan", *words, option, file]) == 0
        assert f"Forecast: 5.000 nats per token, 95 % between 1.000 and 9.000 ({file})" in capsys.readouterr().out
    assert main(["plan", *words, "--forecast", file, "--json"]) == 0
    assert '"forecast": {\n  "loss": 5.0,' in capsys.readouterr().out
    assert main(["plan", *words, "steps=11", "--forecast", file]) == 1
    assert "the forecast is of another run: its tokens" in capsys.readouterr().err
