"""What one forward pass of a module says: its residual branches, and what every parameter is used for.

Operations are recorded as they run. A residual branch is found where two tensors are added and one of them was computed
from the other, or from the stream that the other came from, by at least one matrix.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from mup_lightning.errors import UserError

_ADDS = {torch.add, torch.Tensor.add, torch.Tensor.add_, torch.Tensor.__add__, torch.Tensor.__iadd__}
_ADDS |= {torch.Tensor.__radd__}
_TURNS = {torch.t, torch.Tensor.t, torch.Tensor.T.__get__, torch.Tensor.mT.__get__}  # type: ignore[attr-defined]
_OUT_IN = {F.linear, F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d}
_OUT_IN |= {F.multi_head_attention_forward}  # nn.MultiheadAttention: one operation with both of its matrices
_IN_OUT = {F.embedding, torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.Tensor.matmul, torch.Tensor.__matmul__}
_IN_OUT |= {torch.Tensor.mm, torch.Tensor.addmm}


@dataclass(frozen=True)
class Use:
    """One use of a parameter: in the innermost `module`, and the residual `branch` of a number; None: the main path.

    `outputs_first`: whether its first side are the outputs (True) or the inputs (False) of a product; None: it is used
    in no product, but added, or multiplied by elements.
    """

    outputs_first: bool | None
    module: str
    branch: int | None


@dataclass(frozen=True)
class Branch:
    """A residual branch: k matrices that follow one another, and the module whose output is what it adds, if any."""

    module: str | None
    k: int
    parameters: frozenset[str]


@dataclass(frozen=True)
class Traced:
    """A traced module: its branches in order, uses of its parameters, and the dimension of attention heads, if any."""

    branches: list[Branch]
    uses: dict[str, list[Use]]
    calls: dict[str, int]
    head_dims: frozenset[int]


@dataclass
class _Node:
    """An operation: the nodes that its tensors come from, those of its data, and the parameters that it takes."""

    func: Any
    inputs: list[int]
    parameters: dict[str, bool]
    """Parameter -> whether it was turned before."""
    module: str
    data: bool
    ancestors: int = 0
    operands: list[tuple[torch.Tensor, int]] = field(default_factory=list)
    """Those of its tensors that depend on the data, and the nodes that made them."""


class _Recorder(TorchFunctionMode):
    def __init__(self, module: nn.Module, example: Sequence[Any]) -> None:
        super().__init__()
        self.names = {id(parameter): name for name, parameter in module.named_parameters()}
        self.nodes: list[_Node] = []
        self.made: dict[int, int] = {}
        """id of a tensor -> the node that made it."""
        self.kept: list[Any] = []
        """Every tensor, so that no id is used twice."""
        self.stack: list[str] = [""]
        self.outputs: dict[int, list[str]] = defaultdict(list)
        """id of a tensor -> modules whose output it is, innermost first."""
        self.calls: dict[str, int] = defaultdict(int)
        for tensor in _tensors(example):
            self.kept.append(tensor)
            self.made[id(tensor)] = len(self.nodes)
            self.nodes.append(_Node(None, [], {}, "", True))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = _tensors((args, kwargs))
        sources = [self.made[id(tensor)] for tensor in inputs if id(tensor) in self.made]
        result = func(*args, **kwargs)
        outputs = [tensor for tensor in _tensors(result) if id(tensor) not in self.names]
        if not outputs:
            return result
        parameters = {self.names[id(tensor)]: False for tensor in inputs if id(tensor) in self.names}
        turned = func in _TURNS or getattr(func, "__name__", "") in ("transpose", "permute", "swapaxes")
        for source in sources:
            if not self.nodes[source].data:  # it only carries parameters
                parameters |= {name: was != turned for name, was in self.nodes[source].parameters.items()}
        if turned and not sources:
            parameters = dict.fromkeys(parameters, True)
        known = (tensor for tensor in inputs if id(tensor) in self.made)
        operands = [pair for pair in zip(known, sources, strict=True) if self.nodes[pair[1]].data]
        node = _Node(func, sources, parameters, self.stack[-1], bool(operands), operands=operands)
        for source in sources:
            node.ancestors |= self.nodes[source].ancestors | 1 << source
        for tensor in outputs:
            self.kept.append(tensor)
            self.made[id(tensor)] = len(self.nodes)
        self.nodes.append(node)
        return result

    @contextmanager
    def watching(self, module: nn.Module) -> Iterator[None]:
        """Know which module is running, and what each returns."""
        names = {id(each): name for name, each in module.named_modules()}

        def enter(each: nn.Module, _: Any) -> None:
            self.stack.append(names.get(id(each), self.stack[-1]))

        def leave(each: nn.Module, _: Any, output: Any) -> None:
            name = self.stack.pop()
            self.calls[name] += 1
            first = output[0] if isinstance(output, tuple | list) and output else output
            if isinstance(first, torch.Tensor):
                self.outputs[id(first)].append(name)

        with register_module_forward_pre_hook(enter), register_module_forward_hook(leave):
            yield


def trace(module: nn.Module, example: Sequence[Any]) -> Traced:
    """Run a module once on example inputs, in evaluation mode, and find out how it is made; it is left as it was.

    `example` are positional arguments of its forward pass. Raises UserError where a residual branch contains others.
    """
    recorder, was_training = _Recorder(module, example), module.training
    module.eval()
    try:
        # With gradients, because without them some of torch's own modules take one fused operation.
        with recorder.watching(module), torch.enable_grad(), recorder:
            module(*example)
    finally:
        module.train(was_training)
    matrices = {name for name, parameter in module.named_parameters() if parameter.ndim > 1}
    return _conclude(recorder, matrices)


def _conclude(recorder: _Recorder, matrices: set[str]) -> Traced:
    nodes = recorder.nodes
    branches: list[Branch] = []
    of_node: dict[int, int] = {}
    streams: dict[int, int] = {}
    """Node of a residual sum -> node of the stream that it continues."""
    for number, node in enumerate(nodes):
        if node.func not in _ADDS or len(node.operands) != 2:
            continue
        for (_, stream), (added, branch) in (node.operands, node.operands[::-1]):
            source = stream
            while not nodes[branch].ancestors >> source & 1 and source in streams:
                source = streams[source]
            if not nodes[branch].ancestors >> source & 1:
                continue
            inside = [n for n in range(source + 1, branch + 1) if n == branch or nodes[branch].ancestors >> n & 1]
            inside = [n for n in inside if nodes[n].ancestors >> source & 1]
            parameters = {name for n in inside for name in nodes[n].parameters}
            if parameters.isdisjoint(matrices):
                continue
            if nested := streams.keys() & set(inside):
                raise UserError(
                    f"the residual branch of {min(parameters)} contains {len(nested)} others; the condition is about "
                    f"branches of one stream, and long skips are none of it"
                )
            owner = next(iter(recorder.outputs.get(id(added), [])), None)
            branches.append(Branch(owner, _longest(nodes, inside, matrices), frozenset(parameters)))
            of_node |= dict.fromkeys(inside, len(branches) - 1)
            streams[number] = stream
            break
    uses: dict[str, list[Use]] = defaultdict(list)
    for number, node in enumerate(nodes):
        if node.data:
            for name, turned in node.parameters.items():
                first = True if node.func in _OUT_IN else False if node.func in _IN_OUT else None
                use = Use(first if first is None else first != turned, node.module, of_node.get(number))
                uses[name].append(use)
    heads = {int(node.operands[0][0].shape[-1]) for node in nodes if node.func is F.scaled_dot_product_attention}
    return Traced(branches, dict(uses), dict(recorder.calls), frozenset(heads))


def _longest(nodes: list[_Node], inside: list[int], matrices: set[str]) -> int:
    """Matrices on the path through a branch that has most of them."""
    longest: dict[int, int] = {}
    for number in inside:
        before = max((longest[source] for source in nodes[number].inputs if source in longest), default=0)
        longest[number] = before + len(matrices & nodes[number].parameters.keys())
    return longest[inside[-1]]


def _tensors(values: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]
