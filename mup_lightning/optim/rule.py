"""The contract of an update rule: one step ΔW = -η(A + λW) for the parameters of one group, and nothing else.

A new rule is one module in this package with a subclass of `Rule`, and one line in `spectral/families.py`; being there
registers it (`registry.RULES`).

Shapes: k blocks of one parameter (3 for a fused QKV), b matrices in a batch, r rows, s columns.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, dataclass_transform

import torch

from mup_lightning.spectral.families import FAMILIES
from mup_lightning.spectral.roles import ParameterInfo
from mup_lightning.typed import Typed

State = dict[str, Any]
"""What a rule keeps for one parameter: tensors and numbers by name."""

Group = dict[str, Any]
"""A torch parameter group: "params", their "infos", "rule", lr, weight_decay, eps, and the rule's options."""

_BATCH = {"cpu": 1 << 19}
"""Elements in a batch of matrices on CPU: 2 MB of float32, about what a core's cache holds. Larger batches were up to
8 % slower on one thread; smaller ones, of less than two fused QKVs of width 256, were slower on two."""

_CHUNK = {"cpu": 1 << 18}
"""Elements in a chunk of an elementwise rule on CPU: 1 MB of float32, the fastest of 0.1 to 2 MB on one thread."""

_ELSEWHERE = 1 << 24
"""The same on a GPU, for both: 64 MB of float32, so that a step needs little memory of its own."""


@dataclass(frozen=True)
class Item:
    """One parameter of a group as a rule sees it.

    Attributes:
        parameter: updated in place.
        gradient: of the parameter's shape; the rule must not change it.
        state: what the rule keeps for it; empty before the first step.
        blocks: matrices of equal shape stacked along dim 0 (3 for a fused QKV), each of which is updated on its own.
        transposed: stored as (n_in, n_out), as embeddings are, and not as (n_out, n_in).
        hessian: a fresh estimate of the Hessian's diagonal, of the parameter's shape; None in most steps.
    """

    parameter: torch.Tensor
    gradient: torch.Tensor
    state: State
    blocks: int = 1
    transposed: bool = False
    hessian: torch.Tensor | None = None

    @property
    def block_shape(self) -> tuple[int, int]:
        """(rows, columns) of one of its matrices."""
        return self.parameter.shape[0] // self.blocks, self.parameter.shape[1]


