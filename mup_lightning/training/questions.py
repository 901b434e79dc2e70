"""Multiple choice from a file: a model's answer is the choice that it finds likeliest, given the question.

As in lm_eval (EleutherAI's lm-evaluation-harness 0.4): a blank stands between question and choice, and the log
probabilities of a choice's tokens are added up. acc compares the sums, acc_norm the sums over the choice's characters,
acc_bytes over its bytes; of equal ones the first counts.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from mup_lightning.data.tokenizer import Tokenizer
from mup_lightning.errors import UserError, located
from mup_lightning.files import read_text
from mup_lightning.model.gpt2 import GPT2
from mup_lightning.model.loss import soft_cap

FORMS = (("ctx", "endings", "label"), ("query", "choices", "gold"))
"""Keys of question, choices, and the place of the right one, counted from 0: HellaSwag's, and lm_eval's inside."""

LENGTHS: dict[str, Callable[[str], int]] = {
    "acc": lambda choice: 1,
    "acc_norm": len,
    "acc_bytes": lambda choice: len(choice.encode()),
}
"""lm_eval's name of a measure -> what the log probability of a choice is divided by."""


@dataclass(frozen=True)
class Question:
    """One line of a file; `place` says which."""

    place: str
    text: str
    choices: list[str]
    right: int


def read(file: Path, tokenizer: Tokenizer) -> list[Question]:
    """The questions of a JSONL file, one a line, with the keys of one of `FORMS`; other keys are ignored.

    Raises UserError, with file and line, for one that is not JSON, not a question, or has text that the tokenizer
    cannot encode.
    """
    found = []
    for number, line in enumerate(read_text(file, "questions as JSONL").split("\n"), 1):
        place = f"{file}, line {number}"
        if line.strip():
            with located(place):
                found.append(Question(place, *_parse(line)))
                texts = [found[-1].text, *found[-1].choices]
                if reason := next(filter(None, map(tokenizer.objection, texts)), None):
                    raise UserError(f"the vocabulary cannot hold it: {reason}")
    if not found:
        raise UserError(f"{file} holds no questions; expected one a line, as JSON with {_keys()}")
    return found


def _parse(line: str) -> tuple[str, list[str], int]:
    try:
        row = json.loads(line)
        json.dumps(row, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise UserError(f"is not JSON in UTF-8 ({error}); expected {_keys()}") from None
    form = next((form for form in FORMS if isinstance(row, dict) and form[0] in row), None)
    if form is None:
        raise UserError(f"is {line.strip()[:60]}; expected {_keys()}")
    text, choices, right = (row.get(key) for key in form)
    listed = isinstance(choices, list) and len(choices) > 1 and all(isinstance(one, str) and one for one in choices)
    place = int(right) if str(right).isdecimal() else -1
    fits = {form[0]: isinstance(text, str), form[1]: listed, form[2]: listed and 0 <= place < len(choices)}
    for key in (key for key in form if not fits[key]):
        raise UserError(
            f"{key} is {str(row.get(key))[:60]}; expected {form[0]}, a text, {form[1]}, two or more texts that are not "
            f"empty, and {form[2]}, which of them is right, from 0"
        )
    return text, choices, place


def _keys() -> str:
    return " or ".join(f"the keys {', '.join(form)}" for form in FORMS)


def accuracy(model: GPT2, tokenizer: Tokenizer, questions: list[Question], batch: int, context: int) -> dict[str, Any]:
    """The share of right answers, of a model in evaluation mode on its device.

    Args:
        model: and its `tokenizer`.
        questions: at least one.
        batch: choices in one forward pass.
        context: most tokens of a forward pass; longer questions lose their beginning.

    Returns "questions", "acc", "acc_norm" and "acc_bytes", each with its standard error, "..._stderr", which is None
    for one question. Raises UserError where a choice alone is longer than the context.
    """
    encoded = _encode(tokenizer, questions, context)
    sums = _log_probabilities(model, encoded, batch, context)
    hits: dict[str, list[bool]] = {name: [] for name in LENGTHS}
    for question in questions:
        own, sums = np.array(sums[: len(question.choices)]), sums[len(question.choices) :]
        for name, length in LENGTHS.items():
            hits[name].append(int(np.argmax(own / [length(choice) for choice in question.choices])) == question.right)
    found: dict[str, Any] = {"questions": len(questions)}
    for name, right in hits.items():
        spread = float(np.std(right, ddof=1) / len(right) ** 0.5) if len(right) > 1 else None
        found |= {name: float(np.mean(right)), f"{name}_stderr": spread}
    return found


def _encode(tokenizer: Tokenizer, questions: list[Question], context: int) -> list[tuple[list[int], int]]:
    """For each choice the tokens of question and choice, and how many of them are the choice's."""
    befores = tokenizer.encode_batch([question.text.rstrip() for question in questions])
    wholes = iter(tokenizer.encode_batch([f"{q.text} {choice}" for q in questions for choice in q.choices]))
    found = []
    for question, before in zip(questions, befores, strict=True):
        for choice in question.choices:
            own = next(wholes)[len(before) :].tolist()
            if not 0 < len(own) <= context:
                raise UserError(
                    f"{question.place}: {choice[:60]!r} is {len(own)} tokens; expected at least one, and at most the "
                    f"context of {context}"
                )
            # With nothing before it, a choice follows the end of a document.
            found.append(((before.tolist() or [tokenizer.eot]) + own, len(own)))
    return found


@torch.no_grad()
def _log_probabilities(model: GPT2, encoded: list[tuple[list[int], int]], batch: int, context: int) -> list[float]:
    """For each choice the sum over its tokens of the logarithm of their probability, given all before them."""
    device, sums = model.output_matrix.device, [0.0] * len(encoded)
    order = sorted(range(len(encoded)), key=lambda place: -len(encoded[place][0]))  # those of one length together
    for first in tqdm(range(0, len(order), batch), desc="answering", disable=None):
        places = order[first : first + batch]
        kept = [encoded[place][0][-context - 1 :] for place in places]
        longest = max(map(len, kept)) - 1
        # Padding comes after the tokens, which do not see it.
        tokens_BT = torch.tensor([ids[:-1] + [0] * (longest + 1 - len(ids)) for ids in kept], device=device)
        asked = [
            (row, at, ids[at + 1])
            for row, (place, ids) in enumerate(zip(places, kept, strict=True))
            for at in range(len(ids) - 1 - encoded[place][1], len(ids) - 1)
        ]
        rows, positions, targets = torch.tensor(asked, device=device).T
        logits_NV = model.features(tokens_BT)[rows, positions] @ model.output_matrix.t()
        logits_NV = soft_cap(logits_NV, model.config.logit_cap)[:, : model.vocab_size].float()
        of_tokens = F.log_softmax(logits_NV, -1).gather(1, targets[:, None])[:, 0].double()
        of_choices = torch.zeros(len(places), dtype=torch.float64, device=device).index_add_(0, rows, of_tokens)
        for place, total in zip(places, of_choices.tolist(), strict=True):
            sums[place] = total
    return sums
