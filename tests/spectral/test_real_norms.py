"""The condition in real training of the real model, where the vocabulary is longer than the width."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mup_lightning.config.model import ModelConfig
from mup_lightning.config.schema import Config
from mup_lightning.model.gpt2 import build
from mup_lightning.optim.optimizer import HybridOptimizer
from mup_lightning.optim.registry import make_groups
from mup_lightning.optim.spectral_norm import rms_operator
from mup_lightning.spectral.condition import solve
from mup_lightning.spectral.families import FAMILIES
from mup_lightning.spectral.recipe import RecipeConfig, derive
from mup_lightning.spectral.roles import Role
from mup_lightning.spectral.scale import Ratios
from mup_lightning.training.module import build_training
from tests.families import LLAMA

WIDTHS = (32, 128)
VOCABULARY = 512
RATES = {"muon_kimi": 2**-6, "muon": 2**-5, "sso": 2**-5, "adamw": 2**-7, "lion": 2**-7}
MATRICES = ("token.weight", "head.weight", "blocks.1.attention.out.weight", "blocks.1.mlp.down.weight")


def text(rows=8):
    """Windows of tokens as frequent as words are: the theory's gradients are of low rank, those of noise are not."""
    frequencies = 1 / torch.arange(1, VOCABULARY + 1, dtype=torch.float64) ** 1.5
    return torch.multinomial(frequencies, rows * 17, True, generator=torch.Generator().manual_seed(0)).view(rows, 17)


def second_step(optimizer, width):
    """α‖ΔW‖_R of some matrices, α‖W‖_R, and the RMS of α ΔW h at the head, in the second step. (The first one of SSO
    also brings the weights onto their spheres.)"""
    base = {"base_width": 32, "base_depth": 2, "lr": RATES[optimizer], "init_std": 0.1}
    base |= {"optimizer": optimizer, "pure": FAMILIES[optimizer].whole_matrix}
    recipe = derive(RecipeConfig(**base), width, 2)
    shape = ModelConfig(width=width, depth=2, head_size=16, context=16, vocab_size=VOCABULARY, tied=False)
    model, window = build(shape, recipe, seed=1), text()
    stepper = HybridOptimizer(make_groups(dict(model.named_parameters()), model.parameter_info, recipe, {}))
    for _ in range(2):
        before = {name: model.get_parameter(name).detach().clone() for name in MATRICES}
        features = model.features(window[:, :-1]).detach()  # with the output multiplier
        stepper.zero_grad()
        model.loss(window).backward()
        stepper.step()
    alpha = {Role.INPUT: recipe.multipliers.input, Role.OUTPUT: recipe.multipliers.output, Role.HIDDEN: 1.0}
    found = {}
    for name in MATRICES:
        info, after = model.parameter_info[name], model.get_parameter(name).detach()
        for key, matrix in ((name, after - before[name]), (f"{name} itself", after)):
            spectral = float(torch.linalg.matrix_norm(matrix.double(), 2))
            found[key] = alpha[info.role] * rms_operator(spectral, info)
    change = features @ (model.head.weight.detach() - before["head.weight"]).t()
    return found | {"logits": float(change.square().mean().sqrt())}


@pytest.mark.parametrize("optimizer", RATES)
def test_updates_keep_their_size_where_the_vocabulary_is_longer_than_the_width(optimizer):
    found = [second_step(optimizer, width) for width in WIDTHS]
    held = [f"{name} itself" for name in MATRICES] if optimizer == "sso" else []  # on a sphere
    for key in (*MATRICES, "logits", *held):
        assert abs(np.log(found[1][key] / found[0][key]) / np.log(4)) < 0.1, key


HEADS = {
    "four heads share": {"head_size": 8, "heads_per_kv": 4},
    "all share two": {"head_size": 8, "kv_heads": 2},
    "by heads": {"head_size": 8, "heads_per_kv": 2},
    "wider heads": {"heads": 4, "kv_heads": 2},
}
"""What grows with the width: heads and those of keys and values (once with a step of each), heads alone, or the heads'
dimension."""


