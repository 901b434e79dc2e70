"""The two families of blocks, for tests that run over both."""

GPT2 = {}
LLAMA = {
    **{"position": "rope", "norm": "rmsnorm", "bias": False, "heads_per_kv": 2},
    **{"activation": "silu", "gated": True, "mlp_ratio": 3.5},
}
"""recipes/model/llama.yaml, but for the number of heads that share keys and values: the tests' models have few."""

FAMILIES = {"gpt2": GPT2, "llama": LLAMA}


def model(switches):
    """Switches as keys of a configuration: {"norm": ...} as {"model.norm": ...}."""
    return {f"model.{key}": value for key, value in switches.items()}
