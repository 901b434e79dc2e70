"""A vocabulary as Hugging Face's tokenizer.json, which the library `tokenizers` and transformers read.

Byte-pair encoding there works on characters: each byte is written as one, and the merges are listed.
"""

from collections.abc import Iterator, Mapping
from itertools import pairwise

from mup_lightning.data.tokenizer import Tokenizer

SAMPLE = "It's 2026:  na\u00efve \u2014 \u6771\u4eac \U0001f642\r\n\tdef f(x):\n    return x ** 2   # 1,000\n\n"
"""Text of many kinds, whose tokens tell one vocabulary from another."""


def tokenizer_json(tokenizer: Tokenizer) -> tuple[str, str]:
    """The content of tokenizer.json, the file itself where the vocabulary came from one, and its end-of-text token.

    What it makes of text is what the vocabulary makes of it here, but for special tokens: as characters in a text they
    are ordinary text here, and those tokens there, as everywhere with Hugging Face.
    """
    from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Fast
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    engine = tokenizer.engine
    if tokenizer.description is not None and isinstance(engine, Fast):
        return tokenizer.description.path.read_text(encoding="utf-8"), str(engine.id_to_token(tokenizer.eot))
    if engine is None:  # bytes
        ranks, special, pattern = {bytes([byte]): byte for byte in range(1, 256)}, {"\0": tokenizer.eot}, None
    else:
        ranks, special, pattern = engine._mergeable_ranks, engine._special_tokens, engine._pat_str
    letter = bytes_to_unicode()
    spelt = {token: "".join(letter[byte] for byte in token) for token in ranks}
    vocabulary = {spelt[token]: rank for token, rank in ranks.items()} | special
    fast = Fast(models.BPE(vocabulary, [(spelt[left], spelt[right]) for left, right in merges(ranks)]))
    cut = [pre_tokenizers.Split(Regex(pattern), "isolated")] if pattern else []
    as_letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.pre_tokenizer = pre_tokenizers.Sequence([*cut, as_letters])
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    return fast.to_str(), next(token for token, number in special.items() if number == tokenizer.eot)


def merges(ranks: Mapping[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """The two parts that each longer token was merged from, in the order of training.

    A rank file lists the tokens alone. Before a token existed, its bytes merged into exactly its two parts.
    """
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            pairs = [ranks.get(left + right, rank) for left, right in pairwise(parts)]
            first = pairs.index(min(pairs))
            parts[first : first + 2] = [parts[first] + parts[first + 1]]
        if len(parts) == 2:
            yield parts[0], parts[1]
