"""What the spectral monitor shows: the norms and products that the condition speaks of, and their names.

The condition (arXiv 2603.00541, section 3; `spectral.condition`) asks, for n and L that grow, for Θ(1) of

    input, output     α‖W‖_R                       α‖ΔW‖_R
    each branch       α‖W₂‖_R‖W₁‖_R·L              α‖ΔW₂‖_R‖W₁‖_R·L, α‖W₂‖_R‖ΔW₁‖_R·L, α‖ΔW₂‖_R‖ΔW₁‖_R·L

with ‖W‖_R = √(n_in/n_out)·‖W‖₂, α the multiplier of the layer or branch, and L the number of blocks.

**The matrices of a branch.** MLP: W₁ is `up`, W₂ is `down`. Attention: W₁ is the value matrix V, W₂ is `out`; queries
and keys are in no product. For softmax makes the output of a head an average of value vectors, with weights that are
positive and add up to 1 whatever Q and K are: ‖Σ_j p_j V x_j‖ <= max_j ‖V x_j‖. (Heads may average over different
positions, so over all heads the bound is weaker, by √heads at the most.) A change of Q or K moves these weights, which
are Θ(1), as long as the logits and their change are: so ‖Q‖_R, ‖K‖_R and their updates shall be Θ(1) each, and that is
why their norms are shown beside the products. Activation and LayerNorm, Θ(1) each, are left out of the products.

**k = 1** asks for α‖W‖ = Θ(1/√L) at the start and α‖ΔW‖ = Θ(1/L) in each step, and says nothing of second-order terms.
So the product of the weights is multiplied by √L there and the others by L. In a branch of two matrices the last one,
then, falls like 1/√L, where at k >= 2 it is Θ(1).

**Embeddings** are stored (n_in, n_out), with a row for each symbol or position: n_in is the number of rows. While that
is much more than the width n, ‖W‖_R of a random embedding falls like n^-1/2 and becomes Θ(1) only beyond; of a random
head it grows like n^1/2 rather than n. The same matrix is both where embeddings are tied: as input with the input
multiplier and n_in rows, as output with the output multiplier and n_out rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean

import torch

from mup_lightning.callbacks.panels import Panels
from mup_lightning.callbacks.spectral_shard import Place
from mup_lightning.model.gpt2 import GPT2
from mup_lightning.spectral.recipe import Multipliers
from mup_lightning.spectral.roles import Role

BRANCHES = {"attention": ("attention_value", "attention_out"), "mlp": ("mlp_up", "mlp_down")}
"""Branch -> its W₁ and W₂."""

PRODUCTS = {"w2_w1": "α‖W₂‖‖W₁‖·L", "dw2_w1": "α‖ΔW₂‖‖W₁‖·L", "w2_dw1": "α‖W₂‖‖ΔW₁‖·L", "dw2_dw1": "α‖ΔW₂‖‖ΔW₁‖·L"}
"""Products of a branch, by the last part of their tags."""

Values = dict[str, float | list[float]]
"""Beginning of a tag -> a number, or one for each layer."""


@dataclass(frozen=True)
class Matrix:
    """One matrix that is measured, in one of its roles.

    Attributes:
        place: where it lies.
        role: input, hidden or output.
        label: its name in tags.
        layer: block that it belongs to; None outside blocks.
        side_factor: √(n_in/n_out).
    """

    place: Place
    role: Role
    label: str
    layer: int | None
    side_factor: float


def matrices(model: GPT2) -> list[Matrix]:
    """All matrices of a model, in order of the layers; to be called before a strategy wraps it."""
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}

    def of(parameter: torch.Tensor, role: Role, labels: list[str], layer: int | None = None) -> list[Matrix]:
        rows, n_in = parameter.shape
        n_out = rows // len(labels)
        if role is Role.INPUT:
            n_in, n_out = n_out, n_in
        factor = (n_in / n_out) ** 0.5
        places = [(names[parameter], block) for block in range(len(labels))]
        return [Matrix(place, role, label, layer, factor) for place, label in zip(places, labels, strict=True)]

    found = of(model.token.weight, Role.INPUT, ["token"]) + of(model.position.weight, Role.INPUT, ["position"])
    for layer, block in enumerate(model.blocks):
        for weight, labels in (
            (block.attention.qkv.weight, ["attention_query", "attention_key", "attention_value"]),  # type: ignore[union-attr]
            (block.attention.out.weight, ["attention_out"]),  # type: ignore[union-attr]
            (block.mlp.up.weight, ["mlp_up"]),  # type: ignore[union-attr]
            (block.mlp.down.weight, ["mlp_down"]),  # type: ignore[union-attr]
        ):
            assert isinstance(weight, torch.Tensor)
            found += of(weight, Role.HIDDEN, labels, layer)
    return found + of(model.output_matrix, Role.OUTPUT, ["head"])


def quantities(
    matrices: list[Matrix],
    weights: dict[Place, float],
    updates: dict[Place, float],
    multipliers: Multipliers,
    branch_depth: int,
) -> Values:
    """Everything that is shown, from the spectral norms.

    Args:
        matrices: of the model, in order of the layers.
        weights: ‖W‖₂ before a step.
        updates: ‖ΔW‖₂ of that step, weight decay and schedule in it.
        multipliers: α of input, branches and output.
        branch_depth: k.

    Returns:
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
    values |= {f"spectral/norms/{Role.HIDDEN}/{key}": layers for key, layers in hidden.items()}
    depth = len(hidden["mlp_up/w"])
    for branch, (first, second) in BRANCHES.items():
        for product in PRODUCTS:
            of_second, of_first = product.split("_")
            pairs = zip(hidden[f"{second}/{of_second[:-1]}"], hidden[f"{first}/{of_first[:-1]}"], strict=True)
            power = 0.5 if product == "w2_w1" and branch_depth == 1 else 1.0
            values[f"spectral/condition/{branch}/{product}"] = [
                multipliers.residual * a * b * depth**power for a, b in pairs
            ]
    return values


