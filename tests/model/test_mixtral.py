"""Experts against Hugging Face's MixtralForCausalLM, and what only they have: dispatch, and the balance of loads."""

import pytest
import torch
import torch.nn.functional as F

from mup_lightning.config.model import ModelConfig
from mup_lightning.config.schema import Config
from mup_lightning.errors import UserError
from mup_lightning.model.gpt2 import build
from mup_lightning.model.mlp import ACTIVATIONS, Experts, grouped, grouped_outer
from mup_lightning.model.taps import NormRecorder
from mup_lightning.optim.groups import make_groups
from mup_lightning.optim.optimizer import HybridOptimizer
from mup_lightning.optim.registry import RULES
from mup_lightning.spectral.roles import Role
from tests.families import MIXTRAL
from tests.model.test_gpt2 import shake
from tests.model.test_llama import shape


def configure(optimizer="adamw", **switches):
    shape = {"width": 32, "depth": 3, "heads": 4, "context": 16, **MIXTRAL, **switches}
    recipe = {"init_std": 0.2, "base_width": shape["width"], "base_depth": shape["depth"], "optimizer": optimizer}
    return Config.from_plain({"model": shape, "recipe": recipe, "data": {"tokenizer": "bytes"}})


def make(**switches):
    """A model whose multipliers are all 1."""
    config = configure(**switches)
    model = build(config.model, config.derive(), seed=0).eval()
    shake(model)
    return model


def tokens(rows=2, length=17):
    return torch.randint(256, (rows, length), generator=torch.Generator().manual_seed(2))


def names(layer):
    """Ours -> theirs, of one block."""
    pairs = {"attention_norm.weight": "input_layernorm.weight", "mlp_norm.weight": "post_attention_layernorm.weight"}
    pairs |= {"attention.q.weight": "self_attn.q_proj.weight", "attention.out.weight": "self_attn.o_proj.weight"}
    pairs |= {"mlp.router.weight": "mlp.gate.weight", "mlp.gate_up": "mlp.experts.gate_up_proj"}
    pairs |= {"mlp.down": "mlp.experts.down_proj"}
    return {f"blocks.{layer}.{ours}": f"model.layers.{layer}.{theirs}" for ours, theirs in pairs.items()}


def to_hugging_face(model):
    """An independent MixtralForCausalLM with the same weights, and our names of its parameters."""
    from transformers import MixtralConfig, MixtralForCausalLM

    config = model.config
    other = MixtralForCausalLM(
        MixtralConfig(
            **shape(config),
            num_local_experts=config.experts,
            num_experts_per_tok=config.experts_per_token,
            router_aux_loss_coef=config.balance / config.experts_per_token,
            experts_implementation="eager",  # its grouped products take neither float64 nor every side
        )
    ).eval()
    known = {"token.weight": "model.embed_tokens.weight", "final_norm.weight": "model.norm.weight"}
    known |= {} if config.tied else {"head.weight": "lm_head.weight"}
    for layer in range(config.depth):
        known |= names(layer)
    ours, theirs = model.state_dict(), dict(other.named_parameters())
    with torch.no_grad():
        for mine, name in known.items():
            theirs[name].copy_(ours[mine].view_as(theirs[name]))
        for layer in range(config.depth):
            keys_values = ours[f"blocks.{layer}.attention.kv.weight"].chunk(2)
            for letter, own in zip("kv", keys_values, strict=True):
                theirs[f"model.layers.{layer}.self_attn.{letter}_proj.weight"].copy_(own)
    return other, known


SWITCHES = [
    {},
    {"tied": False, "experts": 6, "experts_per_token": 3},
    {"width": 48, "mlp_ratio": 0.6875, "experts_per_token": 4},  # 33 hidden units: no multiple of 16 bytes
]