def fifth_step(optimizer, heads, width, depth, experts, seed, embedding):
    """Of the last block's matrices and vectors: RMS of the gradient's entries over what is derived, and ‖ΔW‖_R.

    In the fifth step: at first, queries, keys and gains hear something else from each head, which adds up to less.
    """
    switches = LLAMA | HEADS[heads] | {"qk_norm": True, "qk_gain": True, "tied": False, "context": 16}
    switches |= {"experts": experts}
    base = {"base_width": 32, "base_depth": 2, "lr": RATES[optimizer] / 2, "init_std": 0.1, "optimizer": optimizer}
    base |= {"base": {"embedding": {"init_std": embedding}}, "base_experts": experts and 4}
    config = Config.from_plain(
        {"model": switches | {"width": width, "depth": depth}, "recipe": base, "data": {"tokenizer": "bytes"}}
    )
    config.rules, config.seed = {"muon": {"per_head": heads == "by heads"}}, seed
    window, (model, stepper) = text(32 if experts else 8) % 256, build_training(config)
    model.double()
    for _ in range(5):
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        stepper.zero_grad()
        model.loss(window).backward()
        stepper.step()
    m = {"kv": config.model.kv_dim / config.model.kv_dim_at(32), "head": config.model.head_dim / 8}
    found = {}
    for name, info in model.parameter_info.items():
        if not name.startswith(f"blocks.{depth - 1}."):
            continue
        parameter, shape = model.get_parameter(name), (info.blocks, *info.block_shape)
        if info.side == "experts":  # each row is a matrix of its own
            shape = (experts, 1, info.shape[1])
        ratios = Ratios(width / 32, depth / 2, own=m.get(info.side, 1.0), experts=(experts or 4) / 4)
        derived = solve(info.role, 2, info.n_out, routed=info.routed).gradient_entry.at(ratios)
        each, pairs = [], zip((parameter.detach() - before[name]).view(shape), parameter.grad.view(shape), strict=True)
        for change, gradient in pairs:
            norm = rms_operator(float(torch.linalg.matrix_norm(change, 2)), replace(info, shape=tuple(change.shape)))
            each.append((float(gradient.square().mean().sqrt()) / derived, norm))
        kinds = max(1, info.blocks // experts) if info.routed else info.blocks  # gate and up, each of all experts
        found |= {f"{name.split('.', 2)[2]}.{kind}": np.mean(each[kind::kinds], axis=0) for kind in range(kinds)}
    return found


CASES = {
    **{heads: ("adamw", heads, (32, 2, None), (128, 2, None)) for heads in HEADS if heads != "by heads"},
    "by heads": ("muon_kimi", "by heads", (32, 2, None), (128, 2, None)),
    "depth": ("adamw", "four heads share", (32, 2, None), (32, 8, None)),
    **{
        f"experts, {optimizer}, {of}": (optimizer, "by heads", (32, 2, 4), larger)
        for optimizer in ("adamw", "muon_kimi")
        for of, larger in {"width": (128, 2, 4), "depth": (32, 8, 4), "number": (32, 2, 16)}.items()
    },
}


@pytest.mark.parametrize("case", CASES)
def test_blocks_change_as_derived(case):
    """Gradients' entries, the scale of ε, follow the derivation, which for narrow sides is a whole power of n away from
    that of other parameters, and falls as 1/E where every expert is given 1/E of the tokens; steps keep their size.
    Exponents from sizes of which one side is four times as large, two seeds, float64.

    The router's gradient is left out: the few steps that a test can take leave its rows adding up what tokens say as
    numbers of random signs, as √(1/E) over experts and √(1/n) over the width (docs/method/recipe.md).
    """
    optimizer, heads, *sizes = CASES[case]
    # Large embeddings over depth, so that the stream, by whose size the norms divide gradients, is not the sum of few
    # blocks.
    embedding = 10.0 if "depth" in case else 1.0
    of_size = [[fifth_step(optimizer, heads, *size, seed, embedding) for seed in (1, 2)] for size in sizes]
    small, large = ({key: np.mean([np.log2(seed[key]) for seed in of], axis=0) for key in of[0]} for of in of_size)
    experts = "experts" in case
    for key in [key for key in small if "mlp." in key or not experts]:
        gradient, update = (large[key] - small[key]) / 2
        assert abs(update) < 0.25, key
        # Few steps of Muon leave the values of shared heads, which start small, still growing to their size.
        if not ("router" in key if experts else optimizer == "muon_kimi"):
            assert abs(gradient) < (0.3 if experts else 0.45), key
