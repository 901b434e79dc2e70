"""The law is found where it is true, its interval covers, the ladder is read aright, and what cannot be said is not."""

import json
import math
import re
from dataclasses import asdict, replace
from itertools import product

import numpy as np
import pandas as pd
import pytest

from mup_lightning.cli.main import VERBS, main, parse
from mup_lightning.config.forecast import Forecast
from mup_lightning.errors import UserError
from mup_lightning.files import write_json
from mup_lightning.plan.plan import plan
from mup_lightning.studies.forecast import forecast as forecasts
from mup_lightning.studies.forecast.forecast import check, curve
from mup_lightning.studies.forecast.ladder import read_ladder
from mup_lightning.studies.forecast.law import Cell, fit, model_size
from mup_lightning.studies.sweep.run import curve as curve_of
from mup_lightning.studies.transfer.losses import read_losses
from tests.cli.test_make import REPOSITORY

HOFFMANN = {"E": 1.69, "A": 406.4, "alpha": 0.34, "B": 410.7, "beta": 0.28}
"""Published values of approach 3 (Hoffmann et al. 2022, eq. 10)."""

WIDTHS, TOKENS = (512, 724, 1024, 1448), (4e8, 8e8, 16e8, 32e8)


def hoffmann(width, tokens, depth=8):
    N = model_size(width, depth)
    return HOFFMANN["E"] + HOFFMANN["A"] / N ** HOFFMANN["alpha"] + HOFFMANN["B"] / tokens ** HOFFMANN["beta"]


def cells(grid, noise=0.0, chance=None, seeds=1, **more):
    """Cells of the published law, in order of their FLOPs; each loss is the mean over the seeds of noisy ones."""
    found = []
    for width, tokens in grid:
        loss = hoffmann(width, tokens)
        shifted = loss * math.exp(noise / seeds**0.5 * chance.standard_normal()) if noise else loss
        found.append(Cell(width, 8, int(model_size(width, 8)), int(tokens), shifted, **more))
    return sorted(found, key=lambda cell: cell.flops)


GRID = [(width, tokens) for width in WIDTHS for tokens in TOKENS]


def test_the_published_law_is_found_in_its_own_losses():
    law = fit(cells(GRID))
    assert law.values == pytest.approx(HOFFMANN, rel=1e-6)
    loss, low, high = law.predict(model_size(8192, 40), 1e12)
    assert loss == pytest.approx(hoffmann(8192, 1e12, 40))
    assert high - low < 1e-6
    found, widen = check(cells(GRID))
    assert (found["miss_percent"], widen) == (pytest.approx(0.0, abs=1e-6), pytest.approx(1.0))


@pytest.mark.parametrize("tokens", [TOKENS, TOKENS[:1]], ids=["N and D", "N"])
def test_an_outlier_moves_it_little(tokens):
    chance = np.random.default_rng(0)
    own = cells([(width, T) for width in (362, *WIDTHS, 2048) for T in tokens], 0.002, chance)
    own[3] = replace(own[3], loss=own[3].loss * 1.03)
    law = fit(own)
    target = model_size(1448, 8), max(tokens)
    assert law.predict(*target)[0] == pytest.approx(hoffmann(1448, target[1]), rel=0.005)


@pytest.mark.parametrize("seeds", [1, 2])
def test_at_16_times_the_flops_the_interval_covers_what_it_says(seeds):
    """Of single runs of a true law; the noise is known from seeds, or only from how far cells miss the law."""
    chance, inside, widths = np.random.default_rng(seeds), [], []
    width, tokens = WIDTHS[-1] * 2, TOKENS[-1] * 4
    known = {"se": 0.007 / seeds**0.5, "spread": 0.007, "dof": 16.0} if seeds > 1 else {}
    for _ in range(24):
        own = cells(GRID, 0.0025, chance, seeds, **known)
        _, low, high = fit(own).predict(model_size(width, 8), tokens, check(own)[1])
        inside.append(low <= hoffmann(width, tokens) * math.exp(0.0025 * chance.standard_normal()) <= high)
        widths.append(math.log(high / low))
    assert sum(inside) >= 21  # of 24; 23 are expected
    assert np.median(widths) < 0.05


