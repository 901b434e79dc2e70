"""`mup-lightning bench`: options, output, refusals. No test here looks at how long anything took."""

import json
from dataclasses import asdict, replace

import pytest

from mup_lightning.errors import UserError
from tests.benchmarks import __main__ as command
from tests.benchmarks import cases, result, rounds, table, trainer
from tests.benchmarks.machine import machine

TINY = replace(trainer.QUICK, width=16, depth=1, context=8, rounds=2, steps=2, warmup=1)


@pytest.mark.parametrize(("patience", "kept", "said"), [(0.0, ["a", "b"], 2), (1.0, ["b", "d"], 4)])
def test_disturbed_rounds_are_repeated_while_patience_lasts(monkeypatch, patience, kept, said):
    monkeypatch.setattr(rounds, "_wait_for_quiet", lambda deadline: None)
    waiting = [("a", 1.26, "A"), ("b", 0.0, "B"), ("c", 0.5, "C"), ("d", 0.05, "D")]
    lines = []
    found = rounds.take_rounds(replace(TINY, patience=patience), lambda: waiting.pop(0), lines.append)
    assert (found, len(lines)) == (kept, said)
    once_more = "; once more" if patience else ""
    assert lines[0] == f"round 1 of 2: A (other programs kept 1.3 cores busy){once_more}"
    assert lines[-1].endswith("B" if not patience else "D")


def test_patience_runs_out(monkeypatch):
    now = iter([0.0, 0.0, 30.0, 61.0, 61.0, 61.0])
    monkeypatch.setattr(rounds.time, "monotonic", lambda: next(now))
    monkeypatch.setattr(rounds, "_wait_for_quiet", lambda deadline: rounds.time.monotonic())
    found = rounds.take_rounds(replace(TINY, rounds=1, patience=1.0), lambda: ("a", 1.0, "A"), lambda text: None)
    assert found == ["a"]


def test_options_override_a_case(monkeypatch):
    seen = []
    case = replace(cases.CASES["trainer"], run=lambda settings, say: seen.append(settings) or say("a turn") or [])
    monkeypatch.setitem(cases.CASES, "trainer", case)
    said = []
    found = cases.run_case("trainer", said.append, quick=True, rounds=7, threads=1)
    assert (seen[0].rounds, seen[0].threads, seen[0].steps) == (7, 1, trainer.QUICK.steps)
    assert (found.case, found.settings, said) == ("trainer", asdict(seen[0]), ["trainer, a turn"])
    with pytest.raises(UserError, match="--rounds is 0; expected a whole number of at least 1"):
        cases.run_case("trainer", said.append, rounds=0)


def fake_cases(monkeypatch):
    quantities = [
        result.quantity("speed", "tokens/s", {"ours": [2000.0], "bare": [1000.0]}, []),
        replace(result.quantity("cost", "%", {"ours": [0.25]}, []), aims={"ours": "at most 0.5"}),
    ]
    for name, case in cases.CASES.items():
        monkeypatch.setitem(cases.CASES, name, replace(case, run=lambda settings, say: quantities))


def test_json(monkeypatch, capsys, tmp_path):
    fake_cases(monkeypatch)
    assert command.main(["--quick", "--json", "-"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [case["case"] for case in printed["cases"]] == list(cases.CASES)
    assert printed["quick"] is True
    assert printed["machine"].keys() == machine().keys()
    spread = printed["cases"][0]["quantities"][0]["measured"]["ours"]
    assert spread == {"median": 2000.0, "lowest": 2000.0, "highest": 2000.0, "values": [2000.0]}

    assert command.main(["depth", "--json", str(tmp_path / "bench.json")]) == 0
    assert "aim: at most 0.5" in capsys.readouterr().out
    assert [case["case"] for case in json.loads((tmp_path / "bench.json").read_text())["cases"]] == ["depth"]


def test_aims_are_not_shown_where_they_do_not_apply(monkeypatch, capsys):
    fake_cases(monkeypatch)
    command.main(["trainer", "--quick"])
    out = capsys.readouterr().out
    assert "2,000" in out
    assert "aim" not in out


def test_unknown_case(capsys):
    with pytest.raises(SystemExit) as error:
        command.main(["speed"])
    assert error.value.code == 2
    assert (
        "unknown case 'speed'; expected trainer, depth, feature_norms, spectral_norms, optimizers, strategies"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--json", "nowhere/x.json"], "--json is nowhere/x.json, but there is no folder nowhere; make it first"),
        (["--patience", "-1"], "--patience is -1.0; expected minutes, 0 or more"),
        (["--patience", "nan"], "--patience is nan; expected minutes, 0 or more"),
    ],
)
def test_what_would_fail_at_the_end_is_refused_at_once(capsys, options, message):
    with pytest.raises(SystemExit):
        command.main(["depth", *options])
    assert message in capsys.readouterr().err


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit):
        command.main(["--help"])
    assert "mup-lightning bench trainer --json bench.json" in capsys.readouterr().out


def test_tables_line_up():
    quantity = result.quantity(
        "speed", "tokens/s", {"ours": [1.0, 3.0]}, [result.ratio("a", "b", {"a": [1], "b": [2]})]
    )
    text = table.table(result.CaseResult("trainer", "what", {"width": 1}, [quantity]))
    figures = [line for line in text.splitlines() if line.startswith("    ")]
    assert len({len(line) for line in figures}) == 1
    assert figures[0].split() == ["ours", "2.000", "1.000", "3.000"]