_SUMMARIES: dict[str, Callable[[list[float]], float]] = {"mean": fmean, "min": min, "max": max}


def scalars(values: Values) -> dict[str, float]:
    """Tag -> number: a layer's ends in `/layer_<i>`, and mean, least and largest over the layers in `/mean`, ..."""
    tagged: dict[str, float] = {}
    for tag, value in values.items():
        if isinstance(value, float):
            tagged[tag] = value
            continue
        tagged |= {f"{tag}/layer_{layer:03d}": number for layer, number in enumerate(value)}
        tagged |= {f"{tag}/{name}": summary(value) for name, summary in _SUMMARIES.items()}
    return tagged


def panels(branch_depth: int) -> Panels:
    """The charts: the condition by role, then the norms that it is made of."""
    charts: dict[str, list[object]] = {}
    for quantity, text in (("w", "α‖W‖_R"), ("dw", "α‖ΔW‖_R, of one step")):
        tags = [
            rf"spectral/condition/{place}/{quantity}$" for place in ("input/token", "input/position", "output/head")
        ]
        charts[f"input and output: {text}"] = ["Multiline", tags]
    for branch in BRANCHES:
        for product, formula in PRODUCTS.items():
            text = formula.replace("·L", "·√L") if product == "w2_w1" and branch_depth == 1 else formula
            tag = f"spectral/condition/{branch}/{product}"
            title = f"{branch} branch: {text}, mean and range over layers"
            charts[title] = ["Margin", [f"{tag}/mean", f"{tag}/min", f"{tag}/max"]]
    norms = {
        f"hidden matrices: {text}, mean over layers": ["Multiline", [rf"spectral/norms/hidden/\w+/{quantity}/mean$"]]
        for quantity, text in (("w", "‖W‖_R"), ("dw", "‖ΔW‖_R of one step"))
    }
    return {"Does the spectral condition hold? The same at every size": {**charts, **norms}}
