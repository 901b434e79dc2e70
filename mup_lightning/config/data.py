"""Which corpus a run reads, how it is batched, and which vocabulary it is in. Imports no torch."""

import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from mup_lightning.errors import UserError
from mup_lightning.files import read_json
from mup_lightning.typed import Bound, NonNegativeInt, PositiveFloat, PositiveInt, Typed


class Vocabulary(NamedTuple):
    """Number of tokens; the one among them that ends every document; sha256 of what defines it."""

    size: int
    eot: int
    sha256: str


VOCABULARIES: dict[str, Vocabulary] = {
    "gpt2": Vocabulary(50257, 50256, "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"),
    "bytes": Vocabulary(256, 0, "40aff2e9d2d8922e47afd4648e6967497158785fbd1da870e7110266bf944880"),
}
"""Those that come with the package. gpt2's hash is that of its rank file, the other one that of the 256 bytes."""

MANIFEST = "manifest.json"
"""File of a prepared corpus that describes it, and is written last."""


_TOKENIZER = re.compile(rf"{'|'.join(VOCABULARIES)}|corpus|[\w.-]+:[0-9a-f]{{64}}")
TokenizerName = Annotated[
    str, Bound("gpt2, bytes, or corpus: the vocabulary that the corpus was prepared with", _TOKENIZER.fullmatch)
]
Folder = Annotated[
    str,  # no mapping or list that did not parse
    Bound("the folder of a prepared corpus, such as data/prepared/austen-gpt2", re.compile(r"(?s)[^{\[].*").fullmatch),
]
Mixture = Annotated[dict[str, PositiveFloat], Bound("several with their weights, {FOLDER: 0.7, FOLDER: 0.3}", bool)]


@dataclass
class DataConfig(Typed, prefix="data."):
    """Which corpus to read and how to batch it.

    Attributes:
        path: folder of a prepared corpus (see `mup-lightning data prepare`), or several, each with its weight: samples
            come from them in these proportions, whatever their sizes.
        tokenizer: vocabulary the corpus was prepared with: gpt2 (50257 tokens), bytes (256), or corpus, whichever it
            was; config.yaml then says its name and hash.
        batch_size: sequences in one optimizer step, over all processes and accumulation steps.
        micro_batch: sequences in one forward pass of one process; auto: the largest number that divides a process's
            share of batch_size, and fits (`plan.memory.micro_batch`).
        workers: processes that read batches ahead; 0 reads in the training process, which is fastest on few cores.
        val_tokens: use only the first this many validation tokens (whole windows); null: all of them.
        verify: compare the sha256 of every shard with the manifest before training starts, and say where the corpus is
            older than its card or files.
    """

    path: Folder | Mixture = "data/prepared/austen-gpt2"
    tokenizer: TokenizerName = "gpt2"
    batch_size: PositiveInt = 240
    micro_batch: PositiveInt | Literal["auto"] = "auto"
    workers: NonNegativeInt = 0
    val_tokens: PositiveInt | None = None
    verify: bool = True

    @property
    def sources(self) -> dict[str, Fraction]:
        """Folder -> its share of the samples, exactly as its weight is written; the shares sum to 1."""
        if isinstance(self.path, str):
            return {self.path: Fraction(1)}
        weights = {folder: Fraction(repr(weight)) for folder, weight in self.path.items()}
        return {folder: weight / sum(weights.values()) for folder, weight in weights.items()}

    @property
    def said(self) -> str:
        """The corpora in words."""
        shares = (f"{folder} ({float(share):.4g})" for folder, share in self.sources.items())
        return self.path if isinstance(self.path, str) else ", ".join(shares)

    @property
    def sequences(self) -> int:
        """micro_batch, where auto has been replaced by a number."""
        assert self.micro_batch != "auto", "data.micro_batch auto has not been replaced"
        return self.micro_batch

    def vocabulary(self, size: int | None, eot: int | None = 0) -> tuple[int, int]:
        """Size and end-of-text token; where both are known, they need no look at the corpus.

        Replaces the tokenizer `corpus`. Raises UserError where the corpus is missing, or has another vocabulary.
        """
        if self.tokenizer in VOCABULARIES:
            return VOCABULARIES[self.tokenizer][:2]
        if size is not None and eot is not None and self.tokenizer != "corpus":
            return size, eot
        folder = next(iter(self.sources))
        file = Path(folder) / MANIFEST
        if not file.is_file():
            raise UserError(
                f"data.tokenizer is {self.tokenizer}, which is looked up in the corpus, but there is none at {folder}: "
                f"no {MANIFEST}; prepare it (mup-lightning data prepare), or set data.path"
            )
        manifest = read_json(file, "a prepared corpus")
        found = reference(manifest["tokenizer"], manifest["vocab_hash"])
        if self.tokenizer not in ("corpus", found):
            raise UserError(f"data.tokenizer is {self.tokenizer}, but {folder} was prepared with {found}")
        self.tokenizer = found
        return int(manifest["vocab_size"]), int(manifest["eot"])


def reference(name: str, sha256: str) -> str:
    """What data.tokenizer says of a vocabulary: the name of one that comes with the package, or NAME:SHA256."""
    return name if name in VOCABULARIES and VOCABULARIES[name].sha256 == sha256 else f"{name}:{sha256}"


def dtype_of(vocab_size: int) -> Literal["<u2", "<u4"]:
    """NumPy's name of the smallest little-endian type of token ids for a vocabulary."""
    return "<u2" if vocab_size <= 1 << 16 else "<u4"
