"""The probe on optimizers whose exponents are known: judged rightly, or refused with one clear line."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mup_lightning.errors import UserError
from mup_lightning.spectral.families import FAMILIES, Family
from mup_lightning.spectral.roles import Role
from mup_lightning.studies.probe.external import foreign_candidate
from mup_lightning.studies.probe.measure import build_network, measure, step_sizes
from mup_lightning.studies.probe.ours import our_candidate
from mup_lightning.studies.probe.run import probe
from mup_lightning.studies.probe.settings import QUICK, ProbeSettings
from mup_lightning.studies.probe.task import batches

SMALL = replace(QUICK, widths=(64, 128, 256), steps=5)


def foreign(name, settings=SMALL, **arguments):
    return foreign_candidate(f"tests.studies.probe_optimizers:{name}", arguments, settings)


def declared(candidate, family):
    return replace(candidate, families=dict.fromkeys(candidate.roles, FAMILIES[family]))


@pytest.mark.parametrize(("name", "family"), [("Sign", "adamw"), ("Orthogonal", "muon"), ("Known", "sgd")])
def test_known_optimizers_are_what_they_are(name, family):
    """Sign: 0, 1, 1 in width; U Vᵀ: -1/2, 0, 1/2; the gradient: -1, 0, 0, and -1 in depth for hidden ones."""
    result = probe(foreign(name), SMALL)
    wanted = {
        "adamw": {"input": (0, 0), "hidden": (1, 0), "output": (1, 0), "hidden_bias": (0, 0)},
        "muon": {"input": (-0.5, 0), "hidden": (0, 0), "output": (0.5, 0), "hidden_bias": (0, 0)},
        "sgd": {"input": (-1, 0), "hidden": (0, -1), "output": (0, 0), "hidden_bias": (-1, -1)},
    }[family]
    for role, (width, depth) in wanted.items():
        for window in ("first", "later"):
            fits = result["fits"][window][role]
            assert fits["width"]["exponent"] == pytest.approx(width, abs=0.12), (role, window)
            assert fits["depth"]["exponent"] == pytest.approx(depth, abs=0.12), (role, window)
    kind = {"adamw": "sign", "muon": "orthogonal", "sgd": "plain gradient"}[family]
    assert result["verdict"] == "proposed"
    assert result["proposal"]["like"] == kind
    assert kind in result["sentence"]


def test_a_wrong_implementation_is_found_out():
    """sign(G)·√n, declared as a sign: the exponents are half a power too large."""
    result = probe(declared(foreign("SignRoot"), "adamw"), SMALL)
    assert result["verdict"] == "inconsistent"
    wrong = {(cell["role"], cell["axis"]) for cell in result["cells"] if cell["verdict"] == "inconsistent"}
    assert {("hidden", "width"), ("output", "width"), ("hidden_bias", "width")} <= wrong
    assert "not what its family declares" in result["sentence"]


@pytest.mark.parametrize("branch_depth", [1, 2])
def test_a_wrong_declaration_is_found_out(branch_depth):
    """Muon's measured exponents fit its own direction, and not that of a sign."""
    settings = replace(SMALL, branch_depth=branch_depth)
    good = probe(our_candidate("muon", branch_depth), settings)
    assert good["verdict"] == "consistent", good["sentence"]
    assert len(good["cells"]) == 12
    fault = FAMILIES | {"muon": Family("muon", FAMILIES["adamw"].direction, whole_matrix=True)}
    bad = probe(our_candidate("muon", branch_depth, families=fault), settings)
    assert bad["verdict"] == "inconsistent"
    assert bad["fits"] == good["fits"]


@pytest.mark.parametrize("branch_depth", [1, 2])
def test_the_gradient_s_depth_exponents_depend_on_the_branch(branch_depth):
    """k = 1: -1/2, because the branch multiplier is 1/√L; k = 2: -1. By the condition, without the recipe's code."""
    settings = replace(SMALL, branch_depth=branch_depth)
    fits = probe(our_candidate("sgd", branch_depth), settings)["fits"]["later"]
    assert fits["hidden"]["depth"]["exponent"] == pytest.approx(-1 / 2 if branch_depth == 1 else -1, abs=0.1)


