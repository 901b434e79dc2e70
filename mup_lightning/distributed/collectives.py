"""What processes send each other so that whole-matrix rules get whole matrices, each worked on by one process.

Two cases: all processes hold everything (single process, ddp, ZeRO 0), or each holds fragments (ZeRO 1 to 3). Either
way a rule sees whole parameters, gradients and states and knows nothing about processes. A matrix's state is kept by
its owner alone.
"""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist

from mup_lightning.distributed.layout import Fragment, Layout

Fragments = Sequence[Sequence[Fragment]]
"""For every peer, the fragments that are sent to it or received from it."""


def rank_and_world() -> tuple[int, int]:
    """This process's rank, and how many there are; (0, 1) where there is no process group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def broadcast(owned: list[tuple[torch.Tensor, int]]) -> None:
    """Give every process the values that parameters have at their owners (ranks); all have the same parameters."""
    if rank_and_world()[1] > 1:
        for exchange in [dist.broadcast(parameter.detach(), owner, async_op=True) for parameter, owner in owned]:
            exchange.wait()


def update_at_owners(
    layout: Layout,
    owners: dict[str, int],
    weight: torch.Tensor,
    gradient: torch.Tensor,
    update: Callable[[dict[str, torch.Tensor], dict[str, torch.Tensor]], None],
) -> None:
    """Bring each parameter's fragments to its owner, update it there, and send the new values back.

    Two exchanges: weights and gradients to the owners, weights back. A parameter that its owner holds whole is updated
    in place and moves nowhere. `weight` (updated in place) and `gradient` are this process's flat ones; `update` is
    called once with those of the parameters that this process owns, each whole and flat, by name.
    """
    rank, world_size = rank_and_world()
    travels = {name for name, counts in layout.held.items() if counts[owners[name]] != sum(counts)}
    mine = [fragment for fragment in layout.ranks[rank] if fragment.name in travels]
    sends = [[f for f in mine if owners[f.name] == peer] for peer in range(world_size)]
    receives = [[f for f in theirs if f.name in travels and owners[f.name] == rank] for theirs in layout.ranks]
    owned = [name for name, owner in owners.items() if owner == rank]
    stay = {f.name: f for f in layout.ranks[rank] if f.name not in travels and owners[f.name] == rank}
    weights, gradients = (
        {name: stay[name].of_flat(flat) if name in stay else flat.new_empty(sum(layout.held[name])) for name in owned}
        for flat in (weight, gradient)
    )
    if travels:
        for flat, whole in ((weight, weights), (gradient, gradients)):
            _to_owners(flat, sends, receives, whole)
    update(weights, gradients)
    if travels:
        outgoing = [f.of_whole(weights[f.name]) for peer in receives for f in peer]
        returned = _all_to_all(weight, outgoing, receives, sends)
        for fragment, values in zip([f for peer in sends for f in peer], returned, strict=True):
            fragment.of_flat(weight).copy_(values)


def gather(layout: Layout, name: str, owner: int, flat: torch.Tensor) -> torch.Tensor | None:
    """Bring one parameter's fragments together at one process; all processes call it, with their own flat tensors.

    Returns the whole parameter, flat, at its owner; None elsewhere.
    """
    rank, world_size = rank_and_world()
    pieces = layout.pieces[name]
    sends = [pieces[rank] if peer == owner else [] for peer in range(world_size)]
    receives = pieces if rank == owner else [[] for _ in range(world_size)]
    whole = {name: flat.new_empty(sum(layout.held[name]))} if rank == owner else {}
    _to_owners(flat, sends, receives, whole)
    return whole.get(name)


def _to_owners(flat: torch.Tensor, sends: Fragments, receives: Fragments, whole: dict[str, torch.Tensor]) -> None:
    """Send every peer its fragments of a flat tensor, and put what the peers send into whole, flat parameters."""
    outgoing = [fragment.of_flat(flat) for peer in sends for fragment in peer]
    arrived = _all_to_all(flat, outgoing, sends, receives)
    for fragment, values in zip([f for peer in receives for f in peer], arrived, strict=True):
        fragment.of_whole(whole[fragment.name]).copy_(values)


def _all_to_all(
    like: torch.Tensor, outgoing: list[torch.Tensor], sends: Fragments, receives: Fragments
) -> Sequence[torch.Tensor]:
    """One all-to-all: the values of the fragments in `sends`, in order, for those of the fragments in `receives`."""
    out_sizes, in_sizes = ([sum(f.length for f in peer) for peer in side] for side in (sends, receives))
    out = torch.cat(outgoing) if outgoing else like.new_empty(0)
    arrived = out.new_empty(sum(in_sizes))
    if len(out_sizes) == 1:
        arrived.copy_(out)
    else:
        dist.all_to_all_single(arrived, out, in_sizes, out_sizes)
    return arrived.split([f.length for peer in receives for f in peer])
