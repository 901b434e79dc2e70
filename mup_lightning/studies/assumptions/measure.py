"""`mup-lightning assumptions`: trains networks of several depths under the recipe, and measures four ratios meanwhile.

All norms are ‖·‖₂: the factors of ‖·‖_R cancel in ratios of one shape. Source: arXiv 2603.00541, appendix G.

Shapes: B samples, T positions in a sample, I and O a matrix's inputs and outputs, C any width.
"""

import json
import math
from collections import defaultdict
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from mup_lightning.config.load import build_config, preset
from mup_lightning.config.schema import Config
from mup_lightning.errors import UserError
from mup_lightning.files import check_folder, read_yaml, write_atomic
from mup_lightning.optim.registry import RULES
from mup_lightning.optim.rule import Group, Item
from mup_lightning.optim.schedule import lr_factor
from mup_lightning.optim.spectral_norm import spectral_norms
from mup_lightning.studies import style
from mup_lightning.studies.assumptions import AssumptionSettings, measured_at
from mup_lightning.studies.assumptions.networks import Network, build_network, open_corpus
from mup_lightning.studies.assumptions.report import CLAIMS, Assumptions, conclude, markdown, picture, text
from mup_lightning.studies.scaling import Run, exit_code, six_digits
from mup_lightning.studies.workers import cores, run_all
from mup_lightning.typed import PositiveFloat, convert

Pairs = list[tuple[float, float]]

Ratios = dict[str, dict[str, list[float]]]  # quantity -> matrix -> a value for every block
BASE = {"mlp": (64, 4), "gpt2": (256, 4)}  # the (width, depth) at which each network's learning rates are given


def run(settings: AssumptionSettings) -> int:
    """Check, write, draw, and print what was found; returns the exit status of the verdict over all assumptions."""
    out = Path(settings.out)
    check_folder(out)
    result = check(settings)
    # First: a full disk must not cost what was found.
    print(json.dumps(result.short(), indent=1) if settings.json else f"{text(result)}\n", flush=True)
    write_atomic(out / "table.md", f"{markdown(result)}\n")
    result.write(out / "assumptions.json")
    for assumption in CLAIMS:
        style.save(picture(result, assumption), out / f"assumptions_{assumption}.png")
    if not settings.json:
        print(f"wrote {out / 'assumptions.json'}, table.md and figures")
    return exit_code(result.findings)


def check(settings: AssumptionSettings) -> Assumptions:
    """Check all; UserError where the corpus cannot be read, a training diverged, or an optimizer cannot be checked."""
    todo = trainings(settings)
    # The time of a block, relative to the MLP's.
    work = [(6.0 if network == "gpt2" else 1.0) * config.model.depth for network, config in todo]
    runs = run_all("assumptions", measure, todo, cores() if settings.workers is None else settings.workers, work)
    base_lr = {
        network: {config.recipe.optimizer: config.recipe.lr for name, config in todo if name == network}
        for network in settings.networks
    }
    pairs = dict.fromkeys(run.of for run in runs)
    findings = [conclude([run for run in runs if run.of == of], name, settings) for name in CLAIMS for of in pairs]
    return Assumptions(settings=settings, base_lr=base_lr, findings=findings, runs=runs)


