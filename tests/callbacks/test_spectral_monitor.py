"""The live spectral monitor in real training, held against numpy's SVD of what a bystander saw of the weights."""

from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import HISTOGRAMS, EventAccumulator

from mup_lightning.callbacks.spectral_monitor import STACKED
from mup_lightning.errors import Diverged
from mup_lightning.spectral.recipe import derive
from mup_lightning.studies.features.report import read_scalars
from mup_lightning.training.train import train
from tests import families

EXPERTS = families.MIXTRAL["experts"]


def copy(module):
    return {name: weight.detach().double().numpy().copy() for name, weight in module.model.named_parameters()}


class Bystander(pl.Callback):
    """Keeps the weights before and after every step, by steps done before it; the batch is one micro-batch."""

    def __init__(self):
        self.before, self.after = {}, {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.before[batch_idx] = copy(pl_module)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.after[batch_idx] = copy(pl_module)

    def named(self, step):
        """Label -> (W, ΔW), with a layer's number before the label in blocks; of experts, those of all."""
        found = {}
        for name, old in self.before[step].items():
            new = self.after[step][name]
            layer = next((part for part in name.split(".") if part.isdigit()), None)
            kind = name.removesuffix(".weight").removeprefix(f"blocks.{layer}.").replace(".", "_")
            if old.ndim == 1:
                continue
            labels = STACKED.get(kind, [kind])
            routed = kind in ("mlp_gate_up", "mlp_down") and "blocks.0.mlp.router.weight" in self.after[step]
            labels = labels * (EXPERTS if routed else 1)
            parts = (np.split(weight, len(labels)) for weight in (old, new))
            for label, W, new_W in zip(labels, *parts, strict=True):
                before = found.setdefault((layer, label), ([], []))
                before[0].append(W)
                before[1].append(new_W - W)
        return {place: (np.stack(W), np.stack(dW)) for place, (W, dW) in found.items()}


def of(matrices, n_in, n_out):
    """‖·‖_R of every expert's matrix, or of the one that there is."""
    return (n_in / n_out) ** 0.5 * np.linalg.svd(matrices, compute_uv=False)[:, 0]


def expected(config, seen):
    """Every scalar that shall be there, from exact norms."""
    alpha = derive(config.recipe, config.model.width, config.model.depth).multipliers
    width, depth, rows = config.model.width, config.model.depth, {"token": 256}
    if config.model.position == "learned":
        rows["position"] = config.model.context
    tags = {}
    norms = {
        (layer, label): [of(m, *reversed(m.shape[1:])) for m in pair]
        for (layer, label), pair in seen.items()
        if layer is not None
    }
    for place, quantity in enumerate(("w", "dw")):
        for label, count in rows.items():
            norm = of(seen[None, label][place], count, width).item()
            tags[f"spectral/norms/input/{label}/{quantity}"] = norm
            tags[f"spectral/condition/input/{label}/{quantity}"] = alpha.input * norm
        norm = of(seen[None, "token" if config.model.tied else "head"][place], width, 256).item()
        tags[f"spectral/norms/output/head/{quantity}"] = norm
        tags[f"spectral/condition/output/head/{quantity}"] = alpha.output * norm
        for label in dict.fromkeys(label for _, label in norms):
            layers = [norms[str(layer), label][place].mean() for layer in range(depth)]
            add_layers(tags, f"spectral/norms/hidden/{label}/{quantity}", layers)
    for branch, second, first in (("attention", "attention_out", "attention_value"), ("mlp", "mlp_down", "mlp_up")):
        for product, a, b in (("w2_w1", 0, 0), ("dw2_w1", 1, 0), ("w2_dw1", 0, 1), ("dw2_dw1", 1, 1)):
            times = depth**0.5 if config.recipe.branch_depth == 1 and product == "w2_w1" else depth
            layers = [
                np.mean(alpha.residual * norms[str(layer), second][a] * norms[str(layer), first][b] * times)
                for layer in range(depth)
            ]
            add_layers(tags, f"spectral/condition/{branch}/{product}", layers)
    return tags


def add_layers(tags, start, layers):
    tags |= {f"{start}/layer_{layer:03d}": value for layer, value in enumerate(layers)}
    tags |= {f"{start}/mean": np.mean(layers), f"{start}/min": np.min(layers), f"{start}/max": np.max(layers)}


@pytest.fixture
def wide(tiny):
    """Wide enough that the Krylov space is far from everything; one micro-batch a step."""
    shape = {"model.width": 96, "model.depth": 3, "model.context": 64, "data.micro_batch": 8}
    often = {"trainer.max_steps": 5, "trainer.validate_every": 0, "trainer.checkpoint_every": 0}
    return lambda **changes: tiny(**(shape | often | {"trainer.spectral_norms_every": 2} | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"recipe.optimizer": "adamw", "recipe.residual_multiplier": 0.7, "recipe.output_multiplier": 3.0},
        {"recipe.optimizer": "sso", "model.tied": False},
        {"recipe.branch_depth": 1, "schedule.min_lr": 0.0},  # the last step changes nothing: ΔW is 0, and not NaN
        {"recipe.parametrization": "sp", "model.layer_norm": False, "model.bias": False},
        families.model(families.LLAMA | {"heads": 6}),
        families.model(families.MIXTRAL | {"heads": 6}),
    ],
    ids=["adamw", "untied", "k=1", "sp", "llama", "mixtral"],
)
def test_every_value_is_what_an_svd_says(wide, changes):
    """Names, steps and values of everything that is logged, and histograms over the layers."""
    config, bystander = wide(**changes), Bystander()
    logs = train(config, callbacks=[bystander], progress=False).tensorboard
    found = {tag: dict(curve) for tag, curve in read_scalars(Path(logs)).items() if tag.startswith("spectral/")}
    for step in (0, 2, 4):
        wanted = expected(config, bystander.named(step))
        assert found.keys() == wanted.keys()
        for tag, value in wanted.items():
            factors = 2 if "condition/attention" in tag or "condition/mlp" in tag else 1
            # From below, by less than 1 % for each norm; float32 against float64 above.
            assert 0.99**factors * value <= found[tag][step] <= value * (1 + 1e-4), (tag, step)
    assert all(list(curve) == [0, 2, 4] for curve in found.values())
    events = EventAccumulator(logs, size_guidance={HISTOGRAMS: 0}).Reload()
    tags = [tag for tag in events.Tags()["histograms"] if tag.startswith("spectral/")]
    assert len(tags) == 2 * 4 + (6 + config.model.gated + (config.model.experts is not None)) * 2
    assert [(h.step, h.histogram_value.num) for h in events.Histograms(tags[0])] == [(0, 3), (2, 3), (4, 3)]


def test_weights_beyond_all_bounds_end_the_run_as_they_always_do(wide):
    with pytest.raises(Diverged):
        train(wide(**{"recipe.optimizer": "adamw", "recipe.lr": 1e34}), progress=False)
