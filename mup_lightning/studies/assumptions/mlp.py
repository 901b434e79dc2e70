"""The residual ReLU MLP, h_l = h_{l-1} + α W₂ φ(W₁ h_{l-1}), on the probe's task.

It is the probe's network, so branches have biases; they start at 0.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from mup_lightning.spectral.recipe import Recipe
from mup_lightning.studies.assumptions.settings import BASE, AssumptionSettings
from mup_lightning.studies.assumptions.tape import Matrix, Place, Tape
from mup_lightning.studies.probe.network import Branch, ResidualMLP, batches

Batch = tuple[torch.Tensor, torch.Tensor]


def base_values(settings: AssumptionSettings) -> dict[str, float]:
    """Inits and multipliers on the condition: layers keep the size of their input, branches are 1/L, logits small."""
    width, depth = BASE["mlp"]
    std = width**-0.5
    return {
        "init_std": std,
        "input_multiplier": 1 / (std * settings.inputs**0.5),
        "residual_multiplier": 1 / depth,
        "output_multiplier": 0.25,
    }


class MLPSubject:
    """See `subject.Subject`.

    Args:
        settings: sizes.
        recipe: for this depth.
        depth: L.
        seed: of weights, task and data.
    """

    matrices = (
        Matrix("input", "input"),
        Matrix("first", "branches.{block}.layers.0.weight", feeds="second"),
        Matrix("second", "branches.{block}.layers.1.weight"),
    )

    def __init__(self, settings: AssumptionSettings, recipe: Recipe, depth: int, seed: int) -> None:
        self.settings, self.seed = settings, seed
        self.model = ResidualMLP(
            settings.width,
            depth,
            branch_depth=2,
            inputs=settings.inputs,
            classes=settings.classes,
            multipliers=recipe.multipliers,
            init_std={role: values.init_std for role, values in recipe.values.items()},
            seed=seed,
        )
        self.infos = self.model.infos
        self._layers: dict[Place, nn.Module] = {
            (name, block): branch.layers[number]
            for block, branch in enumerate(self.model.branches)
            for number, name in enumerate(("first", "second"))
            if isinstance(branch, Branch)
        }

    def batches(self) -> Iterator[Batch]:
        """See `Subject`."""
        return batches(self.seed, self.settings.batch, self.settings.inputs, self.settings.classes)

    def loss(self, batch: Batch, tape: Tape | None = None) -> torch.Tensor:
        """See `Subject`."""
        x_BD, labels_B = batch
        # One position a sample: the tape's tensors are (B, T, ...).
        if tape is None:
            return F.cross_entropy(self.model(x_BD.unsqueeze(1)).squeeze(1), labels_B)
        x_B1D = x_BD.unsqueeze(1)

        def stream(h_B1C: torch.Tensor, block: int) -> None:
            if block == 0:
                tape.record(("input", None), x_B1D, h_B1C, self.model.multipliers.input)
            else:
                tape.streams.append(h_B1C.detach())

        # What enters block l is the stream behind block l - 1.
        behind = [*self.model.branches, self.model.output]
        handles = [
            module.register_forward_pre_hook(lambda _, h, block=block: stream(h[0], block))
            for block, module in enumerate(behind)
        ]
        try:
            with tape.listen(self._layers):
                return F.cross_entropy(self.model(x_B1D).squeeze(1), labels_B)
        finally:
            for handle in handles:
                handle.remove()
