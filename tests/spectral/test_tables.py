"""The printed tables, the comparison with what is used elsewhere, and `mup-lightning recipe`."""

import json
from dataclasses import asdict
from itertools import product

import pytest

from mup_lightning.cli.main import main
from mup_lightning.files import write_json
from mup_lightning.spectral import published
from mup_lightning.spectral.families import FAMILIES
from mup_lightning.spectral.published import PUBLISHED, Row, in_our_convention
from mup_lightning.spectral.roles import Role
from mup_lightning.spectral.scale import ONE, N, Ratios
from tests.spectral.test_horizon import LAW

RULE = ["--time-rule", "sde"]


def printed(capsys, *argv):
    assert main(["recipe", *argv]) == 0
    return capsys.readouterr().out


def row(text, name):
    return next(line.split() for line in text.splitlines() if line.startswith(f"{name} "))


def test_texts_of_one_table_and_of_all(capsys):
    one = {name: printed(capsys, "--optimizer", name) for name in ("muon_kimi", "muon", "adamw", "soap")}
    assert "muon_kimi, k = 2" in one["muon_kimi"]
    assert row(one["muon_kimi"], "hidden") == ["hidden", "L^-1", "n^-1", "n^-1/2", "n^1/2", "-"]
    assert "muon_kimi gets the hidden matrices alone" in one["muon_kimi"]
    assert "0.1 times the base learning rate" in one["muon"]
    assert "In training" not in one["adamw"]
    assert "measured, it is the adamw row" in one["soap"]
    every = printed(capsys)
    for name in FAMILIES:
        assert len([line for line in every.splitlines() if line.startswith(f"{name} ")]) >= 2, name
    assert "shampoo  n^-1   L^-2" in every
    assert "All optimizers, k = 1" in printed(capsys, "--branch-depth", "1")
    assert "muon with k = 2, against nanochat" in printed(capsys, "--diff", "nanochat")


def statuses(name, optimizer, branch_depth):
    return {(str(c.role), c.quantity): c.status for c in published.compare(name, optimizer, branch_depth)}


def test_completep_is_our_adamw_but_for_the_decay_of_vectors():
    found = statuses("completep", "adamw", 2)
    assert len(found) == 25
    assert {cell for cell, status in found.items() if status != "agrees"} == {
        ("input_bias", "weight_decay"),
        ("hidden_bias", "weight_decay"),
    }
    differing = {cell for cell, status in statuses("completep", "adamw", 1).items() if status == "differs"}
    assert {(role, key) for role in ("hidden", "hidden_bias") for key in ("multiplier", "lr", "eps")} < differing


def test_mup_is_ours_at_fixed_depth():
    for optimizer, k in product(("adamw", "sgd"), (1, 2)):
        for cell in published.compare("mup", optimizer, k):
            if cell.status != "not specified":
                assert (cell.ours.width, 0) == (cell.theirs.width, cell.theirs.depth), cell
                assert (cell.status == "differs") == (cell.ours.depth != 0)
    assert statuses("mup", "sgd", 2)["hidden", "lr"] == "differs"
    assert statuses("mup", "adamw", 2)["hidden", "eps"] == "not specified"


