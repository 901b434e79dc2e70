"""Output for every terminal: the signs of mathematics that its encoding lacks are spelt in ASCII."""

import codecs
import io
import sys
import unicodedata

SIGNS = {sign[0]: sign[1:] for sign in "·* ⊙* ×x ✗x ±+- −- –- …... →-> ∂d λlambda ∝~ ≈~ ≠!= ≤<= ≥>= ‖|| ⟨< ⟩>".split()}
SIGNS |= {"√": "sqrt ", "∏": "prod "}
"""Sign -> its spelling."""


def spell_signs() -> None:
    """Let this process print any text on stdout and stderr, whatever their encoding: a sign, or else its escape."""
    codecs.register_error("spelt", _spelt)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="spelt")


def holds_unicode() -> bool:
    """Whether stdout takes every letter as it is."""
    return (sys.stdout.encoding or "ascii").lower().startswith("utf")


def _spelt(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_word, error.object[error.start : error.end])), error.end


def _word(sign: str) -> str:
    """A sign in ASCII: alpha, ^2, _1, g^ for a hat, or an escape, which leaves no doubt."""
    words = unicodedata.name(sign, "").split()
    if sign in SIGNS:
        return SIGNS[sign]
    if words[:1] == ["GREEK"] and words[2:3] == ["LETTER"] and len(words) == 4:
        return words[3].capitalize() if words[1] == "CAPITAL" else words[3].lower()
    kind = unicodedata.decomposition(sign).partition(" ")[0]
    mark = {"<super>": "^", "<sub>": "_"}.get(kind, "")
    plain = "".join({"\u0302": "^", **SIGNS}.get(letter, letter) for letter in unicodedata.normalize("NFKD", sign))
    if plain.isascii() and (mark or "^" in plain):
        return mark + plain
    return sign.encode("ascii", "backslashreplace").decode()