def test_the_interval_is_that_of_one_run():
    """Where the law is known exactly, it is 1.96 standard deviations between seeds."""
    own = [replace(cell, se=1e-6, spread=0.01 * cell.loss, dof=1e6) for cell in cells(GRID)]
    loss, low, high = fit(own).predict(own[5].size, own[5].tokens)
    assert [math.log(high / loss), math.log(loss / low)] == pytest.approx([0.0196, 0.0196], rel=0.15)


def test_a_check_that_misses_widens_the_interval_to_what_it_missed_by():
    own = cells(GRID, 0.001, np.random.default_rng(0))
    own[-1] = replace(own[-1], loss=own[-1].loss * 1.02)
    found, widen = check(own)
    assert widen > 2
    law = fit(own[:-1])
    assert law.predict(own[-1].size, own[-1].tokens, widen)[2] == pytest.approx(own[-1].loss)
    assert found["miss_percent"] == pytest.approx(-2, abs=0.3)


def test_what_varies_alone_or_together_has_a_law_along_its_line():
    fixed = fit(cells([(width, 1e9) for width in WIDTHS]))
    assert set(fixed.values) == {"E", "A", "alpha"}
    assert fixed.values["alpha"] == pytest.approx(0.34, rel=1e-4)
    assert fixed.predict(model_size(4096, 8), 1e9)[0] == pytest.approx(hoffmann(4096, 1e9))
    longer = fit(cells([(1024, tokens) for tokens in TOKENS]))
    assert longer.values["beta"] == pytest.approx(0.28, rel=1e-4)
    together = fit(cells([(width, 20 * model_size(width, 8)) for width in (362, *WIDTHS)]))
    target = model_size(4096, 8)
    assert together.predict(target, 20 * target)[0] == pytest.approx(hoffmann(4096, 20 * target), rel=0.01)
    for law, place, message in (
        (fixed, (target, 2e9), "tokens: 2,000,000,000 in the target, 1,000,000,000 in all of the ladder"),
        (longer, (target, 1e9), "N (12 depth width²): 1,610,612,736 in the target, 100,663,296 in all of the"),
        (together, (target, target), "N (12 depth width²) and tokens grow only together in the ladder"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            law.predict(*place)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (cells([(512, 1e9)]), "the ladder has one size: neither width or depth nor tokens vary"),
        (cells([(width, 1e9) for width in WIDTHS[:3]]), "the ladder has 3 sizes, but E + A N^-α has 3 parameters"),
        (cells(GRID[:2] + GRID[4:6] + GRID[8:9]), "the ladder has 5 sizes, but E + A N^-α + B D^-β has 5 parameters"),
        (
            [replace(cell, loss=6 - cell.loss) for cell in cells(GRID)],
            "losses rise with the model's size in this ladder",
        ),
        ([replace(c, loss=3 + c.tokens / 1e10 - c.size / 1e9) for c in cells(GRID)], "losses rise with tokens in this"),
    ],
    ids=["one size", "few N", "few N and D", "N rises", "D rises"],
)
def test_what_no_law_can_be_fitted_to_is_refused(own, message):
    with pytest.raises(UserError, match=re.escape(message)):
        fit(own)


def test_a_curve_is_the_ladders_own_where_sizes_collapse():
    """Every cell's training loss is E plus what it ends with times one function of the share; so is the target's."""
    share = np.arange(1, 51) / 50
    left = 1 + 3 * (1 - share) / share
    own = [replace(cell, curve=tuple(1.69 + (cell.loss - 1.69) * left)) for cell in cells(GRID)]
    target = parse(VERBS["plan"], ["tokenizer=bytes", "steps=100"])[1]
    points = np.array(curve(own, 1.69, (2.5, 2.4, 2.7), target))
    assert points[:, 0] == pytest.approx(share[5:])  # all of the part lies after the warm-up, a tenth
    assert points[:, 1] == pytest.approx(1.69 + 0.81 * left[5:])
    assert points[-1] == pytest.approx([1.0, 2.5, 2.4, 2.7])
    chance = np.random.default_rng(0)
    noisy = [replace(c, curve=tuple(np.array(c.curve) * np.exp(0.1 * chance.standard_normal(50)))) for c in own]
    spread = np.array(curve(noisy, 1.69, (2.5, 2.4, 2.7), target))
    above = [(found[:, 3] - found[:, 1]) / (found[:, 1] - 1.69) for found in (points, spread)]
    assert np.all(above[1] > above[0])
    assert curve(own[:1], 1.69, (2.5, 2.4, 2.7), target) == []
    assert curve([replace(cell, curve=()) for cell in own], 1.69, (2.5, 2.4, 2.7), target) == []


