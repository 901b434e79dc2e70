"""Text from a trained model: one token after another, drawn from what the model says of the next."""

import sys
import time
from collections.abc import Iterable, Iterator
from itertools import islice, tee

import torch

from mup_lightning.data.tokenizer import Tokenizer
from mup_lightning.errors import UserError
from mup_lightning.model.gpt2 import GPT2, Cache
from mup_lightning.training import GenerateSettings
from mup_lightning.training.finished import best_device, open_model

INCOMPLETE = "\ufffd"
"""What decoding puts in the place of bytes that are no whole character, or not yet."""


def generate(
    model: GPT2,
    prompt: list[int],
    *,
    eot: int | None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    seed: int = 0,
) -> Iterator[int]:
    """The tokens that follow a prompt, without end, or up to the end-of-text token, which is left out.

    Each is drawn from what the model says after the tokens before it: all of them while they fit into its context.
    When they fill it, the older half is forgotten, and the rest read again from the context's first position on. Keys
    and values of what was read are kept (`Cache`), so a token costs one position, not all.

    Args:
        model: in evaluation mode.
        prompt: token ids, 1 to the model's context.
        eot: the end-of-text token; None: there is none.
        temperature: and `top_k`, `top_p` (nucleus sampling, arXiv 1904.09751, after top_k), `seed`: see
            `GenerateSettings`.

    Raises:
        UserError: the prompt is empty, longer than the context or has ids that are not in the vocabulary, or the model
            says NaN or infinity.
    """
    context, device = model.config.context, model.token.weight.device
    if not 1 <= len(prompt) <= context:
        raise UserError(f"the prompt has {len(prompt)} tokens; expected 1 to the model's context, {context}")
    if unknown := [token for token in prompt if not 0 <= token < model.vocab_size]:
        raise UserError(f"the prompt has token {unknown[0]}; the model's vocabulary ends at {model.vocab_size - 1}")
    cache, chance = Cache(model.config, device=device), torch.Generator().manual_seed(seed)

    @torch.inference_mode()
    def drawn(seen: list[int]) -> Iterator[int]:
        while True:
            if len(seen) > context:
                seen, cache.length = seen[-max(1, context // 2) :], 0
            unread = torch.tensor([seen[cache.length :]], device=device)
            logits_V = model.logits(model.features(unread, cache=cache)[:, -1]).squeeze(0)
            token = choose(logits_V.double().cpu(), temperature, top_k, top_p, chance)
            if token == eot:
                return
            seen.append(token)
            yield token

    return drawn(list(prompt))


def choose(logits_V: torch.Tensor, temperature: float, top_k: int | None, top_p: float, chance: torch.Generator) -> int:
    """Draw a token from (V,) logits; see `generate`."""
    best = int(logits_V.argmax())
    if not logits_V.isfinite().all():
        raise UserError("the model's logits are not finite: its weights are damaged, or it diverged in training")
    if temperature == 0:
        return best
    V, logits_V = len(logits_V), (logits_V - logits_V[best]) / temperature
    logits_K, order_K = logits_V.topk(min(top_k or V, V)) if top_k or top_p < 1 else (logits_V, torch.arange(V))
    likely_K = logits_K.softmax(0)
    if top_p < 1:
        likely_K[likely_K.cumsum(0) - likely_K >= top_p] = 0  # those before it have top_p already
    return int(order_K[torch.multinomial(likely_K, 1, generator=chance)])


def pieces(tokens: Iterable[int], tokenizer: Tokenizer) -> Iterator[str]:
    """The text of tokens as they come, in whole characters: their bytes wait for the rest of theirs.

    Decoded after the piece before, as some tokenizers drop what begins a text.
    """
    before: list[int] = []
    piece: list[int] = []
    for token in tokens:
        piece.append(token)
        if not tokenizer.decode(before + piece).endswith(INCOMPLETE):
            yield tokenizer.decode(before + piece)[len(tokenizer.decode(before)) :]
            before, piece = piece, []
    yield tokenizer.decode(before + piece)[len(tokenizer.decode(before)) :]


def run(settings: GenerateSettings) -> None:
    """Print a prompt and what a model says after it, as it comes."""
    try:
        text = sys.stdin.buffer.read().decode() if settings.prompt == "-" else settings.prompt
        text.encode()
    except UnicodeError:
        raise UserError("the prompt is not UTF-8 text") from None
    found = open_model(settings.model)
    model, tokenizer = found.model, found.tokenizer
    if (objection := tokenizer.objection(text)) or not text:
        raise UserError(f"the prompt {f'has a {objection}' if objection else 'is empty'}; expected text")
    model.to(best_device())
    how = {key: getattr(settings, key) for key in ("temperature", "top_k", "top_p", "seed")}
    following = generate(model, tokenizer.encode_batch([text])[0].tolist(), eot=tokenizer.eot, **how)
    shown, counted = tee(islice(following, settings.tokens))
    begin = time.perf_counter()
    print(text, end="", flush=True)
    for piece in pieces(shown, tokenizer):
        print(piece, end="", flush=True)
    print(flush=True)
    number, seconds = len(list(counted)), time.perf_counter() - begin
    ended = "" if number == settings.tokens else ", then the end of the text"
    print(f"{number} tokens{ended}; {number / seconds:,.0f} tokens/s", file=sys.stderr)
