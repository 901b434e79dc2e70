"""Documents are cut into sections, and split into train and validation."""

import hashlib
import re
from collections.abc import Iterator

from mup_lightning.data.card import Sections, Validation


def cut(text: str, sections: Sections | None) -> list[str]:
    """The sections of a document in order. Joined, they give the text, except that blank sections are dropped.

    With `pattern` (multi-line) a section begins at each match. With `max_characters`, longer sections are then cut
    after a blank line; where a single paragraph is too long, after a line or a word; failing that, anywhere.
    """
    if sections is None:
        return [text]
    pieces = [text]
    if sections.pattern is not None:
        starts = [match.start() for match in re.finditer(sections.pattern, text, re.MULTILINE)]
        pieces = [text[a:b] for a, b in zip([0, *starts], [*starts, len(text)], strict=True)]
    if sections.max_characters is not None:
        pieces = [short for piece in pieces for short in _shorten(piece, sections.max_characters)]
    return [piece for piece in pieces if piece.strip()]


def _shorten(text: str, longest: int) -> Iterator[str]:
    start = 0
    while len(text) - start > longest:
        end = start + longest
        for separator in ("\n\n", "\n", " "):
            at = text.rfind(separator, start, end)
            if at >= start:
                end = at + len(separator)
                break
        yield text[start:end]
        start = end
    yield text[start:]


def is_validation(text: str, validation: Validation) -> bool:
    """Whether a document (or section) belongs to the validation split.

    It depends on the text and the seed alone, never on the place of the document: adding documents moves no others,
    and copies of a text always land in the same split.
    """
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8, key=str(validation.seed).encode()).digest()
    return int.from_bytes(digest, "big") < validation.fraction * 2.0**64
