"""`mup-lightning gpu-check`: its whole flow on a CPU, and what happens where a part fails or time is short."""

from functools import partial

import pytest

from mup_lightning.errors import UserError
from mup_lightning.files import read_json
from mup_lightning.studies.gpu import GpuCheckSettings, check, parts

PARTS = check.parts(("small",), ("fsdp",), 2)


@pytest.fixture
def settings(tmp_path):
    return GpuCheckSettings(out=tmp_path / "out", sizes=("small",), rehearse=True)


def test_the_whole_flow_on_a_cpu(settings, monkeypatch, capsys):
    """A part that fails costs no other, nor does a strategy: there is no such family, and no such strategy."""
    every, bad = check.parts, partial(parts.flash, family="no")
    monkeypatch.setattr(
        check, "parts", lambda sizes, names, processes: {"bad": bad, **every(sizes, ("zero9", *names), processes)}
    )
    assert check.run(settings) == 3
    found = read_json(settings.out / "gpu_check.json", "the check")
    assert set(found["parts"]) == {"bad", *PARTS}
    assert not found["left_out"]
    assert found["parts"].pop("bad").startswith("there is no recipes/model/no.yaml")
    rows = {row["what"]: row for rows in found["parts"].values() for row in rows}
    (failed,) = [what for what, row in rows.items() if row["verdict"] == "FAIL"]
    assert failed.startswith("zero9: ends with 1: ")
    assert "trainer.strategy is 'zero9'" in failed
    assert abs(rows["gpt2: loss in bf16, over eager fp32"]["value"]) > 0  # bf16 it was
    assert abs(rows["fsdp: loss over one process without a strategy"]["value"]) < 1e-5
    assert rows["tokens/s"]["value"] > 0
    assert rows["torch's, whole logits: forward and backward"]["value"] > 0
    assert "Muon-Kimi's step over AdamW's" in (settings.out / "gpu_check.md").read_text()
    assert "PASS" in capsys.readouterr().out


def test_without_a_failure_the_exit_status_is_0(settings, monkeypatch):
    monkeypatch.setattr(check, "parts", lambda *_: {"good": parts.losses})
    assert check.run(settings) == 0


def test_parts_for_which_there_is_no_time_are_named(settings):
    settings.minutes = 1e-9
    assert check.run(settings) == 4
    assert len(read_json(settings.out / "gpu_check.json", "the check")["left_out"]) == len(PARTS)


def test_verdicts():
    assert parts.Row("reported", 1.0).verdict is None
    assert [parts.Row("", value, low=0.9, high=1.1).verdict for value in (0.8, 1.0, 1.2)] == ["FAIL", "PASS", "FAIL"]


def test_without_a_gpu_it_says_so(settings):
    settings.rehearse = False
    with pytest.raises(UserError, match="torch finds no GPU here; --rehearse"):
        check.run(settings)
