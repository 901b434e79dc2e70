"""`mup-lightning probe`: ‖A‖_R of every parameter at every step, on networks of all sizes and seeds.

A = -(W_after - W_before)/η at weight decay 0. The step itself is then replaced by one in the same direction, but of the
size ‖ΔW‖_R that the condition asks for at this width and depth. So the networks of all sizes stay on the condition
whatever the optimizer, none needs a tuned learning rate, and ‖A‖_R is measured where the recipe that divides by it
would be used. An optimizer that looks at gradients alone (nearly all do) cannot tell the difference.
"""

import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from mup_lightning.errors import UserError
from mup_lightning.files import check_folder, write_atomic
from mup_lightning.optim.optimizer import HybridOptimizer
from mup_lightning.optim.registry import RULES, make_groups
from mup_lightning.optim.sophia import estimate
from mup_lightning.optim.spectral_norm import rms_operator, spectral_norms
from mup_lightning.spectral.condition import solve
from mup_lightning.spectral.families import FAMILIES, Family
from mup_lightning.spectral.recipe import Recipe, RecipeConfig, Values, exponents
from mup_lightning.spectral.roles import Role
from mup_lightning.spectral.scale import Ratios
from mup_lightning.studies import style
from mup_lightning.studies.probe import CLASSES, LATER_FROM, ProbeSettings
from mup_lightning.studies.probe.network import ResidualMLP, batches, build_mlp
from mup_lightning.studies.probe.report import Probe, conclude, markdown, picture, text
from mup_lightning.studies.scaling import Run, exit_code
from mup_lightning.studies.workers import run_all

STEP_SIZE = 0.05  # ‖ΔW‖_R of every step over the weight's own size, at the base

LR = 2.0**20
"""So large that a weight is lost in the rounding of its step. What is left is A to all of float32's digits, without
anything that a rule does to the weight itself whatever the learning rate (SSO puts it back onto its sphere). A power of
two, so that dividing by it is exact."""

Step = Callable[[Callable[[], torch.Tensor], int], None]
"""One step from the parameters' .grad, given the mean loss over labels drawn from the network's own predictions (for
rules that estimate a Hessian) and how many labels that mean is taken over."""


@dataclass(frozen=True)
class Subject:
    """An optimizer that is probed."""

    name: str  # as the user gave it
    # (network, r_n, r_L) -> its step on that network, with weight decay 0
    build: Callable[[ResidualMLP, float, float], Step]
    lr: float  # learning rate of every parameter, by which a step is divided to give A
    dtype: torch.dtype  # of the network
    roles: tuple[Role, ...]  # that it updates by its own rule
    family: Family | None = None  # what is declared of it; None for an unknown optimizer
    # Recorded with the result: its arguments, and what was found out before the probe.
    facts: dict[str, Any] = field(default_factory=dict)


def our_subject(name: str, branch_depth: int, arguments: dict[str, Any] | None = None) -> Subject:
    """One of our optimizers with these base values of its rule's options; whole-matrix ones get all matrices, no
    vectors.
    """
    family, adamw = FAMILIES[name], FAMILIES["adamw"]
    roles = tuple(role for role in Role if not (family.whole_matrix and role.is_vector))
    options = {"eps": family.base_eps} if family.least_eps else {}
    options |= arguments or {}

    def build(network: ResidualMLP, r_n: float, r_L: float) -> Step:
        values = {}
        for role in Role:
            mine = family if role in roles else adamw
            scaled = exponents(mine, role, branch_depth).scaled
            factors = {option: scale.at(Ratios(r_n, r_L)) for option, scale in scaled.items()}
            values[role] = Values(rule=mine.name, lr=LR, weight_decay=0.0, init_std=0.0, scaled=factors)
        recipe = Recipe(values, network.multipliers, adamw.base_eps)
        rules = {RULES[name].section: options}
        optimizer = HybridOptimizer(make_groups(dict(network.named_parameters()), network.infos, recipe, rules))

        def step(loss_on_own_labels: Callable[[], torch.Tensor], draws: int) -> None:
            if wanting := optimizer.wants_hessian():
                diagonals = estimate([loss_on_own_labels], list(wanting.values()), draws)
                optimizer.give_hessian(dict(zip(wanting, diagonals, strict=True)))
            optimizer.step()

        return step

    return Subject(name, build, LR, torch.float32, roles, family, {"arguments": options})


def build_network(settings: ProbeSettings, width: int, depth: int, seed: int) -> ResidualMLP:
    """The probed network of one size, with the same inits and multipliers for all optimizers."""
    n, L = settings.base
    base = RecipeConfig(optimizer="adamw", branch_depth=settings.branch_depth, base_width=n, base_depth=L)
    return build_mlp(base, width, depth, seed, settings.inputs)


def step_sizes(settings: ProbeSettings, width: int, depth: int) -> dict[Role, float]:
    """‖ΔW‖_R of a step for each role: a share of the base network's weights, scaled as the condition asks."""
    n, L = settings.base
    outside, output = (settings.inputs / n) ** 0.5, (n / CLASSES) ** 0.5
    weights = dict.fromkeys(Role, 1.0) | {Role.INPUT: outside, Role.INPUT_BIAS: outside, Role.OUTPUT: output}
    here = Ratios(width / n, depth / L)
    return {role: STEP_SIZE * weights[role] * solve(role, settings.branch_depth).update.at(here) for role in Role}


Tensors = dict[str, torch.Tensor]


