"""The probe on optimizers whose exponents are known: judged rightly, or refused with one clear line."""

from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mup_lightning.errors import UserError
from mup_lightning.spectral.condition import solve
from mup_lightning.spectral.families import FAMILIES, Family
from mup_lightning.spectral.recipe import exponents
from mup_lightning.spectral.roles import Role
from mup_lightning.spectral.scale import Ratios
from mup_lightning.studies.probe import ProbeSettings
from mup_lightning.studies.probe.external import external_subject
from mup_lightning.studies.probe.measure import Subject, build_network, measure, our_subject, probe, step_sizes
from mup_lightning.studies.probe.network import batches
from mup_lightning.studies.probe.report import conclude


def settings(optimizer="sgd", **changes):
    small = {"widths": [64, 128, 256], "depths": [2, 4, 8], "steps": 5, "seeds": 4}
    return ProbeSettings(optimizer=optimizer, **(small | changes))


@cache
def external(name):
    return external_subject(f"tests.studies.probe_optimizers:{name}", {}, settings())


def exponent(found, *label):
    return found.finding.line(*label).fit.exponent


KNOWN = {
    "Sign": ("adamw", {"input": (0, 0), "hidden": (1, 0), "output": (1, 0), "hidden_bias": (0, 0)}),
    "Orthogonal": ("muon", {"input": (-0.5, 0), "hidden": (0, 0), "output": (0.5, 0), "hidden_bias": (0, 0)}),
    "Known": ("sgd", {"input": (-1, 0), "hidden": (0, -1), "output": (0, 0), "hidden_bias": (-1, -1)}),
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_optimizers_are_what_they_are(name):
    family, wanted = KNOWN[name]
    found = probe(external(name), settings())
    for role, sizes in wanted.items():
        for window in ("first", "later"):
            measured = [exponent(found, role, window, axis) for axis in ("width", "depth")]
            assert measured == pytest.approx(sizes, abs=0.12), (role, window)
    assert (found.finding.verdict, found.proposal["off"]) == (None, 0)
    assert family in found.proposal["nearest"]


@pytest.mark.parametrize(("inputs", "wanted"), [(16, 0), (256, -0.5)])
def test_an_input_wider_than_the_network_has_the_longer_side(inputs, wanted):
    """Muon-Kimi's √max(D, n): the network's own width, or the fixed one of a vocabulary."""
    chosen = settings("muon_kimi", widths=[32, 64, 128], depths=[2, 3, 4], inputs=inputs)
    found = probe(our_subject("muon_kimi", 2), chosen)
    line = found.finding.line("input", "later", "width")
    assert (line.fit.exponent, sum(line.band) / 2) == (pytest.approx(wanted, abs=0.12), pytest.approx(wanted))


def test_a_wrong_implementation_is_found_out():
    """sign(G)·√n, declared as a sign: the exponents are half a power too large."""
    unknown = external("SignRoot")
    found = probe(replace(unknown, family=FAMILIES["adamw"]), settings())
    assert found.finding.verdict == "FAIL"
    wrong = {line.label[::2] for line in found.finding.lines if line.verdict == "FAIL"}
    assert {("hidden", "width"), ("output", "width"), ("hidden_bias", "width")} <= wrong


@pytest.mark.parametrize("branch_depth", [1, 2])
def test_a_wrong_declaration_is_found_out(branch_depth):
    """Muon's measured exponents fit its own direction, and not that of a sign."""
    mine = settings("muon", branch_depth=branch_depth)
    good = probe(our_subject("muon", branch_depth), mine)
    assert (good.finding.verdict, len(good.finding.lines)) == ("PASS", 12)
    fault = Family("muon", FAMILIES["adamw"].direction, whole_matrix=True)
    assert conclude("muon", fault, mine, good.facts, good.runs).finding.verdict == "FAIL"


@pytest.mark.parametrize("optimizer", FAMILIES)
def test_all_of_ours_can_be_probed(optimizer):
    found = probe(our_subject(optimizer, 2), settings(optimizer, widths=[8, 16, 32], depths=[1, 2, 3], seeds=2))
    labels = {line.label for line in found.finding.lines}
    assert (("hidden", "first", "width") in labels) == (optimizer != "soap")  # whose first step changes nothing
    roles = {role for role, window, _ in labels if window == "later"}
    assert roles == {role for role in Role if not (FAMILIES[optimizer].whole_matrix and role.is_vector)}
    assert len(found.runs) == 5 * 2
    assert all(np.isfinite(run.losses).all() for run in found.runs)


SIDES = {"input": (64, 16), "hidden": (64, 64), "output": (8, 64), "input_bias": (64, 1), "hidden_bias": (64, 1)}
"""(n_out, n_in) of each role at width 64."""


def test_the_first_direction_of_sgd_is_the_gradient_itself():
    found = measure(our_subject("sgd", 2), settings(), 64, 4, seed=3)
    network = build_network(settings(), 64, 4, seed=3)
    x, labels = next(batches(3, 32))
    loss = F.cross_entropy(network(x), labels)
    loss.backward()
    assert found.losses[0] == pytest.approx(loss.item(), rel=1e-6)
    for role, (n_out, n_in) in SIDES.items():
        mine = [p.grad for name, p in network.named_parameters() if network.infos[name].role == role]
        norms = [(n_in / n_out) ** 0.5 * np.linalg.norm(np.atleast_2d(g.double().numpy()), 2) for g in mine]
        wanted = np.exp(np.mean(np.log(norms)))
        assert found.measured[role]["direction"][0] == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("branch_depth", [1, 2])
def test_the_recipes_own_steps_have_the_size_that_the_condition_asks_for(branch_depth):
    """‖ΔW‖_R at the recipe's learning rates, from the base to (256, 8): as many times larger as it should be."""
    mine, subject = settings("muon", branch_depth=branch_depth), our_subject("muon", branch_depth)
    base, large = (measure(subject, mine, *shape, seed=0).measured for shape in ((64, 2), (256, 8)))
    hidden = 0.5 if branch_depth == 1 else 1.0  # 1/√r_L at k = 1
    for role, wanted in {"input": 1.0, "hidden": hidden, "output": 4.0}.items():
        rate = exponents(FAMILIES["muon"], Role(role), branch_depth).lr.at(Ratios(4, 4))
        ratio = rate * np.array(large[role]["direction"]) / np.array(base[role]["direction"])
        assert ratio == pytest.approx(wanted, rel=0.1)


def test_every_step_has_the_size_that_the_condition_asks_for():
    mine, seen = settings(depths=[1, 2, 4]), []

    def build(network, r_n, r_L):
        assert (r_n, r_L) == (1.0, 4.0)

        @torch.no_grad()
        def step(loss_on_own_labels, draws):
            seen.append({name: p.detach().clone().numpy() for name, p in network.named_parameters()})
            for p in network.parameters():
                p.add_(torch.randn_like(p), alpha=1e3)

        return step

    measure(Subject("spy", build, 1.0, torch.float32, tuple(Role)), mine, 64, 4, seed=0)
    infos, sizes = build_network(mine, 64, 4, 0).infos, step_sizes(mine, 64, 4)
    for before, after in pairwise(seen):
        for name, info in infos.items():
            n_out, n_in = SIDES[info.role]
            norm = (n_in / n_out) ** 0.5 * np.linalg.norm(np.atleast_2d((after[name] - before[name]).astype(float)), 2)
            assert norm == pytest.approx(sizes[info.role], rel=1e-3)
    at_base, wide = step_sizes(mine, 64, 1), step_sizes(mine, 128, 4)
    for role in Role:  # ‖ΔW‖_R: the same at every size, but n for the output (k = 2)
        assert wide[role] / at_base[role] == pytest.approx(2.0 if role is Role.OUTPUT else 1.0)
        assert solve(role, 2).update.at(Ratios(2, 4)) == wide[role] / at_base[role]


def test_how_weight_decay_enters():
    kinds = {"Sign": "decoupled", "LateDecay": "decoupled", "FixedDecay": "fixed", "CoupledDecay": "coupled"}
    assert {name: external(name).facts["weight_decay"]["kind"] for name in kinds} == kinds


def test_steps_that_are_not_proportional_to_the_learning_rate_are_probed_at_the_own_one():
    found = external("Squared")
    assert not found.facts["learning_rate"]["proportional"]
    assert "not proportional" in found.facts["learning_rate"]["meaning"]
    assert (found.lr, found.dtype) == (0.01, torch.float64)
    assert external("Known").lr == 2.0**20
    assert external("Known").facts["learning_rate"]["proportional"]


@pytest.mark.parametrize(("name", "roles"), [("MatricesOnly", ("input", "hidden", "output")), ("Marked", tuple(Role))])
def test_parameters_are_handed_over_as_the_class_wants_it(name, roles):
    """Vectors that it refuses go to AdamW; Marked wants to be told which are matrices."""
    found = external(name)
    assert found.roles == roles
    assert ("use_muon" in found.facts["grouping"]) == (name == "Marked")
    assert probe(found, settings(widths=[32, 64, 128], seeds=2)).proposal["nearest"][0] == "muon"


def test_an_optimizer_that_starts_late_is_measured_later():
    found = probe(external("LateStart"), settings(widths=[32, 64, 128], seeds=2))
    assert {line.label[1] for line in found.finding.lines} == {"later"}
    assert found.facts["learning_rate"]["first_moving_step"] == 3
    assert (found.proposal["nearest"], found.proposal["off"]) == (["sgd"], 0)


@pytest.mark.parametrize(
    ("path", "arguments", "message"),
    [
        ("Still", {}, "changed no matrix in 5 steps"),
        ("Infinite", {}, "its step 1 is not finite"),
        ("SlowWeights", {}, "keeps its own copy of the weights .its state 'slow'"),
        ("Failing", {}, "its step fails: KeyError: 'no curvature here'"),
        ("NeedsClosure", {}, "needs a closure"),
        ("NoRate", {}, "has no argument lr"),
        ("Nowhere", {}, "has no torch optimizer class 'Nowhere'"),
        ("Sign", {"speed": 3}, r"cannot be built: TypeError.*'speed'"),
        ("Sign", {"weight_decay": 0.1}, "'weight_decay', which the probe sets itself"),
        ("nowhere:Adam", {}, "cannot import nowhere: ModuleNotFoundError"),
    ],
)
def test_what_cannot_be_probed_is_refused(path, arguments, message):
    path = path if ":" in path else f"tests.studies.probe_optimizers:{path}"
    with pytest.raises(UserError, match=message) as error:
        external_subject(path, arguments, settings())
    assert "\n" not in str(error.value)


def test_a_published_librarys_optimizer():
    """Adan steps like a sign."""
    small = settings(widths=[32, 64, 128], seeds=2)
    found = probe(external_subject("pytorch_optimizer:Adan", {}, small), small)
    signs = [name for name, family in FAMILIES.items() if family.direction is FAMILIES["adamw"].direction]
    assert found.proposal["nearest"] == signs
    assert found.facts["package"].startswith("pytorch_optimizer 4")


def test_defaults_depend_on_the_optimizer_and_on_quick():
    assert ProbeSettings("adamw").seeds == 8
    assert ProbeSettings("muon").seeds == 4
    assert ProbeSettings("muon", seeds=8).seeds == 8
    assert (ProbeSettings("adamw", quick=True).widths, ProbeSettings("adamw", quick=True).steps) == ((32, 64, 128), 6)
    assert ProbeSettings("adamw", quick=True, widths=[8, 16, 64]).widths == (8, 16, 64)
    every = ProbeSettings(all=True, depths=[1, 2, 3])
    lion, soap = (replace(every, optimizer=name, all=False) for name in ("lion", "soap"))
    assert (lion.seeds, soap.seeds, soap.depths) == (8, 4, (1, 2, 3))
