"""The networks whose assumptions are checked, with their optimizers and data: a residual MLP and our GPT-2.

The MLP is the probe's, on the probe's task. The GPT-2 reads bytes of a prepared corpus, and a sequence is a sample. Its
branches' matrices are V and the output projection of attention (between which attention's averaging takes the place of
a nonlinearity), and the MLP's up and down matrices. Its embeddings are not tied: a tied matrix would be input and
output at once, and its update the sum of both.

Shapes: B samples, T positions in a sample (1 for the MLP), I and O a matrix's inputs and outputs, C width.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mup_lightning.config.schema import Config
from mup_lightning.data.datamodule import TokenDataModule
from mup_lightning.optim.optimizer import HybridOptimizer
from mup_lightning.optim.registry import make_groups
from mup_lightning.studies.probe.network import batches, build_mlp
from mup_lightning.training.module import build_training


@dataclass(frozen=True)
class Matrix:
    """A weight matrix that the assumptions are about; its name in results is the same in every block."""

    name: str
    parameter: str  # name of the parameter that holds it
    block: int | None = None  # index of its block; None for the input matrix
    # (index, count) where `count` matrices are stacked along the rows, as Q, K and V are
    part: tuple[int, int] = (0, 1)
    factor: float = 1.0  # between its own product and the output that is recorded
    next_matrix: str | None = None  # name of the matrix that receives its output through a nonlinearity

    def cut(self, rows: torch.Tensor, dim: int) -> torch.Tensor:
        """Its own rows of a tensor whose dimension `dim` runs over the stacked ones."""
        index, count = self.part
        return rows.chunk(count, dim)[index]


@dataclass
class Activations:
    """What a pass shows of the measured matrices, by (name, block): `inputs` (B, T, I), `outputs` with bias and factor
    (B, T, O), with .grad after the backward pass; and `streams`, the residual stream after every block, (B, T, C).
    """

    inputs: dict[tuple[str, int | None], torch.Tensor] = field(default_factory=dict)
    outputs: dict[tuple[str, int | None], torch.Tensor] = field(default_factory=dict)
    streams: list[torch.Tensor] = field(default_factory=list)

    def output(self, matrix: Matrix) -> torch.Tensor:
        """What came out of this matrix alone, (B, T, O)."""
        return matrix.cut(self.outputs[matrix.name, matrix.block].detach(), -1)

    def delta(self, matrix: Matrix) -> torch.Tensor:
        """Gradient of the batch's mean loss with respect to the matrix's own product, (B, T, O)."""
        gradient = self.outputs[matrix.name, matrix.block].grad
        assert gradient is not None, "the backward pass comes first"
        return matrix.cut(gradient, -1) * matrix.factor


@dataclass
class Network:
    """A network with its optimizer and its data, in which the samples of a batch never see each other."""

    model: nn.Module
    optimizer: HybridOptimizer
    matrices: list[Matrix]  # those that are measured: the input matrix, and then weights of linear layers
    # The modules that the residual stream enters: every block, and what comes after the last one.
    stops: list[nn.Module]
    batches: Iterator[Any]  # endless, a pure function of the seed
    inputs: Callable[[Any], torch.Tensor]  # batch -> what enters the input matrix, (B, T, I)
    loss: Callable[[Any], torch.Tensor]  # batch -> mean loss over its samples, all of equal weight

    def weights(self) -> dict[Matrix, torch.Tensor]:
        """Copies of all measured matrices."""
        get = self.model.get_parameter
        return {matrix: matrix.cut(get(matrix.parameter).detach(), 0).clone() for matrix in self.matrices}

    def observed_loss(self, batch: Any) -> tuple[torch.Tensor, Activations]:
        """The loss, and what the forward pass shows. Nothing here is compiled, which would lose the hooks."""
        seen = Activations()
        first, *inside = self.matrices

        def keep(matrix: Matrix, x: torch.Tensor, y: torch.Tensor) -> None:
            if y.requires_grad:
                y.retain_grad()
            seen.inputs[matrix.name, matrix.block], seen.outputs[matrix.name, matrix.block] = x.detach(), y

        enter, *after = self.stops
        handles = [enter.register_forward_pre_hook(lambda _, x: keep(first, self.inputs(batch), x[0]))]
        for stop in after:
            handles.append(stop.register_forward_pre_hook(lambda _, x: seen.streams.append(x[0].detach())))
        for matrix in inside:
            layer = self.model.get_submodule(matrix.parameter.removesuffix(".weight"))
            handles.append(layer.register_forward_hook(lambda _, x, y, of=matrix: keep(of, x[0], y)))
        try:
            return self.loss(batch), seen
        finally:
            for handle in handles:
                handle.remove()


def build_network(network: str, config: Config) -> Network:
    """The network "mlp" or "gpt2" of this width, depth and seed, under this recipe."""
    if network == "gpt2":
        return _gpt2(config)
    model = build_mlp(replace(config.recipe, branch_depth=2), config.model.width, config.model.depth, config.seed)
    matrices = [Matrix("input", "input", factor=model.recipe.multipliers.input)]
    for block in range(config.model.depth):
        path = f"branches.{block}.layers"
        matrices.append(Matrix("first", f"{path}.0.weight", block, next_matrix="second"))
        matrices.append(Matrix("second", f"{path}.1.weight", block))
    return Network(
        model=model,
        optimizer=HybridOptimizer(make_groups(dict(model.named_parameters()), model.infos, model.recipe, config.rules)),
        matrices=matrices,
        stops=[*model.branches, model.output],
        batches=batches(config.seed, config.data.batch_size),
        inputs=lambda batch: batch[0].unsqueeze(1),  # one position in a sample
        loss=lambda batch: F.cross_entropy(model(batch[0].unsqueeze(1)).squeeze(1), batch[1]),
    )


def _gpt2(config: Config) -> Network:
    """To its embedding, a matrix like any other, tokens are one-hot vectors; a batch is (B, T + 1) tokens."""
    model, optimizer = build_training(config)
    matrices = [Matrix("token", "token.weight", factor=model.multipliers.input)]
    for block in range(config.model.depth):
        path = f"blocks.{block}"
        matrices += [
            Matrix("value", f"{path}.attention.qkv.weight", block, part=(2, 3), next_matrix="out"),
            Matrix("out", f"{path}.attention.out.weight", block),
            Matrix("up", f"{path}.mlp.up.weight", block, next_matrix="down"),
            Matrix("down", f"{path}.mlp.down.weight", block),
        ]
    rows = model.token.weight.shape[0]
    return Network(
        model=model,
        optimizer=optimizer,
        matrices=matrices,
        stops=[*model.blocks, model.final_norm],
        batches=(batch["tokens"] for batch in open_corpus(config).train_dataloader()),
        inputs=lambda tokens: F.one_hot(tokens[:, :-1], rows).to(model.token.weight.dtype),
        loss=model.loss,
    )


def open_corpus(config: Config) -> TokenDataModule:
    """The corpus of the GPT-2; UserError: there is none, or it is not in bytes."""
    data = TokenDataModule(config.data, config.model.context, config.seed, config.trainer.max_steps)
    data.setup()
    return data
