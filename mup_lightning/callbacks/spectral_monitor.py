"""The spectral condition while training: the norms and products that it constrains, from weights and updates.

The condition (arXiv 2603.00541, section 3; `spectral.condition`) asks for Θ(1), as n and L grow, of

    input, output     α‖W‖_R                       α‖ΔW‖_R
    each branch       α‖W₂‖_R‖W₁‖_R·L              α‖ΔW₂‖_R‖W₁‖_R·L, α‖W₂‖_R‖ΔW₁‖_R·L, α‖ΔW₂‖_R‖ΔW₁‖_R·L

with ‖W‖_R = √(n_in/n_out)·‖W‖₂, α the multiplier of the layer or branch, and L the number of blocks.

**The matrices of a branch.** MLP: W₁ is `up`, W₂ is `down`. Attention: W₁ is the value matrix V, W₂ is `out`; queries
and keys are in no product, because whatever they are, a head's output is an average of value vectors. A change of Q or
K moves the weights of that average, which are Θ(1) as long as the logits and their change are: so ‖Q‖_R, ‖K‖_R and
their updates should each be Θ(1). So it is with the gate of a gated MLP, whose activation multiplies the outputs of W₁
one by one, and with a router, whose logits weigh what experts compute. Activations and norms, Θ(1) each, are left out,
and so is the sharing of V by heads, which keeps ‖·‖_R. Of a layer's experts, means are shown.

**k = 1** asks for α‖W‖ = Θ(1/√L) at the start and α‖ΔW‖ = Θ(1/L) in each step, and says nothing of second-order terms.
So the product of the weights is multiplied by √L there and the others by L.

**Embeddings** are stored (n_in, n_out), with a row for each token or position. While n_in is much more than the width
n, ‖W‖_R of a random embedding falls like n^-1/2, and that of a random head grows like n^1/2 rather than n. Tied
embeddings are both an input and an output.

Shapes: k blocks of one parameter (3 for a fused QKV), r rows, s columns.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean
from typing import cast

import lightning.pytorch as pl
import numpy as np
import torch

from mup_lightning.callbacks.step import StepCallback, WatchedModule, log, tensorboard
from mup_lightning.distributed.collectives import gather, rank_and_world
from mup_lightning.distributed.layout import assign
from mup_lightning.model.gpt2 import GPT2
from mup_lightning.optim.rule import split_blocks
from mup_lightning.optim.spectral_norm import largest_singular_values
from mup_lightning.spectral.recipe import Multipliers
from mup_lightning.spectral.roles import Role

BRANCHES = {"attention": ("attention_value", "attention_out"), "mlp": ("mlp_up", "mlp_down")}
"""Branch -> its W₁ and W₂."""

PRODUCTS = {"w2_w1": "α‖W₂‖‖W₁‖·L", "dw2_w1": "α‖ΔW₂‖‖W₁‖·L", "w2_dw1": "α‖W₂‖‖ΔW₁‖·L", "dw2_dw1": "α‖ΔW₂‖‖ΔW₁‖·L"}
"""Products of a branch, by the last part of their tags."""

STACKED = {
    "attention_qkv": ["attention_query", "attention_key", "attention_value"],
    "attention_q": ["attention_query"],
    "attention_kv": ["attention_key", "attention_value"],
    "mlp_gate_up": ["mlp_gate", "mlp_up"],
}
"""Parameter, which may stack several matrices -> their labels."""

LARGEST_IN_HISTOGRAM = 1e20
"""TensorBoard's bins end here; it raises where all values lie beyond, or one is NaN."""

Place = tuple[str, int]
"""A matrix: its parameter's name, and which of the matrices stacked in it."""

Values = dict[str, float | list[float]]
"""Beginning of a tag -> a value, or one for each layer."""


@dataclass(frozen=True)
class Matrix:
    """One matrix that is measured, in one of its roles; `side_factor` is √(n_in/n_out)."""

    place: Place
    role: Role
    label: str
    side_factor: float