def test_a_trials_curve_has_the_means_of_equal_parts():
    ends = np.array([math.floor(part * 120 / 50) for part in range(51)])
    assert curve_of([*range(1, 121)], 120, 120) == pytest.approx((ends[1:] + ends[:-1] + 1) / 2)


LADDER = [(width, steps) for width in (32, 64, 128) for steps in (100, 200, 400)]
FIXED = {"parametrization": "mup", "optimizer": "muon_kimi", "branch_depth": 2, "depth": 2, "axis": "width",
         "value": "recipe.lr", "corpus": "abc"}  # fmt: skip


def table(folder, grid=LADDER, *, seeds=2, **changes):
    """The folder with a sweep's results.csv: losses of the law, higher beside 2^-7.

    `changes` are columns, values or functions of the row.
    """
    chance, rows = np.random.default_rng(0), []
    for (width, steps), value, seed in product(grid, (-8, -7, -6), range(seeds)):
        tokens = 16 * 64 * steps
        loss = 1.2 + 30 * model_size(width, 2) ** -0.4 + 60 * tokens**-0.4 + 0.02 * (value + 7) ** 2
        row = FIXED | {
            "width": width,
            "size": width,
            "log2_value": value,
            "seed": seed,
            "loss": loss + 0.002 * chance.standard_normal(),
            "steps": steps,
            "tokens": tokens,
            "parameters": 300 * width + 25 * width**2,
            "trainer.max_steps": steps,
        }
        rows.append(row | {key: made(row) if callable(made) else made for key, made in changes.items()})
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(folder / "results.csv", index=False)
    return folder


TARGET = (
    "tokenizer=bytes batch=16 steps=1600 run=big optimizer=muon_kimi --data.path nowhere --model.context 64 "
    "--model.width 256 --model.depth 2 --model.heads 4"
).split()


def target_of(*words):
    return parse(VERBS["plan"], [*TARGET, *words])[1]


def test_the_verb_says_and_writes_what_it_found(tmp_path, capsys):
    words = [*TARGET, "--out", str(tmp_path / "out"), "--speed", "1e9"]
    assert main(["forecast", str(table(tmp_path)), *words]) == 0
    said = capsys.readouterr().out
    made = Forecast.read(tmp_path / "out/forecast.json")
    target = target_of()
    planned = plan(target, device="cpu")
    assert made.loss == pytest.approx(1.2 + 30 * model_size(256, 2) ** -0.4 + 60 * (16 * 64 * 1600) ** -0.4, rel=0.01)
    assert made.low < made.loss < made.high < made.loss * 1.1
    assert (made.parameters, made.tokens, made.corpus) == (planned.parameter_count, 16 * 64 * 1600, "abc")
    assert made.hours == pytest.approx(planned.flops_of(1600) / 1e9 / 3600)
    assert (made.beyond["N"], made.beyond["tokens"]) == (4, 4)
    assert [cell["log2_value"] for cell in made.cells] == [-7.0] * 9
    for line in (
        r"ladder    9 sizes, 54 runs: N 24,576 to 393,216 \(12 depth width²\), 102,400 to 409,600 tokens",
        r"law       L = E \+ A N\^-alpha \+ B D\^-beta: E 1\.",
        r"check     the largest, \S+ times the FLOPs of the next, from the others: predicted \S+ \[\S+, \S+\], actual ",
        rf"forecast  {re.escape(str(made))}",
        r"beyond    \S+ times in FLOPs, 4 times in N, 4 times in tokens",
        r"curve     none",
    ):
        assert re.search(line, said), (line, said)
    assert (tmp_path / "out/forecast.png").stat().st_size > 10_000
    one = read_ladder([table(tmp_path / "one", seeds=1)], target)
    law = fit(one.cells)
    found = forecasts.forecast(one, law, target, made.parameters, made.tokens)
    assert found.low < made.loss < found.high
    assert "warning: the ladder has one seed" in forecasts.text(found, one, law)
    # Several tables are one ladder, whatever runs they share and however they are split.
    parts = [table(tmp_path / "a", LADDER[:3]), table(tmp_path / "b", LADDER[3:]) / "results.csv"]
    several, whole = (read_ladder(places, target).cells for places in (parts, [tmp_path]))
    assert [(cell.size, cell.tokens) for cell in several] == [(cell.size, cell.tokens) for cell in whole]