@pytest.mark.parametrize("switches", SWITCHES)
def test_logits_equal_hugging_face(switches):
    model = make(**switches)
    other, _ = to_hugging_face(model)
    with torch.no_grad():
        ours, theirs = model(tokens()[:, :-1]), other(tokens()[:, :-1]).logits
    assert theirs.std() > 0.5
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("switches", "rows"),
    [({"balance": 0.0}, 2), ({"balance": 0.0, "tied": False}, 2), ({"depth": 1, "balance": 0.5}, 1)],
)
def test_gradients_equal_hugging_face_in_float64(switches, rows):
    """With the balance of loads, too, where both mean the same by it: of one sequence in one block."""
    model = make(**switches).double()
    other, known = to_hugging_face(model)
    other, window = other.double(), tokens(rows)
    loss = model.loss(window)
    loss.backward()
    out = other(window[:, :-1], output_router_logits=True)
    reference = F.cross_entropy(out.logits.flatten(0, 1), window[:, 1:].flatten())
    assert loss.item() == pytest.approx(reference.item(), abs=1e-6)  # without the balance; theirs has float32 inside
    (reference + other.router_aux_loss_coef * out.aux_loss).backward()
    theirs = dict(other.named_parameters())
    for name, parameter in model.named_parameters():
        if ".kv." not in name:
            assert parameter.grad.abs().max() > 1e-4, name
            wanted = theirs[known[name]].grad.view_as(parameter)
            torch.testing.assert_close(parameter.grad, wanted, atol=1e-6, rtol=0, msg=name)


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
    whole, parts, plain = (make(balance=balance).double() for balance in (3.0, 3.0, 0.0))
    losses = [model.loss(tokens(4)) for model in (whole, plain)]
    assert losses[0].item() == losses[1].item()
    for loss in (*losses, *(parts.loss(part) / 2 for part in tokens(4).split(2))):
        loss.backward()
    router = "blocks.0.mlp.router.weight"
    gradients = [dict(model.named_parameters())[router].grad for model in (whole, parts, plain)]
    torch.testing.assert_close(gradients[1], gradients[0])
    assert (gradients[2] - gradients[0]).norm() > 0.1 * gradients[0].norm()


@pytest.mark.parametrize("switches", [{}, {"mlp_ratio": 0.65625}], ids=["aligned", "group by group"])
def test_blocks_compile_as_a_whole(switches):
    plain, compiled = (make(**switches) for _ in range(2))
    for block in compiled.blocks:
        block.compile(backend="aot_eager", fullgraph=True)
    for model in (plain, compiled):
        model.loss(tokens()).backward()
    for (name, ours), theirs in zip(plain.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(theirs.grad, ours.grad, atol=1e-6, rtol=0, msg=name)


def test_tokens_go_where_float32_sends_them():
    """In bf16 products: the router's logits are the same to the bit, in the first block, whose input is the same."""
    model, found = make(depth=1, context=64), {}
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
    config = configure(optimizer, depth=1, experts=32, balance=0.0)
    recipe = config.derive()
    model = build(config.model, recipe, seed=0)
    stepper = HybridOptimizer(make_groups(dict(model.named_parameters()), model.parameter_info, recipe, {}))
    down = model.blocks[0].mlp.down
    model.loss(tokens(1, 9)).backward()
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


def test_every_parameter_has_its_role():
    info = make(tied=False).parameter_info
    found = {name.removeprefix("blocks.1.mlp."): it for name, it in info.items() if name.startswith("blocks.1.mlp.")}
    assert {name: (it.blocks, it.side, it.routed, it.label) for name, it in found.items()} == {
        "router.weight": (1, "experts", True, "router"),
        "gate_up": (8, "", True, "mlp"),
        "down": (4, "", True, "mlp"),
    }
    assert {it.role for it in found.values()} == {Role.HIDDEN}
    assert (found["gate_up"].block_shape, found["down"].block_shape) == ((112, 32), (32, 112))
    assert found["down"].closes_branch


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"experts": 4, "experts_per_token": 5}, r"model\.experts_per_token is 5; expected 2 to 4 \(model\.experts\)"),
        ({"experts": 4, "experts_per_token": 1}, r"model\.experts_per_token is 1; expected 2 to 4 .* learn nothing"),
        ({"experts": 4, "bias": True}, r"model\.bias is true, but experts have none"),
    ],
)
def test_impossible_experts_are_refused_by_name(switches, message):
    with pytest.raises(UserError, match=message):
        ModelConfig(**{"width": 64, "bias": False} | switches)


def test_a_base_with_experts_needs_a_model_with_some():
    with pytest.raises(UserError, match=r"recipe\.base_experts is 8, but model\.experts is null"):
        Config.from_plain({"recipe": {"base_experts": 8}, "data": {"tokenizer": "bytes"}})
