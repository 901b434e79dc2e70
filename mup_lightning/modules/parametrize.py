"""The recipe for any torch module, from two sizes of it and one forward pass of each.

    model = build(width=512, depth=16)
    mup = parametrize(model, base=build(width=64, depth=4), example=x, optimizer="adamw", lr=2e-3)
    print(mup)                     # what was concluded of every parameter, and why
    optimizer = mup.optimizer()    # then loss.backward(), optimizer.step(), optimizer.zero_grad()

Sides that differ between the two sizes grow with the width; how often a residual branch is there is the depth. The
module's own init is kept, rescaled so that the condition holds (arXiv 2603.00541). Multipliers are hooks: names and
shapes of the state stay as they are.
"""

import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import cache
from typing import Any

import torch
from torch import nn

from mup_lightning import tables
from mup_lightning.errors import UserError
from mup_lightning.modules.roles import Conclusion, conclude, counterpart, pattern
from mup_lightning.modules.trace import Traced, trace
from mup_lightning.optim.optimizer import HybridOptimizer
from mup_lightning.optim.registry import RULES, Overrides, make_groups
from mup_lightning.optim.rule import Group
from mup_lightning.spectral.recipe import Recipe, RecipeConfig, derive
from mup_lightning.spectral.roles import Role
from mup_lightning.typed import build, nearest


@dataclass(frozen=True)
class Parametrized:
    """A module under the recipe, with its base learning rate `lr`.

    Attributes:
        groups: parameter groups with "params", "lr", "weight_decay", "eps" and the options of the "rule" they name.
        conclusions: by parameter.
        multipliers: module -> factor on its output ("output"), or on its input ("input").
        widths: of the base, and of the module; `depths` are their numbers of residual branches.
    """

    groups: list[Group]
    conclusions: dict[str, Conclusion]
    multipliers: dict[str, tuple[float, str]]
    widths: tuple[int, int]
    depths: tuple[int, int]
    lr: float

    def optimizer(self) -> HybridOptimizer:
        """An optimizer over all parameters, each by its rule; to be used as any other of torch."""
        return HybridOptimizer(self.groups)

    def __str__(self) -> str:
        lines: dict[tuple[str, ...], int] = Counter()
        for name, found in self.conclusions.items():
            shape = "×".join(map(str, found.info.shape)) or "1"
            base = "×".join(map(str, found.base_shape)) or "1"
            values = (f"{found.values.lr / self.lr:.4g}", f"{found.values.weight_decay:.4g}")
            lines[pattern(name), f"{base} -> {shape}", str(found.info.role), *values, found.why] += 1
        rows = [["parameters", "", "base -> here", "role", "lr / base", "weight decay", "because"]]
        rows += [[name, f"{count}", *rest] for (name, *rest), count in lines.items()]
        factors = Counter((pattern(f"{name}.")[:-1], *what) for name, what in self.multipliers.items())
        hooks = [["multipliers", "", "factor", "on its"]]
        hooks += [[name, f"{count}", f"{factor:.4g}", place] for (name, factor, place), count in factors.items()]
        sizes = f"width {self.widths[0]} -> {self.widths[1]}, residual branches {self.depths[0]} -> {self.depths[1]}"
        return "\n\n".join([sizes, tables.text(rows), *([tables.text(hooks)] if factors else [])])