def updates(
    name: str, network: ResidualMLP, step: Step, settings: ProbeSettings, seed: int
) -> Iterator[tuple[float, Tensors, Tensors]]:
    """Train a network, in its own dtype; the caller may change the weights between two steps.

    Yields after each step the loss before it, and by parameter the value before it and what the step added. UserError:
    a step of the optimizer of this name is not finite.
    """
    own_labels = torch.Generator().manual_seed(seed + 1)
    dtype = network.input.dtype
    data = batches(seed, settings.batch, settings.inputs)
    for number in range(1, settings.steps + 1):
        x, labels = next(data)
        x = x.to(dtype)
        network.zero_grad()
        logits = network(x)
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=own_labels).squeeze(1)
        before = {key: p.detach().clone() for key, p in network.named_parameters()}

        def loss_on_own_labels(x: torch.Tensor = x, drawn: torch.Tensor = drawn) -> torch.Tensor:
            return F.cross_entropy(network(x), drawn)

        step(loss_on_own_labels, settings.batch)
        change = {key: p.detach() - before[key] for key, p in network.named_parameters()}
        if not all(torch.isfinite(added).all() for added in change.values()):
            raise UserError(f"{name} cannot be probed: its step {number} is not finite; try other --arguments")
        yield loss.item(), before, change


def measure(subject: Subject, settings: ProbeSettings, width: int, depth: int, seed: int) -> Run:
    """Train one network: `measured` is role -> ‖A‖_R of each step ("direction") and of the windows ("first", "later").

    The geometric mean over the role's parameters; None where a step changed nothing.
    """
    torch.manual_seed(seed)  # for optimizers that draw numbers; all of ours comes from generators
    network, (n, L) = build_network(settings, width, depth, seed).to(subject.dtype), settings.base
    step = subject.build(network, width / n, depth / L)
    sizes = step_sizes(settings, width, depth)
    losses: list[float] = []
    directions: dict[Role, list[float | None]] = {role: [] for role in subject.roles}
    for loss, before, change in updates(subject.name, network, step, settings, seed):
        losses.append(loss)
        found = _replace_step(network, before, change, sizes)
        for role in subject.roles:
            mine = [found[name] / subject.lr for name, info in network.infos.items() if info.role is role]
            directions[role].append(_geometric_mean(mine))
    measured = {
        str(role): {"direction": of_role, "first": of_role[0], "later": _geometric_mean(of_role[LATER_FROM - 1 :])}
        for role, of_role in directions.items()
    }
    return Run((subject.name,), (width, depth), seed, losses, measured)


def _geometric_mean(values: list[Any]) -> float | None:
    """Mean of sizes that are all above 0; None if one is not."""
    return math.exp(math.fsum(map(math.log, values)) / len(values)) if all(values) else None


@torch.no_grad()
def _replace_step(network: ResidualMLP, before: Tensors, change: Tensors, sizes: dict[Role, float]) -> dict[str, float]:
    """Replace the optimizer's step by one of the condition's size. Returns parameter name -> ‖ΔW‖_R as it was."""
    found = {}
    norms = spectral_norms(list(change.values()))
    for (name, parameter), spectral in zip(network.named_parameters(), norms, strict=True):
        info = network.infos[name]
        found[name] = rms_operator(spectral, info)
        wanted = sizes[info.role] / found[name] if found[name] > 0 else 0.0
        parameter.copy_(before[name] + wanted * change[name])
    return found


def run(settings: ProbeSettings) -> int:
    """Probe what the settings name. Returns 0 PASS or proposed, 3 FAIL, 4 UNCLEAR; of several optimizers the worst."""
    base = Path(settings.out or "runs/probe")
    names = list(FAMILIES) if settings.optimizer is None else [settings.optimizer]
    alone = settings.out is not None and not settings.all
    folders = {name: base if alone else base / name.replace(":", ".") for name in names}
    for folder in folders.values():
        check_folder(folder)
    probes: list[Probe] = []
    for name, folder in folders.items():
        mine = replace(settings, optimizer=name, all=False)
        if name in FAMILIES:
            subject = our_subject(name, mine.branch_depth, mine.arguments)
        else:
            from mup_lightning.studies.probe.external import external_subject

            sys.path.insert(0, str(Path.cwd()))  # a module in the current folder counts, too
            subject = external_subject(name, mine.arguments, mine)
        probes.append(found := probe(subject, mine))
        if not settings.json:
            print(f"{text(found)}\n", flush=True)  # first: a full disk must not cost what was found
        found.write(folder / "probe.json")
        style.save(picture(found), folder / "probe.png")
        if settings.all:
            write_atomic(base / "table.md", markdown(probes))  # after each, so that Ctrl-C loses one probe alone
        if not settings.json:
            print(f"wrote {folder / 'probe.json'} and probe.png\n", flush=True)
    if settings.json:
        short = [found.short() for found in probes]
        print(json.dumps(short if settings.all else short[0], indent=1))
    return exit_code(found.finding for found in probes)


def probe(subject: Subject, settings: ProbeSettings) -> Probe:
    """Measure every size and seed, fit, and judge or propose."""
    subject.build(build_network(settings, *settings.base, seed=0), 1.0, 1.0)  # refuses wrong arguments at once
    networks = [(*shape, seed) for shape in settings.shapes for seed in range(settings.seeds)]
    runs = run_all(f"probe of {subject.name}", lambda network: measure(subject, settings, *network), networks, 0)
    return conclude(subject.name, subject.family, settings, subject.facts, runs)