@pytest.mark.parametrize("optimizer", FAMILIES)
def test_all_of_ours_can_be_probed(optimizer):
    settings = replace(QUICK, widths=(8, 16, 32), depths=(1, 2, 3), seeds=2)
    calls = []
    result = probe(our_candidate(optimizer, 2), settings, lambda: calls.append(1))
    assert len(calls) == len(settings.shapes) * settings.seeds * settings.steps == 60
    assert ("hidden" in result["fits"]["first"]) == (optimizer != "soap")  # whose first step changes nothing
    assert set(result["fits"]["later"]) == {
        str(role) for role in Role if not (FAMILIES[optimizer].whole_matrix and role.is_vector)
    }
    for network in result["networks"]:
        assert all(np.isfinite(network["losses"]))


def test_the_first_direction_of_sgd_is_the_gradient_itself():
    settings = replace(SMALL, steps=5)
    found = measure(our_candidate("sgd", 2), settings, 64, 4, seed=3)
    network = build_network(settings, 64, 4, seed=3)
    x, labels = next(batches(3, settings.batch, settings.inputs, settings.classes))
    loss = F.cross_entropy(network(x), labels)
    loss.backward()
    assert found["losses"][0] == pytest.approx(loss.item(), rel=1e-6)
    gradient = {name: p.grad.double().numpy() for name, p in network.named_parameters()}

    def rms_norm(role):
        """√(n_in/n_out)·‖G‖₂, with n_out and n_in by hand; the geometric mean over the role's parameters."""
        sides = {
            "input": (64, 16),
            "hidden": (64, 64),
            "output": (8, 64),
            "input_bias": (64, 1),
            "hidden_bias": (64, 1),
        }
        n_out, n_in = sides[role]
        mine = [np.atleast_2d(gradient[name]) for name, info in network.infos.items() if info.role == role]
        norms = [(n_in / n_out) ** 0.5 * np.linalg.svd(g)[1][0] for g in mine]
        return np.exp(np.mean(np.log(norms)))

    for role in Role:
        assert found["roles"][role]["direction"][0] == pytest.approx(rms_norm(role), rel=1e-4)


@pytest.mark.parametrize("branch_depth", [1, 2])
def test_the_recipe_s_own_raw_steps_have_the_size_that_the_condition_asks_for(branch_depth):
    """‖ΔW‖_R at the recipe's learning rates, from the base to (256, 8): as many times larger as it should be."""
    settings = replace(SMALL, branch_depth=branch_depth)
    candidate = our_candidate("muon", branch_depth)
    base, large = (measure(candidate, settings, *shape, seed=0)["roles"] for shape in ((64, 2), (256, 8)))
    hidden = 0.5 if branch_depth == 1 else 1.0  # 1/√r_L at k = 1
    for role, wanted in {"input": 1.0, "hidden": hidden, "output": 4.0}.items():
        ratio = np.array(large[role]["update"]) / np.array(base[role]["update"])
        assert ratio == pytest.approx(wanted, rel=0.1)


def test_every_step_has_the_size_that_the_condition_asks_for():
    settings, width, depth = replace(SMALL, steps=5), 128, 8
    seen = []

    def build(network, r_n, r_L):
        assert (r_n, r_L) == (2.0, 4.0)

        class Spy:
            def step(self, loss_on_own_labels, draws):
                seen.append({name: p.detach().clone().numpy() for name, p in network.named_parameters()})
                with torch.no_grad():
                    for p in network.parameters():
                        p.add_(torch.randn_like(p), alpha=1e3)

        return Spy()

    measure(replace(our_candidate("sgd", 2), build=build), settings, width, depth, seed=0)
    sizes, base = step_sizes(settings, width, depth), step_sizes(settings, *settings.base)
    infos = build_network(settings, width, depth, 0).infos
    for before, after in pairwise(seen):
        for name, info in infos.items():
            change = (after[name] - before[name]).astype(float)
            n_in, n_out = (1, len(change)) if change.ndim == 1 else change.shape[:: 1 if info.role == "input" else -1]
            norm = (n_in / n_out) ** 0.5 * np.linalg.norm(np.atleast_2d(change), 2)
            assert norm == pytest.approx(sizes[info.role], rel=1e-3)
    # ‖ΔW‖_R: the same at every size, but n for the output (k = 2).
    for role in Role:
        assert sizes[role] / base[role] == pytest.approx(2.0 if role is Role.OUTPUT else 1.0)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("Sign", "decoupled"), ("LateDecay", "decoupled"), ("FixedDecay", "fixed"), ("CoupledDecay", "coupled")],
)
def test_how_weight_decay_enters(name, kind):
    assert foreign(name).facts["weight_decay"]["kind"] == kind