def test_a_run_that_diverged_loses_its_value_and_counts_for_its_own_size(tmp_path):
    lost = lambda row: (row["width"], row["steps"], row["log2_value"], row["seed"]) == (64, 200, -7, 1)  # noqa: E731
    changes = {
        "loss": lambda row: "" if lost(row) else row["loss"],
        "tokens": lambda row: 5000 if lost(row) else row["tokens"],
    }
    found = read_ladder([table(tmp_path, **changes)], target_of()).cells
    assert len(found) == 9
    assert {cell.log2_value for cell in found if (cell.width, cell.tokens) == (64, 204800)} <= {-8.0, -6.0}


def test_of_mixed_runs_those_like_the_target_count(tmp_path):
    like = table(tmp_path / "a", **{"schedule.kind": "cosine"})
    other = table(tmp_path / "b", parametrization="sp", branch_depth="", loss=lambda row: row["loss"] + 1)
    found = read_ladder([like, other], target_of())
    assert found.runs == 54
    assert "54 of 108 runs are left out: they are not like the target" in found.caveats
    assert max(cell.loss for cell in found.cells) < 4
    # A batch is a size of its own: at equal N and D the better one counts.
    halves = {
        "data.batch_size": 8,
        "trainer.max_steps": lambda row: 2 * row["steps"],
        "loss": lambda row: row["loss"] - 0.1,
    }
    places = [table(tmp_path / "c", **{"data.batch_size": 16}), table(tmp_path / "d", **halves)]
    better, alone = (read_ladder(own, target_of()).cells for own in (places, places[1:]))
    assert [cell.loss for cell in better] == pytest.approx([cell.loss for cell in alone], abs=1e-3)


def test_what_only_the_target_sets_is_told_of(tmp_path):
    """Both keys came later than the first tables, whose identity leaves them out at their defaults."""
    table(tmp_path, config_hash=lambda row: f"{row['width']}-{row['steps']}")
    for name in read_losses(tmp_path)["config_hash"].unique():
        record = {"config": asdict(target_of()), "result": {"loss": 1, "steps": 1, "seconds": 1, "diverged": ""}}
        write_json(tmp_path / "trials" / f"{name}.json", record)
    assert not any("which the law does not know of" in text for text in read_ladder([tmp_path], target_of()).caveats)
    for key, value in (("model.norm", "rmsnorm"), ("schedule.kind", "wsd")):
        caveats = read_ladder([tmp_path], target_of(f"--{key}", value)).caveats
        (said,) = (text for text in caveats if "which the law does not know of" in text)
        assert re.match(rf"{key} is \w+ in the ladder, {value} in the target", said)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "adamw"}, "recipe.optimizer is adamw in the ladder, muon_kimi in the target; expected a"),
        ({"corpus": lambda row: row["width"]}, "runs that are compared differ in corpus (32 and 64 and 128"),
        ({"model.context": lambda row: 32 + row["seed"]}, "model.context is 32 and 33 in the ladder, 64 in the"),
        ({"value": lambda row: f"recipe.{row['width']}"}, "runs that are compared differ in value"),
        ({"loss": ""}, "no run of the ladder has a loss, all diverged"),
        ({"parameters": "many"}, "row 2: parameters is 'many'; expected a number above 0"),
        ({"data.tokenizer": "gpt2"}, "data.tokenizer is gpt2 in the ladder, bytes in the target"),
        ({"loss": lambda row: row["width"]}, "losses rise with the model's size in this ladder"),
    ],
)
def test_a_ladder_that_cannot_be_used_is_refused_in_one_line(tmp_path, capsys, changes, message):
    assert main(["forecast", str(table(tmp_path, **changes)), *TARGET, "--out", str(tmp_path / "out")]) == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert message in error
    assert not (tmp_path / "out").exists()


