"""`mup-lightning gpu-check`: its whole flow on a CPU, and what happens where a part fails or time is short."""

from functools import partial

import pytest

from mup_lightning.errors import UserError
from mup_lightning.files import read_json
from mup_lightning.studies.gpu import GpuCheckSettings, check, parts
from mup_lightning.studies.scaling import Verdict

PARTS = check.parts(("small",), ("fsdp",), 2)


@pytest.fixture
def settings(tmp_path):
    return GpuCheckSettings(out=tmp_path / "out", sizes=("small",), rehearse=True)


def test_the_whole_flow_on_a_cpu(settings, capsys):
    assert check.run(settings) == 0
    found = read_json(settings.out / "gpu_check.json", "the check")
    assert set(found["parts"]) == set(PARTS)
    assert not found["left_out"]
    rows = {row["what"]: row for rows in found["parts"].values() for row in rows}
    assert abs(rows["gpt2: loss in bf16, over eager fp32"]["value"]) > 0  # bf16 it was
    assert abs(rows["fsdp: loss over one process without a strategy"]["value"]) < 1e-5
    assert rows["tokens/s"]["value"] > 0
    assert rows["torch's, whole logits: forward and backward"]["value"] > 0
    assert "Muon-Kimi's step over AdamW's" in (settings.out / "gpu_check.md").read_text()
    assert "PASS" in capsys.readouterr().out


def test_a_part_that_fails_costs_no_other(settings, monkeypatch):
    bad = partial(parts.flash, family="no")
    monkeypatch.setattr(check, "parts", lambda *_: {"bad": bad, "good": parts.losses})
    assert check.run(settings) == 3
    found = read_json(settings.out / "gpu_check.json", "the check")["parts"]
    assert found["bad"].startswith("there is no recipes/model/no.yaml")
    assert len(found["good"]) == 3


def test_a_strategy_that_fails_costs_no_other(settings):
    place = check._prepare(settings)
    bad, good = parts.strategies(place, ("zero9", "ddp"), 2)
    assert (bad.verdict, good.verdict) == (Verdict.FAIL, Verdict.PASS)
    assert "trainer.strategy is 'zero9'" in bad.what


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
