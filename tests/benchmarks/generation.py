"""Case `generation`: text from our models, the keys and values of earlier tokens kept, or computed anew each time."""

import time
from dataclasses import replace
from itertools import islice
from typing import Any

import torch

from mup_lightning.config.data import VOCABULARIES
from mup_lightning.model.gpt2 import build
from mup_lightning.training.generate import generate
from tests.benchmarks.harness import Case, Settings, Turn, make_config
from tests.benchmarks.process import measure

KEPT, ANEW, AGAIN = "kept", "anew", "kept again"


def tokens_per_second(s: Settings, keep: bool) -> float:
    """Of greedy text behind a prompt of half the context; `keep` as `mup-lightning generate`, or a whole pass for each.

    That whole pass makes no logits but those of the last position, either.
    """
    config = make_config(s)
    model = build(config.model, config.derive(), seed=0).eval()
    seen = torch.randint(model.vocab_size, (s.context // 2,), generator=torch.Generator().manual_seed(0)).tolist()

    def anew() -> Any:
        while True:
            features_BC = model.features(torch.tensor([seen]))[:, -1]
            seen.append(int(model.logits(features_BC).argmax()))
            yield seen[-1]

    with torch.inference_mode():
        following = generate(model, seen, eot=None) if keep else anew()
        list(islice(following, s.warmup))  # the prompt among them
        begin = time.perf_counter()
        made = list(islice(following, s.steps))
        return len(made) / (time.perf_counter() - begin)


def turn(settings: Settings) -> Turn:
    """One round: kept, anew, kept again (the control), each in a process of its own; two models."""
    found = {}
    for s in (settings, replace(settings, width=settings.width // 3, depth=-(-settings.depth // 3), tokenizer="bytes")):
        speed = {who: measure(tokens_per_second, s, keep=who != ANEW)[0] for who in (KEPT, ANEW, AGAIN)}
        found[f"({s.width}, {s.depth}), {VOCABULARIES[s.tokenizer].size} tokens: tokens/s"] = speed
    return found


_DEFAULT = Settings(width=768, depth=12, context=512, batch=1, tokenizer="gpt2", rounds=5, steps=16, warmup=2)
_RATIOS = [(KEPT, ANEW, "at least 10"), (KEPT, AGAIN, "")]
GENERATION = Case(
    "a token after 256 others, with their keys and values kept or computed anew, of two models",
    _DEFAULT,
    turn,
    {"(768, 12), 50257 tokens: tokens/s": _RATIOS, "(256, 4), 256 tokens: tokens/s": _RATIOS},
)
