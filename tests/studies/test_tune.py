"""`mup-lightning tune`: from a target to a recipe file, on real sweeps of tiny models."""

import re
import shlex
import shutil
from dataclasses import asdict

import pandas as pd
import pytest
import yaml

from mup_lightning.cli.main import main
from mup_lightning.config.load import build_config
from mup_lightning.config.schema import leaves
from tests.studies.tuning import options, proxies, rows_of, target

QUICK = ["--workers", "0"]


@pytest.fixture(scope="module")
def swept(corpus, tmp_path_factory):
    """A finished tune: its sweep file, its folder."""
    folder = tmp_path_factory.mktemp("tune")
    file = proxies(folder)
    assert main(["tune", *options(corpus), "--sweep", file, "--out", str(folder / "out"), *QUICK]) == 0
    return file, folder / "out"


def test_the_file_is_the_target_with_the_value_that_the_table_says(swept, corpus):
    _, out = swept
    rows = rows_of(out)
    assert len({row["config_hash"] for row in rows}) == 3 * 3 * 2  # the base model is on both axes
    assert {row["optimizer"] for row in rows} == {"adamw"}  # the target's own; the default is another
    found, expected = (leaves(asdict(config)) for config in (build_config([out / "tuned.yaml"]), target(corpus)))
    lr = found["recipe.lr"]
    assert {key: value for key, value in found.items() if value != expected[key]} == {
        "recipe.lr": lr, "recipe.base_width": 16, "recipe.base_depth": 1, "run.name": "default-tuned"
    }  # fmt: skip
    best = min((float(row["loss"]), float(row["log2_value"])) for row in rows if row["width"] == "16")[1]
    assert 2 ** (best - 1.5) < lr < 2 ** (best + 1.5)
    comment = " ".join((out / "tuned.yaml").read_text().partition("\n")[2].replace("#", "").split())
    start = "Tuned on small models, for (64, 4). 18 runs of 30 steps, seeds: 2: "
    assert comment.startswith(f"{start}{out}/results.csv ")
    assert "trainer.max_steps is 30 in the proxies, 90 in the target" in comment
    assert "the target's own base shape is (256, 4), the proxies' is (16, 1)" in comment
    assert list(out.glob("transfer_width*.png"))


def test_the_same_command_repeats_nothing_and_the_next_one_trains(swept, corpus, tmp_path, capsys):
    file, out = swept
    before, written = (out / "results.csv").read_text(), (out / "tuned.yaml").read_text()
    assert main(["tune", *options(corpus), "--sweep", file, "--out", str(out), *QUICK]) == 0
    assert ((out / "results.csv").read_text(), (out / "tuned.yaml").read_text()) == (before, written)
    printed = capsys.readouterr().out
    for text in (
        "18 configurations, 18 of them finished before",
        "recipe.lr 0.0",
        "at base shape (16, 1)",
        "doublings to the target",
        "next: the target, width 64, depth 4: 90 steps of ",
    ):
        assert text in printed
    words = shlex.split(printed.splitlines()[-1])
    assert words == ["mup-lightning", "train", "-c", str(out / "tuned.yaml")]
    short = ["--run.root", str(tmp_path), "--trainer.max_steps=1", "--data.batch_size=8", "--data.micro_batch=8"]
    assert main([*words[1:], *short]) == 0


def test_results_that_are_there_serve_too(swept, corpus, tmp_path, capsys):
    """A batch beyond the noise scale of the lowest loss is warned of: the target's has 240 sequences of 32 tokens.

    Heads are compared by their dimension: other ones are a caveat, not another model.
    """
    out, copy = tmp_path / "out", tmp_path / "swept"
    shutil.copytree(swept[1], copy)
    rows = pd.read_csv(copy / "results.csv", dtype=str)
    lowest = rows["loss"].astype(float) == rows["loss"].astype(float).min()

    def tuned(results, scale, *more):
        rows.assign(noise_scale=lowest.map({True: scale, False: ""})).to_csv(copy / "results.csv", index=False)
        assert main(["tune", *options(corpus, *more), "--results", str(results), "--out", str(out)]) == 0
        ours, theirs = ((folder / "tuned.yaml").read_text() for folder in (out, swept[1]))
        assert yaml.safe_load(ours)["recipe"] == yaml.safe_load(theirs)["recipe"]
        return capsys.readouterr().out, ours

    printed, written = tuned(copy, "96")
    assert f"warning: the batch of 7,680 tokens is 80 times the gradient noise scale of {copy}, 96 tokens at" in printed
    assert "gradient noise scale" in written
    printed, written = tuned(copy / "results.csv", "9600", "--model.head_size=32")
    assert "model.head_dim is 16 or 32 in the proxies, 32 in the target" in printed
    assert "gradient noise scale" not in printed + written
    assert not (out / "results.csv").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--recipe.optimizer=lion"], "recipe.optimizer is adamw in the proxy, lion in the target"),
        (["--recipe.init_std=0.01"], "recipe.init_std is 0.02 in the proxy, 0.01 in the target"),
        (["--rules.adamw.beta2=0.99"], "rules.adamw.beta2 is 0.95 in the proxy, 0.99 in the target"),
        (["--run.resume=last"], "run.resume is set, but tune trains small models"),
        (["--set", "seed=1", "--workers", "2"], "runs nothing; leave out --set, --workers"),
        (["--results", "MIXED"], "mixed has sweeps of several values, recipe.lr and recipe.weight_decay; expected"),
        (["--results", "UNKNOWN"], "unknown does not say which configurations its rows have"),
    ],
)
def test_what_does_not_fit_is_refused(swept, corpus, tmp_path, capsys, more, message):
    rows = (swept[1] / "results.csv").read_text()
    changed = rows.splitlines()[-1].replace("recipe.lr", "recipe.weight_decay")
    for name, text in (("mixed", f"{rows}{changed}\n"), ("unknown", rows)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.csv").write_text(text)
    more = [str(tmp_path / item.lower()) if item.isupper() else item for item in more]
    arguments = ["--results", str(swept[1]), "--out", str(tmp_path / "out"), *more]
    assert main(["tune", *options(corpus), *arguments]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_another_value_has_a_file_of_its_own(corpus, tmp_path):
    file = proxies(tmp_path, value="recipe.weight_decay", vary={"seed": [0], "recipe.weight_decay": [0.25, 0.5, 1.0]},
                   grids=[{"set": {"model.depth": 1}, "vary": {"model.width": [16, 32]}}])  # fmt: skip
    arguments = ["--sweep", file, "--out", str(tmp_path), "--set", "trainer.max_steps=5", *QUICK]
    assert main(["tune", *options(corpus, "--recipe.weight_decay=0.1"), *arguments]) == 0
    assert not (tmp_path / "tuned.yaml").exists()
    found = build_config([tmp_path / "tuned_weight_decay.yaml"]).recipe
    assert 0.25 <= found.weight_decay <= 1
    assert found.lr == 2**-7  # the learning rate that it belongs to
