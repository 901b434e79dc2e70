"""Curves go where run.loggers says, with the same tags and values, and a resumed run goes on where it was."""

import json
import sys
from pathlib import Path

import pytest

from mup_lightning.errors import UserError
from mup_lightning.studies.features.report import read_scalars
from mup_lightning.training.run import RunFolder
from mup_lightning.training.train import after, train
from tests.callbacks.test_forecast import forecast_of
from tests.training.test_resume import crash

EVERY = {"trainer.spectral_norms_every": 4, "trainer.feature_norms_every": 4}


def table(config):
    """Tag -> step -> values, in the order in which they were written."""
    found = {}
    for row in RunFolder(config).rows():
        for tag, value in row.items():
            found.setdefault(tag, {}).setdefault(int(row["step"]), []).append(float(value))
    del found["step"]
    return found


def test_the_table_has_what_tensorboard_has_after_a_crash_too(tiny):
    """Norms of step 4 are measured in step 5, which the run has done before it died, and does again."""
    config = tiny(**EVERY, **{"run.loggers": ["csv", "tensorboard"]})
    crash(config, 7)
    assert max(table(config)["train/loss"]) == 6
    result = train(tiny(**EVERY, **{"run.loggers": ["csv", "tensorboard"], "run.resume": "last"}), progress=False)
    found, curves = table(config), read_scalars(Path(result.tensorboard))
    assert found.keys() == curves.keys()
    assert list(found["features/logits"]) == list(found["spectral/norms/output/head/w"]) == [0, 4, 8]
    for tag, curve in curves.items():
        assert all(len(values) == 1 for values in found[tag].values()), tag
        assert {step: values[0] for step, values in found[tag].items()} == pytest.approx(dict(curve), rel=1e-6), tag


def test_without_tensorboard_nothing_is_missing_but_what_it_alone_shows(tiny, tmp_path):
    config = tiny(**EVERY, **{"run.loggers": ["csv"]})
    config.run.forecast = forecast_of(config, tmp_path / "forecast.json")
    crash(config, 7)
    again = tiny(**EVERY, **{"run.loggers": ["csv", "csv"], "run.resume": "last", "run.forecast": config.run.forecast})
    result = train(again, progress=False)
    assert result.tensorboard is None
    assert "TensorBoard" not in after(again, result)
    assert not (tmp_path / "runs/tiny/tensorboard").exists()
    found = table(config)
    assert list(found["train/bits_per_byte"]) == list(found["forecast/loss"]) == [2, 4, 6, 8, 10]
    assert all(len(values) == 1 for points in found.values() for values in points.values())
    assert found["validation/loss"][10] == [result.validation_loss]
    nothing = tiny(**{"run.loggers": [], "run.name": "none"})
    assert train(nothing, progress=False).validation_loss is not None
    assert {path.name for path in RunFolder(nothing).path.iterdir()} == {"checkpoints", "config.yaml", "result.json"}


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_logger_that_is_not_installed_is_refused_before_anything_is_written(tiny, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, name, None)
    wanted = (
        rf"run.loggers has {name}, which needs {name}, which is not installed: pip install 'mup-lightning\[{name}\]'"
    )
    with pytest.raises(UserError, match=wanted):
        train(tiny(**{"run.loggers": ["csv", name]}))
    assert not (tmp_path / "runs").exists()


def test_mlflow_has_the_same_curves_and_a_resumed_run_is_the_same_one(tiny, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    changes = EVERY | {"run.loggers": ["mlflow", "csv"]}
    crash(tiny(**changes), 7)
    train(tiny(**changes, **{"run.resume": "last"}), progress=False)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("mup_lightning").experiment_id])
    assert (run.info.run_name, run.info.status, run.data.params["model.width"]) == ("tiny", "FINISHED", "32")
    found = table(tiny())
    assert run.data.metrics.keys() == found.keys()
    for tag in ("train/loss", "train/bits_per_byte", "train/gradient_norm", "train/gradient_norm/adamw"):
        history = {point.step: point.value for point in client.get_metric_history(run.info.run_id, tag)}
        assert history == {step: values[0] for step, values in found[tag].items()}
    client.delete_run(run.info.run_id)
    with pytest.raises(UserError, match=r"run\.loggers: mlflow cannot be opened \(.*\); see MLFLOW_TRACKING_URI, or"):
        train(tiny(**changes, **{"run.resume": "last", "trainer.max_steps": 12}), progress=False)


def test_wandb_keeps_a_run_offline_and_continues_it(tiny, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    changes = EVERY | {"run.loggers": ["wandb", "csv"]}
    crash(tiny(**changes), 7)
    train(tiny(**changes, **{"run.resume": "last"}), progress=False)
    other = train(tiny(**changes, **{"run.name": "other"}), progress=False)
    known = [json.loads((tmp_path / f"runs/{name}/loggers.json").read_text())["wandb"] for name in ("tiny", "other")]
    assert known[0] != known[1]
    files = [list((tmp_path / "runs" / name).glob("wandb/offline-run-*/*.wandb")) for name in ("tiny", "other")]
    assert [[file.name for file in own] for own in files] == [[f"run-{known[0]}.wandb"] * 2, [f"run-{known[1]}.wandb"]]
    assert other.finished
    for tag in table(tiny()):
        assert all(tag.encode() in file.read_bytes() for file in files[1]), tag
