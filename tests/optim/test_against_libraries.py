"""Rules against other people's code: torch's own, and pytorch_optimizer's.

Where both compute one algorithm, the weights agree after six steps: with torch's kernels to the bit, with the others in
float64 to 1e-6 of the largest weight, which is far above the rounding of float64 (most come out below 1e-12), and far
below anything that a wrong decay rate, order or factor would do. Where a library differs from its paper or from us, the
case makes up for the difference, and says what it is.
"""

import numpy as np
import pytest
import pytorch_optimizer
import torch

from tests.optim.test_rules import conditioned, normal, run

SHAPES = [(8, 8), (24, 8), (8, 24)]
LR, DECAY = 0.05, 0.1
USUAL = {"lr": LR, "weight_decay": DECAY}


def unscaled(rows, columns):
    """torch's usual Muon has a factor √max(1, n_out/n_in), where ours has 1: it is divided out."""
    factor = max(1.0, rows / columns) ** 0.5
    return {"lr": LR / factor, "weight_decay": DECAY * factor}


# case: rule, what the library makes of parameters and a shape, our keys. torch's momentum is a moving average and ours
# accumulates, a factor that the orthogonalisation forgets; its Moonlight factor is called "match_rms_adamw".
LIBRARIES = {
    "lion": ("lion", lambda p, s: pytorch_optimizer.Lion(p, betas=(0.9, 0.99), **USUAL), {}),
    "adan": ("adan", lambda p, s: pytorch_optimizer.Adan(p, weight_decouple=True, **USUAL), {}),
    "torch's muon": ("muon", lambda p, s: torch.optim.Muon(p, momentum=0.95, **unscaled(*s)), {}),
    "torch's muon, Moonlight's factor": (
        "muon_kimi",
        lambda p, s: torch.optim.Muon(p, momentum=0.95, adjust_lr_fn="match_rms_adamw", **USUAL),
        {},
    ),
    # Sides of 8 alone: the eigenvectors of a singular GGᵀ, and with them SOAP's steps, are whatever the rounding makes
    # them. Without decay: the library decays the step that it has just made.
    "soap": (
        "soap",
        lambda p, s: pytorch_optimizer.SOAP(
            p, lr=LR, betas=(0.95, 0.95), precondition_frequency=10, eps=1e-8, max_precondition_dim=8, weight_decay=0.0
        ),
        {"options": {"max_dimension": 8}, "weight_decay": 0.0},
    ),
}
KERNELS = {
    "adamw": ("adamw", lambda p, s: torch.optim.AdamW(p, betas=(0.9, 0.95), eps=1e-8, fused=True, **USUAL), {}),
    **{
        # With momentum torch's decay enters the momentum, and ours, which the recipe is derived for, does not.
        f"sgd {o}": (
            "sgd",
            lambda p, s, o=o: torch.optim.SGD(p, lr=LR, fused=True, **o),
            {"options": o, "weight_decay": 0.0},
        )
        for o in ({"momentum": 0.0}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True})
    },
}


@pytest.mark.parametrize("case", LIBRARIES | KERNELS)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_a_librarys(monkeypatch, case, shape):
    """With the casts of Muon's iterations to bfloat16 taken out."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda tensor: tensor.to(torch.float64, copy=True))
    rule, make, keys = (LIBRARIES | KERNELS)[case]
    dtype = torch.float32 if case in KERNELS else torch.float64
    w, *gradients = (conditioned(x) for x in normal(*shape, count=7))
    parameter = torch.nn.Parameter(torch.tensor(w, dtype=dtype))
    theirs = make([parameter], shape)
    for g in gradients:
        parameter.grad = torch.tensor(g, dtype=dtype)
        theirs.step()
    found, wanted = run(rule, w, gradients, dtype=dtype, **keys)[0], parameter.detach().numpy()
    if case in KERNELS:
        assert np.array_equal(found, wanted)
    else:
        assert np.abs(found - wanted).max() < 1e-6 * np.abs(wanted).max()