def test_a_table_without_sizes_is_refused():
    with pytest.raises(UserError, match="lacks the columns width, depth, parameters, tokens"):
        read_ladder([REPOSITORY / "docs/results/published_losses.csv"], target_of())


def test_a_smaller_target_is_fine_and_other_text_is_not(tmp_path, corpus):
    ladder = read_ladder([table(tmp_path)], target_of())
    law = fit(ladder.cells)
    small = forecasts.forecast(ladder, law, target_of("--model.width", "32", "steps=100"), 1000, 102400)
    assert small.loss == pytest.approx(ladder.cells[0].loss, rel=0.01)
    assert small.beyond["N"] == 0.0625
    assert not any("hardly show" in caveat for caveat in small.caveats)
    few = replace(ladder, cells=ladder.cells[:7])
    caveats = forecasts.forecast(few, fit(few.cells), target_of(), 1000, 102400).caveats
    assert any("7 sizes hardly show where a law of 5 parameters" in caveat for caveat in caveats)
    with pytest.raises(UserError, match="is another corpus than the ladder's"):
        forecasts.forecast(ladder, law, target_of("--data.path", str(corpus)), 1000, 102400)
    known = forecasts.forecast(replace(ladder, corpus=""), law, target_of("--data.path", str(corpus)), 1000, 102400)
    assert len(known.corpus) == 64
    assert any("reads its corpus" in caveat for caveat in known.caveats)


def test_curves_come_from_the_files_of_trials(tmp_path):
    """The mean over the seeds at the best value; a cell has none where one of its runs has none."""
    table(tmp_path, config_hash=lambda row: f"{row['width']}-{row['steps']}-{row['log2_value']}-{row['seed']}")
    for number, row in enumerate(read_losses(tmp_path).to_dict("records")):
        own = [float(row["loss"]) + float(row["seed"]) + place for place in range(49 if number == 3 else 50)]
        result = {"loss": row["loss"], "steps": 1, "seconds": 1.0, "diverged": "", "curve": own}
        write_json(tmp_path / f"trials/{row['config_hash']}.json", {"config": None, "result": result})
    found = read_ladder([tmp_path], target_of()).cells
    assert [len(cell.curve) for cell in found].count(0) == 1
    last = found[-1]
    assert last.curve == pytest.approx([last.loss + 0.5 + place for place in range(50)])


def test_the_repositorys_own_tables_are_forecast(tmp_path, capsys):
    """The figures of docs/guide/forecast.md: a ladder over the width, and one over the depth that does not pay."""
    words = f"data={tmp_path} tokenizer=bytes batch=16 --model.context 128 --model.depth 2 --model.heads null".split()
    said = {}
    for name, optimizer, steps in (("lr_width", "muon_kimi", 400), ("lr_width_adamw", "adamw", 1200)):
        results = str(REPOSITORY / f"docs/results/{name}.csv")
        more = [f"optimizer={optimizer}", f"steps={steps}", "--model.width", "512", "--out", str(tmp_path / name)]
        assert main(["forecast", results, *words, *more]) == 0
        said[name] = json.loads((tmp_path / name / "forecast.json").read_text())["held_out"]["miss_percent"]
    page = (REPOSITORY / "docs/guide/forecast.md").read_text()
    for miss in said.values():
        assert f"{miss:.1f} %" in page
    depth = str(REPOSITORY / "docs/results/lr_depth.csv")
    assert main(["forecast", depth, *words, "steps=400", "--model.width", "32", "--out", str(tmp_path / "depth")]) == 1
    assert "losses rise with the model's size in this ladder" in capsys.readouterr().err
