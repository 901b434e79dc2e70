"""Cutting documents into sections, and choosing which of them validate: pure functions of the text."""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache

from mup_lightning.data.card import Sections, Validation


def cut(text: str, sections: Sections | None) -> list[str]:
    """The sections of a document, in order; joined they are the text, but for dropped sections of white space only.

    With `pattern` (multi-line) a section begins at each match. With `max_characters` longer sections are then cut
    after a blank line, where one paragraph alone is too long after a line or a word, and else anywhere.
    """
    if sections is None:
        return [text]
    pieces = [text]
    if sections.pattern is not None:
        starts = [match.start() for match in _compiled(sections.pattern).finditer(text)]
        pieces = [text[a:b] for a, b in zip([0, *starts], [*starts, len(text)], strict=True)]
    if sections.max_characters is not None:
        pieces = [part for piece in pieces for part in _shorten(piece, sections.max_characters)]
    return [piece for piece in pieces if piece.strip()]


def is_validation(text: str, validation: Validation) -> bool:
    """Whether a document (or section) belongs to the validation split.

    It depends on the text and the seed alone, never on the place of the document: adding documents moves no other,
    and copies of a text always land in the same split.
    """
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8, key=str(validation.seed).encode()).digest()
    return int.from_bytes(digest, "big") < validation.fraction * 2.0**64


def _shorten(text: str, longest: int) -> list[str]:
    parts = []
    start = 0
    while len(text) - start > longest:
        end = start + longest
        for separator in ("\n\n", "\n", " "):
            at = text.rfind(separator, start, end)
            if at >= start:
                end = at + len(separator)
                break
        parts.append(text[start:end])
        start = end
    return [*parts, text[start:]]


@lru_cache(maxsize=8)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.MULTILINE)