def trainings(settings: AssumptionSettings) -> list[tuple[str, Config]]:
    """Every network that is trained, mlp or gpt2, and its configuration.

    μP at k >= 2 without weight decay, and after the warm-up a constant learning rate.
    """
    expected = "base learning rates by network and optimizer, such as recipes/experiment/assumptions.yaml has"
    rates = convert(read_yaml(Path(settings.rates), expected), dict[str, dict[str, PositiveFloat]], settings.rates)
    warmup = settings.steps // 10 if settings.warmup is None else settings.warmup
    result = []
    for network, optimizer in product(settings.networks, settings.optimizer):
        width, depth = BASE[network]
        samples = settings.batch if network == "mlp" else settings.sequences
        data = {"path": settings.data, "tokenizer": "bytes", "verify": False}
        own: dict[str, Any] = {
            "model": {"width": settings.width, "context": settings.context, "tied": False},
            "recipe": {"base_width": width, "base_depth": depth},
            "schedule": {"kind": "constant", "warmup_steps": warmup},
            "data": data | {"batch_size": samples, "micro_batch": samples},
            "trainer.max_steps": settings.steps + 1,
        }
        rate = rates.get(network, {}).get(optimizer)
        config = build_config([preset("optimizer", optimizer), own, {"recipe.lr": rate} if rate else {}])
        if network == "gpt2":
            open_corpus(config)  # refused now rather than in a worker
        for depth, seed in product(settings.depths, range(settings.seeds)):
            result.append((network, replace(config, model=replace(config.model, depth=depth), seed=seed)))
    return result


def measure(training: tuple[str, Config]) -> Run:
    """Train a network, mlp or gpt2: `measured` is time -> the ratios then, see `measured_step`.

    Raises UserError where the training diverges, or a ratio is not defined for the optimizer.
    """
    name, config = training
    recipe, steps = config.recipe, config.trainer.max_steps
    network = build_network(name, config)
    if network.optimizer.wants_hessian():
        raise UserError(f"{recipe.optimizer} cannot be checked: its first step needs a Hessian for every sample alone")
    schedule = LambdaLR(network.optimizer, lr_factor(config))
    time_at = {done: time for time, done in measured_at(steps - 1).items()}
    times: dict[str, Ratios] = {}
    losses = []
    for step in range(steps):
        batch = next(network.batches)
        network.optimizer.zero_grad()
        try:
            if step in time_at:
                loss, times[time_at[step]] = measured_step(network, batch)
            else:
                loss = network.loss(batch)
                loss.backward()
                network.optimizer.step()
        except FloatingPointError:
            sized = f"a {name} of width {config.model.width} and depth {config.model.depth} (seed {config.seed})"
            mend = "leave it out of --optimizer, or give fewer --steps or a longer --warmup"
            raise UserError(f"{recipe.optimizer} diverged in step {step + 1} of {sized}; {mend}") from None
        schedule.step()
        losses.append(loss.item())
    shape = (config.model.width, config.model.depth)
    return Run((name, recipe.optimizer), shape, config.seed, six_digits(losses), six_digits(times))


def measured_step(network: Network, batch: Any) -> tuple[torch.Tensor, Ratios]:
    """One step of training: the loss before it, and the four ratios of matrices' outputs, and of the residual "stream".

    "weights_step" and "features_step" are the size of the step relative to what it changes. Raises FloatingPointError
    where something is not finite.
    """
    loss, before = network.observed_loss(batch)
    loss.backward()
    weights = network.weights()
    aligned = {}
    for one in network.matrices:
        info = network.optimizer.held[one.parameter].info
        group = next(group for group in network.optimizer.param_groups if info in group["infos"])
        inputs, deltas = before.inputs[one.name, one.block], before.delta(one)
        aligned[one] = alignment(group, weights[one], inputs, deltas, transposed=info.transposed)
    network.optimizer.step()
    with torch.no_grad():
        _, after = network.observed_loss(batch)
    stepped = network.weights()

    found: Ratios = defaultdict(dict)

    def keep(quantity: str, name: str, pairs: Pairs) -> None:
        found[quantity][name], found[f"{quantity}_step"][name] = map(list, zip(*pairs, strict=True))

    for name in dict.fromkeys(matrix.name for matrix in network.matrices):
        mine = [matrix for matrix in network.matrices if matrix.name == name]
        keep("weights", name, weight_ratios([weights[one] for one in mine], [stepped[one] for one in mine]))
        keep("features", name, [feature_ratio(before.output(one), after.output(one)) for one in mine])
        found["alignment"][name] = [aligned[one] for one in mine]
        if following := mine[0].next_matrix:  # ‖φ(Wh)‖/‖Wh‖, averaged over all vectors
            pairs = [(before.output(one), before.inputs[following, one.block]) for one in mine]
            norms = [[torch.linalg.vector_norm(x.double(), dim=-1) for x in pair] for pair in pairs]
            found["activation"][name] = [float((post / pre).mean()) for pre, post in norms]
    keep("features", "stream", [feature_ratio(h, new) for h, new in zip(before.streams, after.streams, strict=True)])
    if not all(math.isfinite(value) for by in found.values() for values in by.values() for value in values):
        raise FloatingPointError("a ratio is not finite")
    return loss, dict(found)