def parametrize(
    module: nn.Module,
    base: nn.Module,
    example: Any,
    *,
    grown: nn.Module | None = None,
    declare: Mapping[str, str] | None = None,
    rules: Overrides | None = None,
    **recipe: Any,
) -> Parametrized:
    """Put a module under the recipe, in place: its weights are rescaled, and multipliers are hooked in.

    Args:
        module: of the size that will be trained, freshly initialised.
        base: the same of the size at which the values were tuned, initialised as it was tuned; it is not changed.
        example: what both take: a tensor, or a tuple of positional arguments. They run once, in evaluation mode.
        grown: the same of another width than the base, where the module has the base's: its shapes show what grows.
        declare: name of a parameter, or a pattern such as "*.router.weight" -> its role, where it cannot be told.
        rules: options of the optimizers that differ from their defaults, as in `rules` of a recipe file.
        recipe: fields of `RecipeConfig`, such as optimizer, lr and weight_decay; sizes come from the modules.

    Raises:
        UserError: a role is not certain (declare it), a parameter takes no part, the two differ in more than sizes, or
            a multiplier has no module whose output it could scale.
    """
    if own := sorted(recipe.keys() & _OF_THE_MODULES):
        raise UserError(f"{own[0]} is not for parametrize: sizes, branches and init are those of the modules")
    if any(hasattr(each, _MARK) for each in module.modules()):
        raise UserError("this module has been parametrized already; make a fresh one")
    arguments = example if isinstance(example, tuple) else (example,)
    shapes = [{name: tuple(p.shape) for name, p in each.named_parameters()} for each in (module, base, grown or module)]
    twins = {name: (counterpart(name, shapes[1], "base"), counterpart(name, shapes[2], "grown")) for name in shapes[0]}
    if left := shapes[1].keys() - {twin for twin, _ in twins.values()}:
        raise UserError(f"the base has {min(left)}, and the module nothing like it; expected two sizes of one module")
    for names in declare or {}:
        if not any(fnmatch(name, names) for name in twins):
            raise UserError(f"declare has {names!r}, which is no parameter of the module{nearest(names, list(twins))}")
    traced, of_base = trace(module, arguments), trace(base, arguments)
    if traced.head_dims and traced.head_dims != of_base.head_dims:
        dims = " and ".join(str(max(found.head_dims)) for found in (of_base, traced))
        warnings.warn(f"attention heads have {dims} channels in base and module; let their number grow", stacklevel=2)

    sides = Counter[tuple[int, int]]()
    for name, (twin, like) in twins.items():
        for here, there, elsewhere in zip(shapes[0][name], shapes[1][twin], shapes[2][like], strict=True):
            if there != elsewhere:
                sides[there, here] += 1
    if not sides:
        raise UserError("no side differs between base and module; give grown=, the same module of another width")
    (base_width, width), depths = max(sides, key=sides.__getitem__), (len(of_base.branches), len(traced.branches))
    sizes = {"base_width": base_width, "base_depth": max(1, depths[0])}
    config = build(RecipeConfig, recipe | sizes, "recipe.")

    @cache
    def solved(k: int, own: float | None) -> Recipe:
        ratio = 1.0 if own is None else own
        return derive(replace(config, branch_depth=k), width, max(1, depths[1]), (1, 1), {"kv": ratio, "head": ratio})

    conclusions, unsure = {}, []
    for name, (twin, like) in twins.items():
        grows = [one != other for one, other in zip(shapes[1][twin], shapes[2][like], strict=True)]
        declared = next((role for names, role in (declare or {}).items() if fnmatch(name, names)), None)
        parameter = (name, shapes[0][name], shapes[1][twin], grows)
        try:
            conclusions[name] = conclude(*parameter, width / base_width, traced, declared, solved)
        except UserError as error:
            unsure.append(f"  {name} {shapes[0][name]}: {error}")
    if unsure:
        more = [f"  and {len(unsure) - 12} more"] * (len(unsure) > 12)
        roles = ", ".join(Role)
        advice = f"Say what they are: declare={{'NAME': ROLE}}, with patterns as in 'blocks.*.x'; roles are {roles}"
        raise UserError("\n".join(["the role of these parameters is not certain:", *unsure[:12], *more, advice]))

    of_all = replace(solved(2, None), exactly=lambda info: conclusions[info.name].values)
    multipliers = _multipliers(module, traced, conclusions, {k: solved(k, None) for k in (1, 2)})
    for name, one in conclusions.items():
        if RULES[one.values.rule].whole_matrix and len(one.info.shape) != 2:
            odd = f"{one.values.rule} steps matrices, and {name} has {len(one.info.shape)} sides"
            raise UserError(f"{odd}; choose an optimizer that steps elements, such as adamw")
    infos = {name: one.info for name, one in conclusions.items()}
    groups = make_groups(dict(module.named_parameters()), infos, of_all, rules or {})
    _rescale(module, base, twins, conclusions, config.init_std)
    for name, (factor, place) in multipliers.items():
        owner, scale = module.get_submodule(name), _Scale(factor)
        if factor != 1.0 and place == "output":
            owner.register_forward_hook(scale.output)
        elif factor != 1.0:
            owner.register_forward_pre_hook(scale.input)
        setattr(owner, _MARK, factor)
    return Parametrized(groups, conclusions, multipliers, (base_width, width), depths, config.lr)