def test_depth_mup_is_our_one_matrix_recipe():
    for optimizer in ("adamw", "sgd"):
        found = statuses("depth-mup", optimizer, 1)
        assert "differs" not in found.values()
        assert [found["hidden", key] for key in ("multiplier", "init_var", "lr")] == ["agrees"] * 3
        against_two = statuses("depth-mup", optimizer, 2)
        assert [key for (_, key), status in against_two.items() if status == "differs"] == ["multiplier", "lr"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_difference_has_a_reason(name):
    for optimizer, branch_depth in product(PUBLISHED[name].tables, (1, 2)):
        for cell in published.compare(name, optimizer, branch_depth):
            assert bool(cell.why) == (cell.status == "differs") or cell.status == "not specified", cell


def test_the_convention_of_an_equivalent_table_does_not_matter():
    """Tensor Programs V prints muP three times: its table 8 (output multiplier 1/n) must give what table 3 does."""
    output = {
        "adamw": (Row(ONE, ONE / N**2, lr=ONE / N, removed=ONE), Row(ONE / N, ONE, lr=ONE, removed=ONE)),
        "sgd": (Row(ONE, ONE / N**2, lr=ONE / N, removed=ONE), Row(ONE / N, ONE, lr=N, removed=ONE)),
    }
    for optimizer, forms in output.items():
        first, second = (in_our_convention(form, ONE, adaptive=optimizer == "adamw") for form in forms)
        assert first == second


@pytest.mark.parametrize("adaptive", [True, False])
def test_the_symmetry_is_one_of_training(adaptive):
    """A weight in float64, trained for a step under both forms: αW must come out the same, ε and decay included."""
    lr, decay, eps, theta = 0.1, 0.2, 0.3, 7.0
    scales = in_our_convention(Row(ONE, N, ONE, ONE, ONE), ONE, adaptive=adaptive)  # N = θ², so that θ = n^1/2
    moved = {key: value.at(Ratios(theta**2)) for key, value in scales.items() if value}

    def step(multiplier, weight, lr, decay, eps):
        gradient = multiplier * 1.7  # ∂loss/∂W for ∂loss/∂(αW) = 1.7
        direction = gradient / (abs(gradient) + eps) if adaptive else gradient
        return multiplier * (weight - lr * (direction + decay * weight))

    ours = step(moved["multiplier"], 0.5 / theta, lr * moved["lr"], decay * moved["weight_decay"], eps * moved["eps"])
    assert ours == pytest.approx(step(1.0, 0.5, lr, decay, eps), rel=1e-12)


def test_the_text_of_a_comparison():
    text = published.as_text("depth-mup", "adamw", 2)
    assert "n^-1 | n^-1 L^-1/2" in text
    assert "7 cells agree, 2 differ, 16 are not specified." in text
    assert "1 | none" in published.as_text("completep", "adamw", 2)
    plain = published.as_plain("depth-mup", "adamw", 2)
    cell = next(c for c in plain["cells"] if (c["role"], c["quantity"]) == ("hidden", "lr"))
    assert (cell["ours"], cell["theirs"], cell["status"]) == (["-1", "0"], ["-1", "-1/2"], "differs")


def test_rules_over_time_are_compared_with_sde_for_every_role_at_once():
    """Complete(d)P as it is published; nanochat's rate knows no horizon; HyperP's is a fit, and has no weight decay."""
    found = {name: statuses(name, next(iter(p.tables)), 2) for name, p in PUBLISHED.items() if p.over_time}
    keys = {name: {key: status for (_, key), status in cells.items()} for name, cells in found.items()}
    assert {role for cells in found.values() for role, _ in cells} == {"every role"}
    assert keys == {
        "completed-p": {"lr": "agrees", "weight_decay": "agrees", "eps": "differs", "averages": "agrees"},
        "nanochat": {"lr": "differs", "weight_decay": "differs"},
        "hyperp": {"lr": "differs", "weight_decay": "not specified"},
    }
    cells = published.as_plain("completed-p", "adamw", 1)["cells"]
    assert [(cell["ours"], cell["theirs"]) for cell in cells if cell["quantity"] == "eps"] == [
        (["0", "0", "-1/2", "0"], ["0", "0", "-1/2", "1/2"])
    ]
    assert "B^1/2 T^-1/2 | B^1/2 T^-0.32" in published.as_text("hyperp", "muon", 2)


def test_json(capsys):
    found = json.loads(printed(capsys, "--optimizer", "sgd", "--branch-depth", "1", "--json"))
    assert (found["optimizer"], found["branch_depth"]) == ("sgd", 1)
    hidden = {"multiplier": ["0", "-1/2"], "init_var": ["-1", "0"], "lr": ["0", "0"], "weight_decay": ["0", "-1/2"]}
    assert found["roles"]["hidden"] == hidden | {"eps": None}
    assert list(found["roles"]) == list(Role)
    assert [table["optimizer"] for table in json.loads(printed(capsys, "--json"))] == list(FAMILIES)
    assert json.loads(printed(capsys, "--diff", "completep", "--json"))["optimizer"] == "adamw"


def test_batch_and_horizon_are_shown_where_a_time_rule_is_named(capsys, tmp_path):
    """A law's exponents too, for its own optimizer."""
    plain, sde = (json.loads(printed(capsys, "--optimizer", "adamw", "--json", *more)) for more in ([], RULE))
    assert list(plain) == ["optimizer", "branch_depth", "roles"]
    assert sde["averages"] == {"beta1": ["0", "0", "1", "-1"], "beta2": ["0", "0", "1", "-1"]}
    assert sde["roles"]["hidden"]["lr"] == ["-1", "0", "1/2", "-1/2"]
    assert sde["roles"]["hidden"]["multiplier"] == [*plain["roles"]["hidden"]["multiplier"], "0", "0"]
    text = printed(capsys, "--optimizer", "muon", *RULE)
    assert "a fitted law is what to use" in text
    assert "raised to the power B T^-1: adamw beta1, beta2; adan beta1, beta3" in printed(capsys, *RULE)
    write_json(tmp_path / "law.json", asdict(LAW))
    law = ["--time-rule", f"fitted:{tmp_path / 'law.json'}"]
    assert " ".join(row(printed(capsys, *law), "hidden")).count("n^-1/2 B^1/2 T^-3/8") == 1
    assert main(["recipe", *law, "--optimizer", "adamw"]) == 1
    assert "the law of --time-rule is of muon_kimi; leave --optimizer adamw out" in capsys.readouterr().err