def weight_ratios(before: list[torch.Tensor], after: list[torch.Tensor]) -> Pairs:
    """‖W+ΔW‖/(‖W‖+‖ΔW‖) and ‖ΔW‖/‖W‖ of matrices before and after a step."""
    # In float64: a step is small against its weight, and the Gram matrix squares its rounding.
    W, new = ([weight.double() for weight in weights] for weights in (before, after))
    norms = spectral_norms([*W, *new, *(second - first for first, second in zip(W, new, strict=True))])
    sizes, totals, steps = (norms[n * len(W) : (n + 1) * len(W)] for n in range(3))
    return [(all_ / (size + step), step / size) for size, all_, step in zip(sizes, totals, steps, strict=True)]


def feature_ratio(before: torch.Tensor, after: torch.Tensor) -> tuple[float, float]:
    """‖h+Δh‖/(‖h‖+‖Δh‖) and ‖Δh‖/‖h‖ of (B, T, C) features before and after a step, each averaged over all vectors."""
    h, new = before.double(), after.double()
    size, total, step = (torch.linalg.vector_norm(x, dim=-1) for x in (h, new, new - h))
    return float((total / (size + step)).mean()), float((step / size).mean())


def own_gradients(inputs_BTI: torch.Tensor, deltas_BTO: torch.Tensor, *, transposed: bool = False) -> torch.Tensor:
    """G_(i), the gradient of every sample's own loss, exact: (B, O, I), or (B, I, O) if transposed; see `alignment`."""
    gradients_BOI = torch.einsum("bto,bti->boi", deltas_BTO, inputs_BTI) * len(inputs_BTI)
    return gradients_BOI.mT if transposed else gradients_BOI


def alignment(
    group: Group, weight: torch.Tensor, inputs_BTI: torch.Tensor, deltas_BTO: torch.Tensor, *, transposed: bool = False
) -> float:
    """‖ΔW h(x_i)‖ / ‖(1/B) ΔW_(i) h(x_i)‖, averaged over the batch: do the samples' updates add up, or cancel?

    ΔW_(i) is the update that the optimizer would make if sample i were the whole batch. Both are first steps, from the
    weights as they are and an empty optimizer state, see docs/method/assumptions.md. A sample's h, what went into the
    matrix, is all its positions together, (T, I). The weight is (O, I), or (I, O) where it is stored transposed;
    `deltas_BTO` is the gradient of the batch's mean loss with respect to W h. The mean is over samples whose own update
    moves their feature at all. Raises UserError where a first step of this optimizer changes nothing.
    """
    gradients = own_gradients(inputs_BTI, deltas_BTO, transposed=transposed)
    each = (gradients.mean(0), *gradients)
    items = [Item(weight.clone(), gradient.contiguous(), {}, 1, transposed) for gradient in each]
    RULES[group["rule"]].update(group, items)
    step, *own = [item.parameter - weight for item in items]
    own_BOI = torch.stack(own)
    if gradients.any() and not own_BOI.any():
        raise UserError(f"{group['rule']} cannot be checked: its first step changes nothing")
    if transposed:
        step, own_BOI = step.mT, own_BOI.mT
    together_B = torch.linalg.vector_norm(inputs_BTI @ step.mT, dim=(1, 2))
    alone_B = torch.linalg.vector_norm(inputs_BTI @ own_BOI.mT, dim=(1, 2)) / len(inputs_BTI)
    moved_B = alone_B > 0
    return float((together_B[moved_B] / alone_B[moved_B]).mean())