def matrices(model: GPT2) -> list[Matrix]:
    """All matrices of a model, in order of the layers."""
    found = []
    for name, info in model.parameter_info.items():
        if info.role.is_vector:
            continue
        rows, columns = info.block_shape
        n_in, n_out = (rows, columns) if info.transposed else (columns, rows)
        label = re.sub(r"^blocks\.\d+\.|\.weight$", "", name).replace(".", "_")
        labels = STACKED.get(label, [label])
        for block, each in enumerate(labels * (info.blocks // len(labels) if info.routed else 1)):
            found.append(Matrix((name, block), info.role, each, (n_in / n_out) ** 0.5))
        if model.output_matrix is model.token.weight and name == "token.weight":
            found.append(Matrix((name, 0), Role.OUTPUT, "head", (n_out / n_in) ** 0.5))
    return found


def quantities(
    matrices: list[Matrix],
    weights: dict[Place, float],
    updates: dict[Place, float],
    multipliers: Multipliers,
    branch_depth: int,
) -> Values:
    """Everything that is logged, from ‖W‖₂ before a step and ‖ΔW‖₂ of that step, weight decay and schedule included.

    `spectral/norms/<role>/<matrix>/w` and `.../dw`: ‖W‖_R and ‖ΔW‖_R;
    `spectral/condition/<input or output>/<matrix>/w` and `.../dw`: the same times α;
    `spectral/condition/<branch>/<product>`: see the module's text.
    """
    values: Values = {}
    hidden: dict[str, list[float]] = {}
    for matrix in matrices:
        for quantity, norms in (("w", weights), ("dw", updates)):
            norm, key = matrix.side_factor * norms[matrix.place], f"{matrix.role}/{matrix.label}/{quantity}"
            if matrix.role is Role.HIDDEN:
                hidden.setdefault(f"{matrix.label}/{quantity}", []).append(norm)
                continue
            alpha = multipliers.input if matrix.role is Role.INPUT else multipliers.output
            values[f"spectral/norms/{key}"] = norm
            values[f"spectral/condition/{key}"] = alpha * norm
    depth = len(hidden["attention_out/w"])

    def by_layer(of_all: list[float]) -> list[float]:
        each = len(of_all) // depth
        return [fmean(of_all[layer * each : (layer + 1) * each]) for layer in range(depth)]

    values |= {f"spectral/norms/{Role.HIDDEN}/{key}": by_layer(of_all) for key, of_all in hidden.items()}
    for branch, (first, second) in BRANCHES.items():
        for product in PRODUCTS:
            of_second, of_first = product.split("_")
            pairs = zip(hidden[f"{second}/{of_second[:-1]}"], hidden[f"{first}/{of_first[:-1]}"], strict=True)
            power = 0.5 if product == "w2_w1" and branch_depth == 1 else 1.0
            values[f"spectral/condition/{branch}/{product}"] = by_layer(
                [multipliers.residual * a * b * depth**power for a, b in pairs]
            )
    return values


def scalars(values: Values) -> dict[str, float]:
    """Tag -> value: a layer's ends in `/layer_<i>`; mean, least and largest over the layers in `/mean`, ..."""
    tagged: dict[str, float] = {}
    for tag, value in values.items():
        if isinstance(value, float):
            tagged[tag] = value
            continue
        tagged |= {f"{tag}/layer_{layer:03d}": norm for layer, norm in enumerate(value)}
        tagged |= {f"{tag}/mean": fmean(value), f"{tag}/min": min(value), f"{tag}/max": max(value)}
    return tagged


class SpectralNorms(StepCallback):
    """Measures one step in every `every`, under every strategy; nothing that is trained changes.

    W is the weights before a step, ΔW what that step adds to them, schedule and weight decay included; the step of a
    point is as in `FeatureNorms`. The matrices are divided among the processes, each of which keeps copies of its own
    from before the update to the end of the step. Where ZeRO has partitioned the weights, they are gathered there, one
    parameter at a time. The copies are made when the optimizer is about to change weights, so after Sophia's estimate
    of the Hessian, which is one more backward pass, and while no activations are in memory. `model` is not wrapped by a
    strategy yet; for `written` see `FeatureNorms`.
    """

    def __init__(self, every: int, model: GPT2, branch_depth: int, written: int | None = None) -> None:
        self.every, self.branch_depth, self.written = every, branch_depth, written
        self._multipliers, self._matrices = model.multipliers, matrices(model)
        self._copies: dict[str, torch.Tensor] = {}
        self._weights: torch.Tensor | None = None
        self._due = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Choose who measures what, now that the layouts are known; ask the optimizer to call before an update."""
        hybrid = cast(WatchedModule, pl_module).hybrid
        names = dict.fromkeys(matrix.place[0] for matrix in self._matrices)
        self._held = {name: hybrid.held[name] for name in names}
        self._layouts, self._device = hybrid.layouts, pl_module.device
        counts = {name: counts for layout in self._layouts.values() for name, counts in layout.held.items()}
        costs = {name: float(held.info.numel) for name, held in self._held.items()}
        self._rank, world_size = rank_and_world()
        self._owners = assign(costs, world_size, counts or None)
        hybrid.before_update = self._before_update

    def on_step_start(self, trainer: pl.Trainer, module: WatchedModule, step: int) -> None:
        """Decide whether this step is measured."""
        self._due = trainer.logger is not None and (step - 1) % self.every == 0

    @torch.no_grad()
    def _before_update(self) -> None:
        """Measure before the first group is stepped: DeepSpeed steps one after the other, hiding the rest meanwhile."""
        if self._due:
            self._due = False
            self._copies = {name: weight_krs.clone() for name, weight_krs in self._whole()}
            self._weights = self._measure()

    @torch.no_grad()
    def on_step_end(self, trainer: pl.Trainer, module: WatchedModule, step: int) -> None:
        """Measure what the step has added, bring the norms of all processes together, and log them."""
        weights, self._weights = self._weights, None
        if weights is None:
            return
        for name, weight_krs in self._whole():
            torch.sub(weight_krs, self._copies[name], out=self._copies[name])
        both = trainer.strategy.reduce(torch.stack([weights, self._measure()]), reduce_op="sum")
        self._copies.clear()
        if not trainer.is_global_zero or step - 1 == self.written:
            return
        places = [(name, block) for name, held in self._held.items() for block in range(held.info.blocks)]
        of_weights, of_updates = (dict(zip(places, row, strict=True)) for row in both.tolist())
        values = quantities(self._matrices, of_weights, of_updates, self._multipliers, self.branch_depth)
        log(trainer, scalars(values), step - 1)
        if writer := tensorboard(trainer):
            for tag, layers in values.items():
                if isinstance(layers, list) and all(norm < LARGEST_IN_HISTOGRAM for norm in layers):
                    writer.add_histogram(tag, np.array(layers), step - 1)

    def _whole(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every parameter that this process measures, (k, r, s), as it is now; one at a time."""
        for name, held in self._held.items():
            if held.flat is not None:
                weight = gather(self._layouts[held.flat], name, self._owners[name], held.flat.detach())
            else:
                weight = held.tensor.detach() if self._owners[name] == self._rank else None
            if weight is not None:
                yield name, split_blocks(weight.view(held.info.shape), held.info.blocks)

    def _measure(self) -> torch.Tensor:
        """‖·‖₂ of the copies' matrices, in order of the parameters; 0 for those that other processes measure."""
        norms = {name: torch.zeros(held.info.blocks, device=self._device) for name, held in self._held.items()}
        for name, copy_krs in self._copies.items():
            norms[name] = largest_singular_values(copy_krs)
        return torch.cat(list(norms.values()))