def test_steps_that_are_not_proportional_to_the_learning_rate_are_probed_at_the_own_one():
    found = foreign("Squared")
    assert not found.facts["learning_rate"]["proportional"]
    assert "not proportional" in found.facts["learning_rate"]["meaning"]
    assert (found.lr, found.dtype) == (0.01, torch.float64)
    assert foreign("Known").lr == 2.0**20
    assert foreign("Known").facts["learning_rate"]["proportional"]


def test_where_only_matrices_are_taken_vectors_get_adamw():
    found = foreign("MatricesOnly")
    assert found.roles == (Role.INPUT, Role.HIDDEN, Role.OUTPUT)
    result = probe(found, SMALL)
    assert result["proposal"]["like"] == "orthogonal"
    assert result["proposal"]["adamw_for"] == ["input_bias", "hidden_bias"]


def test_groups_are_marked_where_the_class_wants_it():
    """Its vectors then step like a sign, as AdamW's do: still the orthogonal family."""
    found = foreign("Marked")
    assert found.roles == tuple(Role)
    assert "use_muon" in found.facts["grouping"]
    assert probe(found, SMALL)["proposal"]["like"] == "orthogonal"


def test_an_optimizer_that_starts_late_is_measured_later():
    result = probe(foreign("LateStart"), SMALL)
    assert result["fits"]["first"] == {}
    assert result["facts"]["learning_rate"]["first_moving_step"] == 3
    assert result["proposal"]["like"] == "plain gradient"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Still", "changed no matrix in 5 steps"),
        ("Infinite", "a step that is not finite: its step 1"),
        ("SlowWeights", "keeps its own copy of the weights .its state 'slow'"),
        ("Failing", "KeyError: 'no curvature here'"),
        ("NeedsClosure", "needs a closure"),
        ("NoRate", "has no argument lr"),
        ("Nowhere", "has no torch optimizer class 'Nowhere'"),
    ],
)
def test_what_cannot_be_probed_is_refused(name, message):
    with pytest.raises(UserError, match=message):
        foreign(name)


def test_arguments_are_checked():
    with pytest.raises(UserError, match=r"cannot be built: TypeError.*'speed'"):
        foreign("Sign", speed=3)
    with pytest.raises(UserError, match="'weight_decay', which the probe sets itself"):
        foreign("Sign", weight_decay=0.1)
    with pytest.raises(UserError, match="'beta3', which soap does not know; it has beta1, beta2"):
        our_candidate("soap", 2, {"beta3": 1})
    with pytest.raises(UserError, match="cannot import nowhere"):
        foreign_candidate("nowhere:Adam", {}, SMALL)


def test_a_published_library_s_optimizer():
    """Adan, which no declared family mentions, steps like a sign."""
    result = probe(foreign_candidate("pytorch_optimizer:Adan", {}, SMALL), SMALL)
    assert result["proposal"]["like"] == "sign"
    assert result["facts"]["package"].startswith("pytorch_optimizer 4")


def test_settings_are_checked():
    for change, message in (
        ({"widths": (64, 128)}, "--widths is 64,128; expected at least three"),
        ({"depths": (4, 2, 8)}, "--depths is 4,2,8; expected at least three"),
        ({"seeds": 1}, "--seeds is 1; expected at least 2"),
        ({"steps": 4}, "--steps is 4; expected at least 5"),
        ({"branch_depth": 0}, "--branch-depth is 0"),
        ({"tolerance": 0.0}, "--tolerance is 0"),
    ):
        with pytest.raises(UserError, match=message):
            ProbeSettings(**change)
