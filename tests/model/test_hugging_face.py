"""Every family of blocks against transformers' own implementation, which reads our weights as they are exported."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from mup_lightning.training.hugging_face import description, weights
from tests.families import LLAMA, MIXTRAL
from tests.model.models import MULTIPLIED, shaken, windows

NARROW = MIXTRAL | {"width": 48, "mlp_ratio": 0.6875, "experts_per_token": 4}
"""33 hidden units: no multiple of 16 bytes."""
LOGITS = [
    *({}, {"tied": False}, {"bias": False}, {"heads": None}, {"attention_scale": "1/d"}),
    {"activation": "relu", "mlp_ratio": 2},
    {"activation": "silu", "kv_heads": 4},  # as many as heads, in a matrix of their own
    *(LLAMA | more for more in ({}, {"tied": False, "attention_scale": "1/d"}, {"rope_base": 5e5, "width": 48})),
    *(LLAMA | more for more in ({"kv_heads": 1, "mlp_ratio": 2.75, "bias": True}, {"heads_per_kv": 1})),
    LLAMA | {"activation": "gelu"},
    *(LLAMA | {"qk_norm": True} | more for more in ({"qk_gain": True}, {"attention_scale": "1/d"})),
    *(LLAMA | {"attention_ratio": 2}, LLAMA | {"attention_ratio": 0.5, "qk_norm": True, "qk_gain": True}),
    *(
        MIXTRAL | {"attention_ratio": 1.5},
        MIXTRAL,
        NARROW,
        MIXTRAL | {"tied": False, "attention_scale": "1/d", "experts": 6, "experts_per_token": 3},
    ),
]
GRADIENTS = [
    *({}, {"tied": False}, LLAMA, LLAMA | {"tied": False}, LLAMA | {"attention_ratio": 2}),
    *(MIXTRAL | {"balance": 0.0}, MIXTRAL | {"balance": 0.0, "tied": False}),
    # The balance of loads, too, where both mean the same by it: of one sequence in one block.
    MIXTRAL | {"depth": 1, "balance": 0.5},
]


def theirs(model, folder):
    """The same in transformers. Its grouped products take neither float64 nor every side."""
    description(model, {}).save_pretrained(folder)
    save_file(weights(model), folder / "model.safetensors", {"format": "pt"})
    eager = {"experts_implementation": "eager"} if model.config.experts else {}
    return AutoModelForCausalLM.from_pretrained(folder, **eager).eval()


@pytest.mark.parametrize("switches", LOGITS)
@torch.no_grad()
def test_logits_are_equal(switches, tmp_path):
    """With multipliers, which transformers has in its weights; and what training minimises is the loss of these."""
    model, window = shaken(MULTIPLIED, **switches), windows()
    m, width = model.multipliers, model.config.width
    assert (m.input, m.residual, m.output, m.attention) == pytest.approx((3.0, 1 / 3, 8 / width, 0.5))
    ours, other = model(window[:, :-1]), theirs(model, tmp_path)(window[:, :-1]).logits
    assert other.std() > 0.1
    torch.testing.assert_close(ours, other, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.loss(window), F.cross_entropy(other.flatten(0, 1), window[:, 1:].flatten()))


@pytest.mark.parametrize("switches", GRADIENTS)
def test_gradients_are_equal_in_float64(switches, tmp_path):
    """Of the loss, by every parameter; ours comes in chunks, theirs from whole logits."""
    model = shaken(**switches)
    other, window = theirs(model, tmp_path).double(), windows(1 if switches.get("balance") else 2)
    loss = model.double().loss(window)
    loss.backward()
    routed = {"output_router_logits": True} if model.config.experts else {}
    out = other(window[:, :-1], **routed)
    reference = F.cross_entropy(out.logits.flatten(0, 1), window[:, 1:].flatten())
    assert loss.item() == pytest.approx(reference.item(), abs=1e-6)  # without the balance; theirs has float32 inside
    (reference + (other.router_aux_loss_coef * out.aux_loss if routed else 0)).backward()
    for network in (model, other):
        for parameter in network.parameters():
            parameter.data = parameter.grad  # to be saved by name
    other.save_pretrained(tmp_path / "gradients")
    wanted, found = load_file(tmp_path / "gradients" / "model.safetensors"), weights(model)
    assert wanted.keys() == found.keys()
    for name, gradient in wanted.items():
        assert gradient.abs().max() > 1e-4, name
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=0, msg=name)
