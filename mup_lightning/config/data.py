"""Which corpus a run reads, how it is batched, and which vocabulary it is in. Imports no torch."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from mup_lightning.errors import UserError
from mup_lightning.files import read_json
from mup_lightning.typed import Bound, NonNegativeInt, PositiveInt, Typed


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


def _names(tokenizer: str) -> bool:
    return tokenizer in (*VOCABULARIES, "corpus") or re.fullmatch(r"[\w.-]+:[0-9a-f]{64}", tokenizer) is not None


TokenizerName = Annotated[
    str, Bound("gpt2, bytes, or corpus: the vocabulary that the corpus was prepared with", _names)
]


@dataclass
class DataConfig(Typed, prefix="data."):
    """Which corpus to read and how to batch it.

    Attributes:
        path: folder of a prepared corpus (see `mup-lightning data prepare`).
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

    path: Annotated[str, Bound("the folder of a prepared corpus, such as data/prepared/austen-gpt2", bool)] = (
        "data/prepared/austen-gpt2"
    )
    tokenizer: TokenizerName = "gpt2"
    batch_size: PositiveInt = 240
    micro_batch: PositiveInt | Literal["auto"] = "auto"
    workers: NonNegativeInt = 0
    val_tokens: PositiveInt | None = None
    verify: bool = True

    @property
    def sequences(self) -> int:
        """micro_batch, where auto has been replaced by a number."""
        assert self.micro_batch != "auto", "data.micro_batch auto has not been replaced"
        return self.micro_batch

    def tokens(self, known: int | None) -> int:
        """Size of the vocabulary, which a run of `known` size need not look up; replaces the tokenizer `corpus`.

        Raises UserError where it is looked up in the corpus, and that is missing, or has another vocabulary.
        """
        if self.tokenizer in VOCABULARIES:
            return VOCABULARIES[self.tokenizer].size
        if known is not None and self.tokenizer != "corpus":
            return known
        file = Path(self.path) / MANIFEST
        if not file.is_file():
            raise UserError(
                f"data.tokenizer is {self.tokenizer}, which is looked up in the corpus, but there is none at "
                f"{self.path}: no {MANIFEST}; prepare it (mup-lightning data prepare), or set data.path"
            )
        manifest = read_json(file, "a prepared corpus")
        found = reference(manifest["tokenizer"], manifest["vocab_hash"])
        if self.tokenizer not in ("corpus", found):
            raise UserError(f"data.tokenizer is {self.tokenizer}, but {self.path} was prepared with {found}")
        self.tokenizer = found
        return int(manifest["vocab_size"])


def reference(name: str, sha256: str) -> str:
    """What data.tokenizer says of a vocabulary: the name of one that comes with the package, or NAME:SHA256."""
    return name if name in VOCABULARIES and VOCABULARIES[name].sha256 == sha256 else f"{name}:{sha256}"


def dtype_of(vocab_size: int) -> Literal["<u2", "<u4"]:
    """NumPy's name of the smallest little-endian type of token ids for a vocabulary."""
    return "<u2" if vocab_size <= 1 << 16 else "<u4"
