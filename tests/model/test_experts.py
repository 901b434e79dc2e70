"""What only experts have: dispatch, groups of rows, and the balance of loads."""

import pytest
import torch

from mup_lightning.config.model import ModelConfig
from mup_lightning.config.schema import Config
from mup_lightning.model.mlp import ACTIVATIONS, Experts, grouped, grouped_outer
from mup_lightning.model.taps import NormRecorder
from mup_lightning.optim.registry import RULES
from mup_lightning.training.module import build_training
from tests.families import MIXTRAL
from tests.model.models import TINY, shaken, windows


@pytest.mark.parametrize("gated", [True, False])
def test_an_expert_is_an_mlp(gated):
    """Token by token, whichever experts its router chooses, with the activation and the matrices that MLPs have."""
    config = ModelConfig(width=16, vocab_size=256, bias=False, experts=5, experts_per_token=3, gated=gated)
    layer, generator = Experts(config), torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        parameter.data.normal_(generator=generator)
    x_BTC = torch.randn(2, 7, 16, generator=generator)
    found, balance = layer(x_BTC)
    first = (layer.gate_up if gated else layer.up).view(5, -1, 16)
    loads, chances = torch.zeros(2, 5), torch.zeros(2, 5)
    for b, t in [(b, t) for b in range(2) for t in range(7)]:
        x, chance = x_BTC[b, t], (layer.router.weight @ x_BTC[b, t]).softmax(0)
        best = chance.argsort(descending=True)[:3]
        wanted = 0
        for e in best:
            hidden = first[e] @ x
            hidden = ACTIVATIONS["gelu"](hidden[:64]) * (hidden[64:] if gated else 1)
            wanted = wanted + chance[e] / chance[best].sum() * (layer.down.view(5, 16, 64)[e] @ hidden)
        torch.testing.assert_close(found[b, t], wanted, atol=1e-4, rtol=1e-5)
        loads[b, best] += 1 / 21
        chances[b] += chance / 7
    torch.testing.assert_close(balance, 5 * (loads * chances).sum(1).mean())


def test_gradients_do_not_depend_on_micro_batches():
    """Of a batch they are the mean of those of its parts, with the balance; and the loss that is said is without it."""
    whole, parts, plain = (shaken(**MIXTRAL, balance=balance).double() for balance in (3.0, 3.0, 0.0))
    losses = [model.loss(windows(4)) for model in (whole, plain)]
    assert losses[0].item() == losses[1].item()
    for loss in (*losses, *(parts.loss(part) / 2 for part in windows(4).split(2))):
        loss.backward()
    router = "blocks.0.mlp.router.weight"
    gradients = [dict(model.named_parameters())[router].grad for model in (whole, parts, plain)]
    torch.testing.assert_close(gradients[1], gradients[0])
    assert (gradients[2] - gradients[0]).norm() > 0.1 * gradients[0].norm()


def test_tokens_go_where_float32_sends_them():
    """In bf16 products: the router's logits are the same to the bit, in the first block, whose input is the same."""
    model, found = shaken(**MIXTRAL, depth=1, context=64), {}
    routed = model.blocks[0].mlp
    x_BTC = torch.randn(2, 64, 32, generator=torch.Generator().manual_seed(0))
    for half in (False, True):
        recorder = NormRecorder()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            y_BTC, balance = routed(x_BTC, recorder, 0)
        found[half] = recorder.norms(), balance.item(), y_BTC
    assert found[False][:2] == found[True][:2]
    assert 0.25 <= found[True][0]["largest_load", 0] <= 0.5
    torch.testing.assert_close(found[False][2], found[True][2], atol=0.1, rtol=0.05)
    assert not torch.equal(found[False][2], found[True][2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("side", [24, 13])
@pytest.mark.parametrize("ends", [[0, 5, 5, 9], [0, 0, 0, 0], [9, 9, 9, 9]])
def test_products_of_groups(dtype, side, ends):
    """By groups that may be empty, of all sides and precisions, and for the gradients that a sum has."""
    generator = torch.Generator().manual_seed(0)
    x_MI = torch.randn(ends[-1], 16, generator=generator).to(dtype).requires_grad_()
    weight_EOI = torch.randn(4, side, 16, generator=generator).to(dtype).requires_grad_()
    found = grouped(x_MI, weight_EOI, torch.tensor(ends, dtype=torch.int32))
    group_M = torch.bucketize(torch.arange(ends[-1]), torch.tensor(ends), right=True)
    wanted = torch.einsum("moi,mi->mo", weight_EOI[group_M], x_MI)
    close = {"atol": 0.1 if dtype == torch.bfloat16 else 1e-5, "rtol": 1e-2}
    torch.testing.assert_close(found, wanted, **close)
    ours, theirs = (torch.autograd.grad(y.sum(), (x_MI, weight_EOI)) for y in (found, wanted))
    torch.testing.assert_close(ours, theirs, **close)
    assert grouped_outer(found.detach(), x_MI.detach(), torch.tensor(ends, dtype=torch.int32)).shape == (4, side, 16)


@pytest.mark.parametrize("optimizer", RULES)
def test_experts_without_tokens_stay_and_do_no_harm(optimizer):
    """Their gradient is 0 rather than missing, and every rule steps over it; an empty batch passes, too."""
    shape = TINY | MIXTRAL | {"depth": 1, "experts": 32, "balance": 0.0, "vocab_size": 256}
    recipe = {"optimizer": optimizer, "init_std": 0.2, "base_width": 32, "base_depth": 1}
    model, stepper = build_training(
        Config.from_plain({"model": shape, "recipe": recipe, "data": {"tokenizer": "bytes"}})
    )
    down = model.blocks[0].mlp.down
    model.loss(windows(1, 9)).backward()
    if stepper.wants_hessian():
        stepper.give_hessian({key: torch.ones_like(p) for key, p in stepper.wants_hessian().items()})
    unused_E = ~down.grad.view(32, -1).any(1)
    assert 16 <= unused_E.sum() < 32
    before = down.detach().clone().view(32, -1)
    for _ in range(2):  # SOAP's first step changes nothing
        stepper.step()
    change_E = (down.detach().view(32, -1) - before).abs().amax(1)
    assert torch.isfinite(down).all()
    assert change_E[~unused_E].min() > 0
    if optimizer != "sso":  # brings every matrix onto its sphere
        assert change_E[unused_E].max() == 0
    assert model(torch.empty(0, 16, dtype=torch.int64)).shape == (0, 16, 256)
