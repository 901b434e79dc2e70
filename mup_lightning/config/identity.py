"""What must be equal for two runs to be the same training, and what was done before a key existed. Imports no torch."""

from dataclasses import asdict
from typing import Any

from mup_lightning.config.schema import Config, leaves


def identity(config: Config) -> dict[str, Any]:
    """What must be equal for a checkpoint to be continued exactly, as plain nested values.

    Of the schedule, which sweeps hash whole, resuming compares the factors (`training.run`) and not the keys.

    Left out: what changes no number that is trained (devices, workers, intervals, places), and max_steps, which
    may be raised on purpose: but for the tokens that recipe.time_rule scales to.
    """
    data = asdict(config)
    trainer = {key: data["trainer"][key] for key in ("precision", "gradient_clip")}
    batch = {key: data["data"][key] for key in ("tokenizer", "batch_size")}
    if len(config.data.sources) > 1:
        batch["mixture"] = [str(share) for share in config.data.sources.values()]
    model = {key: value for key, value in data["model"].items() if key != "loss_chunk"}
    plain = {key: data[key] for key in ("recipe", "rules", "schedule", "seed")}
    mup, recipe = config.recipe.parametrization == "mup", plain["recipe"]
    timed = config.recipe.time_rule != "none"
    recipe["scale_clip"] &= (mup or timed) and config.trainer.gradient_clip > 0
    recipe["tokens"] = config.scaled_tokens if timed else None
    if law := config.recipe.law:
        recipe["time_rule"] = "fitted"
        recipe["law"] = {axis: found.estimate for axis in ("batch", "tokens") if (found := law.exponents[axis])}
    # Factors that change nothing are left out.
    changing = {name: {key: f for key, f in all_of.items() if f != 1.0} for name, all_of in recipe["base"].items()}
    recipe["base"] = {name: factors for name, factors in changing.items() if factors}
    recipe["decay_gains"] |= not config.recipe.weight_decay
    if config.derive().multipliers.attention == 1.0 and model["attention_scale"] == "auto":
        model["attention_scale"] = "1/sqrt(d)"
    if mup and (config.recipe.pure or config.recipe.optimizer in ("sophia", "soap")):
        plain["derivation"] = 2  # the first one left rho, ε and the longer side of a matrix unscaled
    return without_added(plain | {"model": model, "data": batch, "trainer": trainer})


def complete(config: Config, rules: dict[str, Any]) -> dict[str, Any]:
    """Dotted key -> value of all that determines a training, with these options of rules.

    Keys of `ADDED` are among them, whatever their value: two configurations are compared key by key.
    """
    known = leaves(identity(config) | {"rules": rules})
    return ADDED | known | {"model.attention_scale": config.model.attention_scale}


ADDED: dict[str, Any] = {
    "model.kv_heads": None,
    "model.heads_per_kv": 1,
    "model.position": "learned",
    "model.rope_base": 10000.0,
    "model.gated": False,
    "model.experts": None,
    "model.experts_per_token": 2,
    "model.balance": 0.01,
    "model.attention_ratio": 1,
    "model.norm": "layernorm",
    "model.qk_gain": False,
    "model.parallel": False,
    "model.logit_cap": None,
    "model.z_loss": 0.0,
    "model.norm_eps": 1e-5,
    "model.weights": None,
    "model.document_mask": False,
    "model.end_of_text": None,
    "data.mixture": None,
    "recipe.base": {},
    "recipe.base_experts": None,
    "recipe.decay_gains": True,
    "recipe.scale_clip": False,
    "recipe.weight_decay_rule": "spectral",
    "recipe.time_rule": "none",
    "recipe.base_batch": None,
    "recipe.base_tokens": None,
    "recipe.tokens": None,
    "recipe.law": None,
    "schedule.kind": "cosine",
    "schedule.warmup_tokens": None,
    "schedule.warmup_share": 0.1,
    "schedule.decay": 0.2,
    "schedule.floor": None,
    "rules.adamw.eps": None,
    "rules.adan.eps": None,
    "rules.shampoo.eps": None,
    "rules.shampoo.correct_bias": True,
    "rules.sso.sphere": 1.0,
    "rules.muon.per_head": False,
}
"""Keys that the first checkpoints and tables of results lack -> what was done then. At that value a key is no part of
an identity, so that those checkpoints can be continued and the hashes of those tables hold."""


def without_added(identity: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """An identity without the keys of `ADDED` that are as they were before them."""
    kept: dict[str, Any] = {}
    for key, value in identity.items():
        full = f"{prefix}{key}"
        if full not in ADDED or value != ADDED[full]:
            kept[key] = without_added(value, f"{full}.") if isinstance(value, dict) else value
    return kept
