"""Our GPT-2 on bytes of a prepared corpus. A sequence is a sample.

A branch's two matrices are V and the output projection of attention (between them stands the attention's averaging,
in the place of a nonlinearity), and the MLP's up and down matrices. Embeddings are not tied: a tied matrix would be
input and output at once, and its update the sum of both.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F

from mup_lightning.config.schema import VOCAB_SIZES, ModelConfig
from mup_lightning.data.datamodule import TokenWindows
from mup_lightning.data.shards import TokenStore, check_vocabulary
from mup_lightning.model import taps
from mup_lightning.model.gpt2 import GPT2, build
from mup_lightning.model.layers import Block
from mup_lightning.spectral.recipe import Recipe
from mup_lightning.studies.assumptions.settings import AssumptionSettings
from mup_lightning.studies.assumptions.tape import Matrix, Place, Tape


def open_corpus(settings: AssumptionSettings) -> TokenStore:
    """The training split.

    Raises:
        UserError: there is no corpus, or it is not in bytes.
    """
    store = TokenStore.open(settings.data, "train", verify=False)
    check_vocabulary(store.manifest, "bytes")
    return store


class GPT2Subject:
    """See `subject.Subject`.

    Args:
        settings: sizes and corpus.
        recipe: for this depth.
        depth: L.
        seed: of weights and data.
    """

    matrices = (
        Matrix("token", "token.weight"),
        Matrix("value", "blocks.{block}.attention.qkv.weight", part=(2, 3), feeds="out"),
        Matrix("out", "blocks.{block}.attention.out.weight"),
        Matrix("up", "blocks.{block}.mlp.up.weight", feeds="down"),
        Matrix("down", "blocks.{block}.mlp.down.weight"),
    )

    def __init__(self, settings: AssumptionSettings, recipe: Recipe, depth: int, seed: int) -> None:
        self.settings, self.seed = settings, seed
        model = ModelConfig(
            width=settings.width, depth=depth, context=settings.context, vocab_size=VOCAB_SIZES["bytes"], tied=False
        )
        self.model = build(model, recipe, seed)
        self.infos = self.model.parameter_info
        self._layers: dict[Place, torch.nn.Module] = {}
        for number, block in enumerate(self.model.blocks):
            assert isinstance(block, Block)
            self._layers |= {
                ("value", number): block.attention.qkv,
                ("out", number): block.attention.out,
                ("up", number): block.mlp.up,
                ("down", number): block.mlp.down,
            }

    def batches(self) -> Iterator[torch.Tensor]:
        """See `Subject`: (B, T + 1) symbols."""
        windows = TokenWindows(open_corpus(self.settings), self.settings.context, self.seed)
        step, size = 0, self.settings.sequences
        while True:
            yield windows[np.arange(step * size, (step + 1) * size)]["tokens"]
            step += 1

    def loss(self, batch: torch.Tensor, tape: Tape | None = None) -> torch.Tensor:
        """See `Subject`."""
        if tape is None:
            return self.model.loss(batch)
        with tape.listen(self._layers):
            return self.model.loss(batch, _Recorder(tape, batch[:, :-1], self.model))


class _Recorder:
    """See `taps.Recorder`. Symbols count as one-hot vectors, so that the embedding is a matrix like any other."""

    def __init__(self, tape: Tape, tokens_BT: torch.Tensor, model: GPT2) -> None:
        self.tape, self.tokens_BT, self.model = tape, tokens_BT, model

    def feature(self, point: str, layer: int | None, x: torch.Tensor, scale: float = 1.0) -> None:
        if point == taps.EMBEDDING:
            rows = self.model.token.weight.shape[0]
            one_hot = F.one_hot(self.tokens_BT, rows).to(x.dtype)
            self.tape.record(("token", None), one_hot, x, self.model.multipliers.input)
        elif point == taps.RESIDUAL:
            self.tape.streams.append(x.detach())

    def rms(self, point: str, layer: int | None, value: torch.Tensor) -> None:
        """Logits are of no interest here."""
