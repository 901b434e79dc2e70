"""The best value of each group of a sweep's table."""

import csv
import json

import pytest

from mup_lightning.cli.main import main
from mup_lightning.studies.transfer.report import NEEDED

FIXED = dict(
    zip(NEEDED, ("sgd", "mup", "2", "128", "4", "recipe.lr", "width", "128", -3, 0, 6.0, 6.5, 120), strict=True)
)


def table(tmp_path, *rows, needed=NEEDED):
    """A table of rows that differ from `FIXED` in these columns."""
    path = tmp_path / "results.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, dict.fromkeys([*needed, *(key for row in rows for key in row)]))
        writer.writeheader()
        writer.writerows(FIXED | row for row in rows)
    return str(path)


def runs(**losses):
    """Rows from optimizer_exponent="loss of seed 0 loss of seed 1 ...", - for a diverged run."""
    for name, texts in losses.items():
        optimizer, value = name.split("_")
        for seed, loss in enumerate(texts.split()):
            yield {"optimizer": optimizer, "log2_value": -int(value), "seed": seed, "loss": loss.replace("-", "")}


def printed(capsys, path, *options):
    assert main(["report", "best", path, *options]) == 0
    return capsys.readouterr().out.splitlines()


def test_the_best_is_the_lowest_mean_over_seeds(tmp_path, capsys):
    path = table(tmp_path, *runs(sgd_3="6.0 6.2", sgd_2="5.0 5.8", sgd_1="4.9 -", lion_9="5.3", soap_5="-"))
    lines = printed(capsys, path)
    assert lines[0].split() == ["optimizer", "best", "recipe.lr", "loss", "others", "tried"]
    assert lines[1].split() == ["lion", "2^-9", "(edge)", "5.300"]
    assert lines[2].split() == ["sgd", "2^-2", "5.400", "2^-3", "6.100,", "2^-1", "diverged"]
    assert lines[3].split() == ["soap", "-", "diverged", "2^-5", "diverged"]
    assert lines[5:] == ["120 steps; a unigram model has 6.500 nats per token"]
    assert printed(capsys, str(tmp_path)) == lines  # the folder serves, too
    assert "| sgd | 2^-2 | 5.400 | 2^-3 6.100, 2^-1 diverged |" in printed(capsys, path, "--markdown")
    _, best, _ = json.loads("".join(printed(capsys, path, "--json")))
    assert (best["best"], best["edge"], best["losses"]["-1.0"]) == (-2.0, False, None)
    assert best["losses"]["-3.0"] == pytest.approx(6.1)
    assert best["group"] == {key: FIXED[key] for key in list(FIXED)[:6]}


def test_an_unlucky_seed_does_not_spoil_the_values_that_it_has_run(tmp_path, capsys):
    """Seed 0 alone at 2^-4 to 2^-2, where it is lucky; seeds 1 and 2, which are not, at 2^-3 too."""
    own, effects = {-4: 5.02, -3: 5.0, -2: 5.05, -1: 5.3}, (-0.1, 0.05, 0.06)
    rows = [
        {"log2_value": v, "seed": s, "loss": own[v] + effects[s]}
        for v in own
        for s in (range(3) if v in (-3, -1) else (0,))
    ]
    lines = printed(capsys, table(tmp_path, *rows))
    assert lines[1].split()[1] == "2^-3"
    assert lines[-1].startswith("Losses are means, adjusted where values were run with different seeds")


def test_rows_that_differ_in_an_option_are_two_groups_and_those_of_one_run_are_one(tmp_path, capsys):
    rows = [{"loss": loss, "model.layer_norm": norm, "recipe.lr": 0.125} for norm, loss in ((True, 2.4), (False, 3.4))]
    rows = [row | {"config_hash": str(row["loss"]), "axis": axis} for row in rows for axis in ("width", "depth")]
    lines = printed(capsys, table(tmp_path, *rows))
    assert lines[0].split()[:2] == ["model.layer_norm", "best"]
    assert lines[1].split()[:4] == ["True", "2^-3", "(edge)", "2.400"]
    assert lines[2].split()[:4] == ["False", "2^-3", "(edge)", "3.400"]


def test_a_figure_shows_each_variant_by_what_sets_it_apart(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("mup_lightning.studies.style.save", lambda figure, file: drawn.append((figure, file)))
    rows = [{"width": w, "loss": 5 - w / 256, "recipe.base.head.init_std": 1.0} for w in (64, 128)]
    rows += [row | {"recipe.base.head.init_std": 4.0, "seed": seed, "loss": 4} for row in rows for seed in (0, 1)]
    rows += [{"parametrization": "sp", "branch_depth": "", "width": 64, "loss": 6, "recipe.base.head.init_std": 1.0}]
    rows += [{"optimizer": "lion", "width": 32, "loss": "", "recipe.base.head.init_std": 1.0}]  # neither row nor panel
    assert main(["report", "best", table(tmp_path, *rows), "--out", str(tmp_path / "out")]) == 0
    ((figure, file),) = drawn
    assert file == tmp_path / "out/best.png"
    narrow, wide = figure.axes
    assert [ax.get_title() for ax in figure.axes] == ["width 64, depth 4", "width 128, depth 4"]
    assert [label.get_text() for label in narrow.get_yticklabels()] == ["SP", "recipe", "recipe, head.init_std 4"]
    assert len(narrow.containers) == 3
    assert [dot[0].get_xdata()[0] for dot in wide.containers] == [4.0, 4.5]


def test_where_all_diverged_there_is_nothing_to_draw(tmp_path, capsys):
    assert main(["report", "best", table(tmp_path, {"loss": ""}), "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err == "error: every run has diverged, so that --out has nothing to draw\n"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"unigram_loss": "x"}], "row 2: unigram_loss is 'x'; expected a number"),
        ([{"config_hash": "a"}, {"config_hash": "b"}], "row 3 has size 128, 2^-3, seed 0 again (before: "),
        ([{}, {"seed": 1, "steps": 40}], "differ in steps (120 and 40)"),
        ([{}, {"seed": 1, "unigram_loss": 3.1}], "differ in unigram_loss (6.5 and 3.1)"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, capsys, rows, message):
    assert main(["report", "best", table(tmp_path, *rows)]) == 1
    assert message in capsys.readouterr().err
