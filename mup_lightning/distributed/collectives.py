"""What processes send each other so that whole-matrix rules get whole matrices, each worked on by one process.

Two cases: all processes hold everything (single process, ddp, ZeRO 0), or each holds fragments (ZeRO 1 to 3). Either
way a rule sees whole parameters, gradients and states and does not know of processes. A matrix's state lives at its
owner alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist

from mup_lightning.distributed.layout import Fragment, Layout


def rank_and_world() -> tuple[int, int]:
    """This process's rank, and how many there are; (0, 1) where there is no process group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def share(parameters: list[torch.Tensor], owners: list[int]) -> None:
    """Give every process its fellow processes' new values, in one exchange.

    Args:
        parameters: the same on all processes; each is overwritten by its owner's values.
        owners: rank of each one's owner.
    """
    rank, world_size = rank_and_world()
    if world_size == 1 or not parameters:
        return
    owned = [[p for p, owner in zip(parameters, owners, strict=True) if owner == peer] for peer in range(world_size)]
    sizes = [sum(p.numel() for p in theirs) for theirs in owned]
    # All parts must be equally long: the shorter ones are padded.
    mine = parameters[0].new_zeros(max(sizes))
    if owned[rank]:
        torch.cat([parameter.flatten() for parameter in owned[rank]], out=mine[: sizes[rank]])
    gathered = mine.new_empty(world_size, max(sizes))
    dist.all_gather_single(gathered.view(-1), mine)
    for peer in range(world_size):
        if peer != rank:
            pieces = gathered[peer, : sizes[peer]].split([parameter.numel() for parameter in owned[peer]])
            for parameter, piece in zip(owned[peer], pieces, strict=True):
                parameter.copy_(piece.view_as(parameter))


def with_whole(
    layout: Layout,
    owners: dict[str, int],
    weight: torch.Tensor,
    gradient: torch.Tensor,
    shapes: dict[str, tuple[int, ...]],
    update: Callable[[list[str], list[torch.Tensor], list[torch.Tensor]], None],
) -> None:
    """Bring each parameter's fragments to its owner, update it there, and send the new values back.

    Two exchanges: weights and gradients to the owners, weights back. A parameter that its owner holds whole is updated
    in place and moves nowhere.

    Args:
        layout: of the flat tensors.
        owners: parameter -> rank.
        weight: this process's flat weights, updated in place.
        gradient: its flat gradients.
        shapes: parameter -> shape.
        update: called once with the names of the parameters that this process owns, their weights (to be updated in
            place) and their gradients, whole.
    """
    rank, world_size = rank_and_world()
    travels = {name for name, counts in layout.held.items() if counts[owners[name]] != sum(counts)}
    out = [(owners[f.name], f) for f in layout.ranks[rank] if f.name in travels]
    sends = [[f for owner, f in out if owner == peer] for peer in range(world_size)]
    receives = [
        [f for f in layout.ranks[peer] if f.name in travels and owners[f.name] == rank] for peer in range(world_size)
    ]
    owned = [name for name, owner in owners.items() if owner == rank]
    weights, gradients = {}, {}
    for fragment in layout.ranks[rank]:
        if owners[fragment.name] == rank and fragment.name not in travels:
            weights[fragment.name], gradients[fragment.name] = (_cut(flat, fragment) for flat in (weight, gradient))
    for flat, whole in ((weight, weights), (gradient, gradients)):
        for name in owned:
            if name in travels:
                whole[name] = flat.new_empty(sum(layout.held[name]))
        if travels:
            _swap(flat, sends, receives, whole)
    update(
        owned,
        [weights[name].view(shapes[name]) for name in owned],
        [gradients[name].view(shapes[name]) for name in owned],
    )
    if not travels:
        return
    flat_out = [weights[f.name][f.start : f.start + f.length] for peer in receives for f in peer]
    back = _exchange(
        torch.cat(flat_out) if flat_out else weight.new_empty(0),
        [sum(f.length for f in peer) for peer in receives],
        [sum(f.length for f in peer) for peer in sends],
    )
    pieces = back.split([f.length for peer in sends for f in peer])
    for fragment, piece in zip([f for peer in sends for f in peer], pieces, strict=True):
        _cut(weight, fragment).copy_(piece)


def gather(layout: Layout, name: str, owner: int, flat: torch.Tensor) -> torch.Tensor | None:
    """Bring one parameter's fragments together at one process; all processes call it.

    Args:
        layout: of the flat tensors.
        name: of the parameter.
        owner: rank of the process that gets it.
        flat: this process's.

    Returns:
        All numbers of the parameter, flat, at its owner; None elsewhere.
    """
    rank, world_size = rank_and_world()
    pieces = layout.pieces[name]
    sends = [pieces[rank] if peer == owner else [] for peer in range(world_size)]
    receives = pieces if rank == owner else [[] for _ in range(world_size)]
    whole = {name: flat.new_empty(sum(layout.held[name]))} if rank == owner else {}
    _swap(flat, sends, receives, whole)
    return whole.get(name)


def _swap(
    flat: torch.Tensor, sends: list[list[Fragment]], receives: list[list[Fragment]], whole: dict[str, torch.Tensor]
) -> None:
    """Send every peer its fragments of a flat tensor, and put what comes from the peers into whole, flat parameters."""
    out = [_cut(flat, fragment) for peer in sends for fragment in peer]
    arrived = _exchange(
        torch.cat(out) if out else flat.new_empty(0),
        [sum(f.length for f in peer) for peer in sends],
        [sum(f.length for f in peer) for peer in receives],
    )
    fragments = [f for peer in receives for f in peer]
    for fragment, piece in zip(fragments, arrived.split([f.length for f in fragments]), strict=True):
        whole[fragment.name][fragment.start : fragment.start + fragment.length] = piece


def _exchange(out: torch.Tensor, out_sizes: list[int], in_sizes: list[int]) -> torch.Tensor:
    """One all-to-all of flat tensors."""
    arrived = out.new_empty(sum(in_sizes))
    if len(out_sizes) == 1:
        return arrived.copy_(out)
    dist.all_to_all_single(arrived, out, in_sizes, out_sizes)
    return arrived


def _cut(flat: torch.Tensor, fragment: Fragment) -> torch.Tensor:
    return flat[fragment.offset : fragment.offset + fragment.length]
