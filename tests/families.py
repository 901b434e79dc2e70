"""The families of blocks, for tests that run over all."""

GPT2 = {}
LLAMA = {
    **{"position": "rope", "norm": "rmsnorm", "bias": False, "heads_per_kv": 2},
    **{"activation": "silu", "gated": True, "mlp_ratio": 3.5},
}
"""recipes/model/llama.yaml, but for the number of heads that share keys and values: the tests' models have few."""

MIXTRAL = LLAMA | {"experts": 4}
"""Likewise recipes/model/mixtral.yaml, with half of its experts."""

FAMILIES = {"gpt2": GPT2, "llama": LLAMA, "mixtral": MIXTRAL}


def model(switches):
    """Switches as keys of a configuration: {"norm": ...} as {"model.norm": ...}."""
    return {f"model.{key}": value for key, value in switches.items()}
