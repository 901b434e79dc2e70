"""Logits made with kept keys and values are those of the whole text, for every kind of block."""

import pytest
import torch

from mup_lightning.model.gpt2 import Cache
from tests.families import LLAMA, MIXTRAL
from tests.model.models import MULTIPLIED, shaken

BLOCKS = {
    "GPT-2": {},
    "Llama": LLAMA,
    "Mixtral": MIXTRAL,
    "one head of keys and values": LLAMA | {"heads": 4, "kv_heads": 1},
    "grouped, learned positions": {"heads_per_kv": 2},
    "QK-norm": {"qk_norm": True},
    "QK-norm with gains, rotated": LLAMA | {"qk_norm": True, "qk_gain": True, "rope_base": 100.0},
    "parallel": {"parallel": True},
    "parallel, rotated": LLAMA | {"parallel": True, "norm": "layernorm"},
    "capped logits": {"logit_cap": 2.0},
    "no norms, no biases": {"layer_norm": False, "bias": False},
    "1/d, untied": {"attention_scale": "1/d", "tied": False},
    "ReLU, narrow": {"activation": "relu", "mlp_ratio": 0.5},
}
CONTEXT = 24


@pytest.fixture(params=BLOCKS)
def model(request):
    return shaken(MULTIPLIED, **{"context": CONTEXT} | BLOCKS[request.param])


@pytest.mark.parametrize("sizes", [[1] * CONTEXT, [7, 1, 1, 5, 3, 1, 6], [CONTEXT]], ids=str)
@torch.no_grad()
def test_kept_or_computed_anew(model, sizes):
    tokens = torch.randint(101, (2, CONTEXT), generator=torch.Generator().manual_seed(0))
    whole, cache = model(tokens), Cache(model.config, batch=2)
    parts = [model.logits(model.features(part, cache=cache)) for part in tokens.split(sizes, dim=1)]
    assert cache.length == CONTEXT
    assert whole.std() > 0.1
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5 * float(whole.abs().max()), rtol=0)

    cache.length = 0  # forgets
    again = model.logits(model.features(tokens[:, 5:9], cache=cache))
    torch.testing.assert_close(again, model(tokens[:, 5:9]), atol=1e-5 * float(whole.abs().max()), rtol=0)


@torch.no_grad()
def test_it_has_room_for_one_context(model):
    cache = Cache(model.config)
    model.features(torch.zeros(1, CONTEXT, dtype=torch.int64), cache=cache)
    with pytest.raises(ValueError, match=f"{CONTEXT + 1} positions in a context of {CONTEXT}"):
        model.features(torch.zeros(1, 1, dtype=torch.int64), cache=cache)