_MARK = "_mup_multiplier"

_OF_THE_MODULES = frozenset(
    "base_width base_depth branch_depth pure init_std input_multiplier gpt2_residual_init time_rule base_batch "
    "base_tokens tokens law".split()
)
"""Fields of the recipe that would do nothing here, or something else than their name says."""


@dataclass(frozen=True)
class _Scale:
    """A multiplier as a hook, which survives copies, pickling and compilation."""

    factor: float

    def output(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Scale what a module returns; of a tuple the first."""
        if isinstance(output, torch.Tensor):
            return output * self.factor
        return type(output)((output[0] * self.factor, *output[1:]))

    def input(self, module: nn.Module, args: Any) -> Any:
        """Scale what a module is given."""
        return (args[0] * self.factor, *args[1:])


def _multipliers(
    module: nn.Module, traced: Traced, conclusions: Mapping[str, Conclusion], recipes: Mapping[int, Recipe]
) -> dict[str, tuple[float, str]]:
    """Module -> factor, and whether it is on the module's output or input."""
    found: dict[str, tuple[float, str]] = {}
    times = Counter(branch.module for branch in traced.branches)
    for branch in traced.branches:
        if branch.module is None or traced.calls[branch.module] != times[branch.module]:
            raise UserError(
                f"no module returns what the residual branch of {min(branch.parameters)} adds to the stream, and "
                f"nothing else; put the branch, or its last layer, into a module of its own"
            )
        found[branch.module] = (recipes[min(branch.k, 2)].multipliers.residual, "output")
    for name, conclusion in conclusions.items():
        products = [use for use in traced.uses[name] if use.outputs_first is not None]
        tied = {use.outputs_first for use in products} == {True, False}
        for use in products if conclusion.info.role is Role.OUTPUT or tied else []:
            if tied and not use.outputs_first:
                continue
            if not use.module or list(module.get_submodule(use.module).children()) or traced.calls[use.module] != 1:
                raise UserError(f"{name} is no module's own; put the product with it into a module, such as nn.Linear")
            found[use.module] = (recipes[2].multipliers.output, "input")
    return found


@torch.no_grad()
def _rescale(
    module: nn.Module,
    base: nn.Module,
    twins: Mapping[str, tuple[str, str]],
    conclusions: Mapping[str, Conclusion],
    unit: float,
) -> None:
    """Give every parameter the RMS of its counterpart, times the recipe's factor; constants stay as they are."""
    theirs = dict(base.named_parameters())
    for name, parameter in module.named_parameters():
        other, found = theirs[twins[name][0]], conclusions[name]
        factor = 1.0 if found.info.role.is_vector else found.values.init_std / unit
        same = factor == 1.0 and parameter.shape == other.shape
        if same or parameter.numel() < 2 or bool((parameter == parameter.flatten()[0]).all()):
            continue
        sizes = [float(tensor.double().square().mean().sqrt()) for tensor in (other, parameter)]
        if sizes[1] > 0:
            parameter.mul_(factor * sizes[0] / sizes[1])
