"""Vocabularies from files: tiktoken's ranks and Hugging Face's tokenizer.json, with what the files do not say."""

import base64
import hashlib
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

from mup_lightning.config.data import VOCABULARIES
from mup_lightning.data.card import FolderName
from mup_lightning.errors import UserError, located
from mup_lightning.files import file_sha256, json_sha256, read_yaml, write_atomic, yaml_text
from mup_lightning.typed import Bound, NonNegativeInt, build

DESCRIPTION = "tokenizer.yaml"
"""File in a prepared corpus or a run's folder that describes its tokenizer, whose own file is copied there, too."""

ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")
"""Special tokens that end a document where a file has exactly one of them, and nothing else is said."""

EXPECTED = "gpt2, bytes, or a file: NAME.tiktoken, tokenizer.json, or a description .yaml (see data/README.md)"


@dataclass
class Description:
    """The contents of a description: where a vocabulary is, and what its file does not say.

    Attributes:
        file: NAME.tiktoken, lines of base64 token and rank, or NAME.json, Hugging Face's tokenizer.json; relative to
            the description.
        name: names prepared folders; empty: the file's, or its folder's where that is only "tokenizer".
        end_of_text: the special token that ends every document; empty: the one of `ENDS` that the file has.
        pattern: of .tiktoken: cuts text into words: a regular expression, or the public encoding that has it, such as
            cl100k_base; empty: that of the public encoding whose file it is.
        special_tokens: of .tiktoken: token -> id.
    """

    file: Annotated[str, Bound("NAME.tiktoken or NAME.json", lambda name: Path(name).suffix in (".tiktoken", ".json"))]
    name: FolderName | None = None
    end_of_text: str | None = None
    pattern: Annotated[str, Bound("a regular expression, or a public encoding's name", bool)] | None = None
    special_tokens: dict[str, NonNegativeInt] = field(default_factory=dict)

    folder = Path()

    @property
    def path(self) -> Path:
        """The tokenizer's file."""
        return self.folder / self.file

    def sha256(self, eot: int) -> str:
        """What identifies the vocabulary: hex of its file, pattern and special tokens, and of the one that ends."""
        return json_sha256([file_sha256(self.path), self.pattern, sorted(self.special_tokens.items()), eot])

    def save(self, folder: Path) -> None:
        """Copy the tokenizer's file and this description into a folder, the description last."""
        here = replace(self, file=f"tokenizer{self.path.suffix}")
        write_atomic(folder / here.file, self.path.read_bytes())
        write_atomic(folder / DESCRIPTION, yaml_text({key: value for key, value in asdict(here).items() if value}))


def describe(source: str | Path) -> Description | None:
    """The description that a file is or has, with its name and, for ranks, its pattern; None: GPT-2's own rank file.

    Raises UserError where there is no such file, or more must be said of it.
    """
    path = Path(source)
    if path.suffix not in (".tiktoken", ".json", ".yaml") or not path.is_file():
        what = "which is no file" if path.suffix else "which does not come with the package"
        raise UserError(f"the tokenizer is {source}, {what}; expected {EXPECTED}")
    found = Description(path.name)
    if path.suffix == ".yaml":
        with located(path):
            found = build(Description, read_yaml(path, "the description of a tokenizer, see data/README.md"))
    found.folder = path.parent
    if not found.path.is_file():
        raise UserError(f"{path}: file is {found.file!r}, which is not there; expected a file beside the description")
    stem = found.path.stem if found.path.stem != "tokenizer" else found.path.resolve().parent.name
    found.name = found.name or re.sub(r"[^\w.-]", "-", stem)
    if found.path.suffix == ".json":
        if found.pattern or found.special_tokens:
            raise UserError(f"{path}: pattern and special_tokens are for .tiktoken files; {found.file} says its own")
        return found
    public = dict(_public())
    digest = file_sha256(found.path)
    if found.pattern is None and not found.special_tokens:
        if digest == VOCABULARIES["gpt2"].sha256:
            return None
        known = next((encoding for encoding in public.values() if encoding["sha256"] == digest), None)
        if known is None:
            raise UserError(
                f"{found.path} is the file of no public encoding that tiktoken {', '.join(public)} knows, and does not "
                f"say how text is cut: write a description, a .yaml with file, pattern (a regular expression, or one "
                f"of these names), special_tokens and end_of_text (see data/README.md), and name that"
            )
        found.pattern, found.special_tokens = known["pat_str"], known["special_tokens"]
    if found.pattern is None:
        raise UserError(f"{path}: pattern is missing; expected a regular expression, or one of {', '.join(public)}")
    if found.pattern in public:
        found.pattern = public[found.pattern]["pat_str"]
    return found


def _public() -> Iterator[tuple[str, dict[str, Any]]]:
    """tiktoken's public encodings: name -> pat_str, special_tokens, and the sha256 of the ranks, which stay away."""
    from tiktoken_ext import openai_public

    with (
        patch.object(openai_public, "load_tiktoken_bpe", lambda url, expected_hash: expected_hash),
        patch.object(openai_public, "data_gym_to_mergeable_bpe_ranks", lambda **files: ""),
    ):
        for name, make in openai_public.ENCODING_CONSTRUCTORS.items():
            made = make()
            yield name, made | {"sha256": made["mergeable_ranks"]}


def end_of(special: dict[str, int], wanted: str | None, place: Path) -> int:
    """The id of the one of the special tokens that ends a document. Raises UserError where it is unclear."""
    found = [token for token in ([wanted] if wanted else ENDS) if token in special]
    if len(found) == 1:
        return special[found[0]]
    what = f"end_of_text is {wanted!r}, which is none of" if wanted else "which one ends a document is unclear from"
    shown = ", ".join(list(special)[:20]) or "none"
    raise UserError(f"{place}: {what} its special tokens ({shown}); say it as end_of_text in a description .yaml")


def read_ranks(file: Any, sha256: str = "") -> dict[bytes, int]:
    """Parse a rank file (a path, or a resource), each line a base64 token and its rank.

    Raises UserError where it is none, or has another sha256 than it must have.
    """
    data = file.read_bytes()
    if sha256 and (found := hashlib.sha256(data).hexdigest()) != sha256:
        raise UserError(f"{file.name} is damaged: its sha256 is {found}, expected {sha256}; install the package again")
    try:
        pairs = (line.split() for line in data.splitlines() if line)
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}
    except ValueError as error:
        raise UserError(f"{file} is no rank file ({error}); expected lines of a base64 token and its rank") from None
    if missing := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise UserError(f"{file} has no token for the byte {missing[0]}; expected all 256, so that any text has tokens")
    return ranks


def read_hugging_face(path: Path) -> Any:
    """A `tokenizers.Tokenizer` to which text is only ever text. Raises UserError."""
    try:
        import tokenizers
    except ImportError:
        raise UserError(
            f"{path} needs the library tokenizers, which is not installed: pip install 'mup-lightning[tokenizers]'"
        ) from None
    try:
        found = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # it raises nothing more special
        raise UserError(f"{path} cannot be read: {error}; expected Hugging Face's tokenizer.json") from None
    found.encode_special_tokens = True  # a special token in a document is its letters
    found.no_truncation()
    found.no_padding()
    return found