@dataclass_transform()
@dataclass(eq=False)
class Rule(Typed):
    """An update rule. All state is in the items, so one optimizer can hold many rules.

    A rule's fields are its options: dataclass fields, with types that say which values define an update, at their
    defaults. Those that a run uses are entries of the rule's groups. A rule that needs estimates of the Hessian's
    diagonal has an option hessian_every, the steps between two of them, and is `counted`.

    Attributes:
        name: the rule's, as in `FAMILIES` and in a group's "rule".
        section: where its options are in the configuration, `rules.SECTION`; its name unless it shares another's.
        like_parameter: names of the tensors in a parameter's state that have its shape and start at zero.
        counted: whether a parameter's state counts its steps, as "step".
        chunks_made: what a step of an elementwise rule makes at a time beside weights and states, in chunks.
        known: every rule's class by name.
    """

    name: ClassVar[str]
    section: ClassVar[str]
    like_parameter: ClassVar[tuple[str, ...]] = ("momentum",)
    counted: ClassVar[bool] = False
    chunks_made: ClassVar[int] = 1
    known: ClassVar[dict[str, type["Rule"]]] = {}

    def __init_subclass__(cls) -> None:
        """Register a rule; one with options of its own has a section of its own."""
        super().__init_subclass__()
        if cls.__annotations__:
            cls.section = cls.name
        cls._prefix = f"rules.{cls.section}."
        cls.known[cls.name] = dataclass(eq=False)(cls)

    @property
    def whole_matrix(self) -> bool:
        """Whether it needs whole matrices: given a slice or a flat shard it would be another algorithm."""
        return FAMILIES[self.name].whole_matrix

    def blocks(self, group: Group, info: ParameterInfo) -> int:
        """How many matrices, stacked along dim 0 of a parameter, are each updated on its own."""
        return info.blocks

    def arithmetic(self, group: Group, rows: int, columns: int) -> dict[str, float]:
        """Operations of a mean step of a (rows, columns) matrix on a GPU, by what decides how fast they are.

        Keys are bfloat16 and float32 (products), and decomposition (eigenvectors, QR). What is a matter of memory is
        left out: `plan.time` counts it for all rules.
        """
        return {}

    def work(self, group: Group, info: ParameterInfo) -> dict[str, float]:
        """`arithmetic` of all the matrices of a parameter."""
        count = self.blocks(group, info)
        of_one = self.arithmetic(group, info.shape[0] // count, info.block_shape[1])
        return {kind: count * operations for kind, operations in of_one.items()}

    def scratch(self, group: Group, items: list[Item], device: torch.device) -> int:
        """Bytes that a step of float32 items makes at most, beyond weights, gradients and states."""
        chunk = min(max(item.parameter.numel() for item in items), _CHUNK.get(device.type, _ELSEWHERE))
        return 4 * chunk * self.chunks_made

    def start(self, group: Group, item: Item) -> None:
        """Fill in the state of a parameter before its first step; its tensors say how much memory the rule needs."""
        if self.counted:
            item.state["step"] = 0
        for name in self.like_parameter:
            item.state[name] = item.parameter.new_zeros(item.parameter.shape)  # zeros_like on meta imports sympy

    def step(self, group: Group, items: list[Item]) -> None:
        """One step of all the items, in place; their states are filled in.

        This default is that of an elementwise rule. It goes chunk by chunk, so that no direction ever exists whole.
        """
        for item in items:
            if self.counted:
                item.state["step"] += 1
            states = (item.state[name] for name in self.like_parameter)
            for weight, *chunk in chunks(item.parameter, item.gradient, *states):
                move(group, weight, self.direction(group, item.state, *chunk))

    def direction(self, group: Group, state: State, *chunk: torch.Tensor) -> torch.Tensor:
        """A of a chunk: of the gradient and of the states `like_parameter`, which are updated."""
        raise NotImplementedError

    def update(self, group: Group, items: list[Item]) -> None:
        """Fill in what states are missing, and step."""
        for item in items:
            if not item.state:
                self.start(group, item)
        self.step(group, items)


def move(group: Group, weight: torch.Tensor, direction: torch.Tensor, scale: float = 1.0) -> None:
    """W <- W - η(scale·A + λW), in place."""
    weight.mul_(1.0 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"] * scale)


def chunks(*tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Views of the same rows of tensors of one shape, as many rows as fit a chunk but at least one."""
    first = tensors[0]
    rows = max(1, _CHUNK.get(first.device.type, _ELSEWHERE) // max(1, first[0].numel()))
    return zip(*(tensor.split(rows) for tensor in tensors), strict=True)


def split_blocks(tensor: torch.Tensor, blocks: int) -> torch.Tensor:
    """A (k·r, s) tensor's blocks as a (k, r, s) view."""
    return tensor.unflatten(0, (blocks, -1))


def batches(items: list[Item], device: torch.device | None = None) -> list[list[Item]]:
    """Sort items into batches of equal device, dtype and block shape, none much larger than `_BATCH`.

    Args:
        items: matrices.
        device: whose size of a batch counts; None: the items' own.
    """
    alike: dict[tuple[Any, ...], list[Item]] = defaultdict(list)
    for item in items:
        alike[item.parameter.device, item.parameter.dtype, *item.block_shape].append(item)
    result = []
    for (own, *_), same in alike.items():
        most = _BATCH.get((device or own).type, _ELSEWHERE)
        size = max(1, most // max(item.parameter.numel() for item in same))
        result += [same[start : start + size] for start in range(0, len(same), size)]
    return result


def split_items(matrices_b: torch.Tensor, items: list[Item]) -> tuple[torch.Tensor, ...]:
    """(b, ...) -> views of (k, ...), one for each item."""
    return matrices_b.split([item.blocks for item in items])
