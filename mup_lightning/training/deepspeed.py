"""DeepSpeed's ZeRO under Lightning, the same code on GPUs (NCCL) and on CPU processes (gloo).

DeepSpeed sees float32 everywhere: with precision bf16 the forward pass runs under autocast, as in every other strategy.
So all strategies are the same mathematics, and none of the traps of DeepSpeed's own bf16 mode applies.

Three things are added to it: the optimizer learns where its parameters have gone (`layouts`), gradients are reduced in
the same order on all processes (`reduce_in_order`), and a step whose gradients are not finite ends the run.
"""

import logging
from collections.abc import Iterator
from typing import Any, cast

import torch
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from torch import nn
from torch.optim import Optimizer

from mup_lightning.distributed.layout import Fragment, Layout, contiguous, each_cut
from mup_lightning.optim.optimizer import HybridOptimizer
from mup_lightning.plan.memory import ZERO_BUCKET
from mup_lightning.training.module import GPT2Module


class ZeROStrategy(DeepSpeedStrategy):
    """DeepSpeed with a ZeRO stage, around one `HybridOptimizer`.

    Args:
        stage: 0 (as ddp), 1 (optimizer states partitioned), 2 (gradients too), 3 (weights too).
        clip: largest norm of the raw gradients, 0 for none. At stages 1 to 3 DeepSpeed clips, because it alone holds
            the gradients; at stage 0 the module does.

    `parts_gradients`: whether a process holds only a part of the gradients.
    """

    setup_environment = DDPStrategy.setup_environment  # Lightning's own refuses CPUs
    # Lightning's counters, as in every other strategy; DeepSpeed's own files would need pickle.
    save_checkpoint = DDPStrategy.save_checkpoint
    load_checkpoint = DDPStrategy.load_checkpoint

    def __init__(self, stage: int, clip: float) -> None:
        self.stage, self.parts_gradients = stage, stage > 0
        super().__init__(config=_config(stage, clip), logging_level=logging.ERROR)
        self._process_group_backend: str | None = None

    def setup_distributed(self) -> None:
        """See `DDPStrategy`."""
        import deepspeed

        # Would otherwise be compiled at the first start, for minutes; gloo does without.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        DDPStrategy.setup_distributed(self)
        deepspeed.init_distributed(self._process_group_backend, dist_init_required=False, verbose=False)

    def _setup_model_and_optimizer(
        self, model: nn.Module, optimizer: Optimizer | None, lr_scheduler: Any = None
    ) -> tuple[Any, Any]:
        """Wrap model and optimizer, and record in the optimizer where its parameters have gone."""
        import deepspeed

        hybrid = cast(HybridOptimizer, optimizer)
        names = {id(held.tensor): name for name, held in hybrid.held.items()}
        units = {info.name: group["gradient"] for group in hybrid.param_groups for info in group["infos"]}
        if self.stage == 3 and self.config:
            # Fetch two blocks ahead, this one and the next. DeepSpeed's own 1e9 elements are more than most models
            # have: each layer would fetch a bucket more, and what is there already is not released.
            block = sum(parameter.numel() for parameter in cast(GPT2Module, model).model.blocks[0].parameters())
            self.config["zero_optimization"]["stage3_max_live_parameters"] = 2 * block
        engine, wrapped, _, _ = deepspeed.initialize(
            config=self.config,
            model=model,
            model_parameters=[parameter for parameter in model.parameters() if parameter.requires_grad],
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            dist_init_required=False,
        )
        if self.stage > 0:
            for flat, layout in layouts(wrapped, names, self.stage, self.world_size):
                hybrid.set_layout(flat, layout)
            groups = wrapped.fp16_groups if self.stage == 3 else wrapped.bit16_groups
            clip_in_units(wrapped, [units[names[id(group[0])]] for group in groups])
        if self.stage > 1:
            reduce_in_order(wrapped, list(model.parameters()))
        return engine, wrapped

    def backward(
        self, closure_loss: torch.Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """See `Strategy`. Lightning has divided the loss by the micro-batches of a step; DeepSpeed would once more."""
        return super().backward(closure_loss, optimizer, *args, scale_wrt_gas=False, **kwargs)

    def optimizer_step(self, optimizer: Optimizer, closure: Any, model: Any = None, **kwargs: Any) -> Any:
        """See `Strategy`. DeepSpeed would skip a step whose gradients are not finite, silently."""
        last_of_step = self.deepspeed_engine.is_gradient_accumulation_boundary()
        result = super().optimizer_step(optimizer, closure, model, **kwargs)
        if self.parts_gradients and last_of_step:
            wrapped: Any = self.optimizers[0]
            norm = float("inf") if wrapped.overflow else wrapped._global_grad_norm
            cast(GPT2Module, self.lightning_module).see_gradient_norm(torch.as_tensor(norm, device=self.root_device))
        return result

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Nothing: every process saves its own weights (`tensors.held`)."""
        return {}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """See `lightning_module_state_dict`."""
        return {}


def _config(stage: int, clip: float) -> dict[str, Any]:
    """DeepSpeed's configuration; Lightning adds the accumulation of gradients."""
    return {
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": stage,
            "reduce_bucket_size": ZERO_BUCKET,
            "reduce_scatter": stage == 3,  # at 1 and 2 it is an all-reduce in any case, by way of one more copy
            "stage3_prefetch_bucket_size": ZERO_BUCKET,
            "stage3_max_reuse_distance": 0,  # a layer's whole weights go after its forward pass, and come again
        },
        "gradient_clipping": clip if stage > 0 else 0.0,
        "train_micro_batch_size_per_gpu": 1,  # only for DeepSpeed's own logs
        "steps_per_print": 1 << 60,
    }


def layouts(wrapped: Any, names: dict[int, str], stage: int, world_size: int) -> Iterator[tuple[torch.Tensor, Layout]]:
    """The flat tensors that DeepSpeed's optimizer `wrapped`, of stage 1, 2 or 3, uses, and what they are made of.

    `names`: id of a parameter -> its name. Raises RuntimeError where what is there is not what should be: another
    version of DeepSpeed lays it out differently.
    """
    rank = torch.distributed.get_rank()
    if stage == 3:
        for flat, group in zip(wrapped.fp32_partitioned_groups_flat, wrapped.fp16_groups, strict=True):
            layout = each_cut({names[id(parameter)]: (parameter.ds_numel, 1) for parameter in group}, world_size)
            mine = {names[id(parameter)]: parameter.ds_tensor.flatten() for parameter in group}
            yield _checked(flat, layout, {part: mine[part.name][: part.length] for part in layout.ranks[rank]})
        return
    for index, flat in enumerate(wrapped.single_partition_of_fp32_groups):
        group, offsets = wrapped.round_robin_bit16_groups[index], wrapped.round_robin_bit16_offsets[index]
        places = {names[id(p)]: (offset, p.numel()) for p, offset in zip(group, offsets, strict=True)}
        layout = contiguous(places, wrapped.partition_size[index], world_size)
        whole = {names[id(parameter)]: parameter.detach().flatten() for parameter in group}
        yield _checked(flat, layout, {part: part.of_whole(whole[part.name]) for part in layout.ranks[rank]})


def _checked(flat: torch.Tensor, layout: Layout, expected: dict[Fragment, torch.Tensor]) -> tuple[torch.Tensor, Layout]:
    """A flat tensor whose fragments have the values that they should have, and its layout."""
    for fragment, values in expected.items():
        held = fragment.of_flat(flat.detach())
        if not torch.equal(held, values.to(held)):
            raise RuntimeError(
                f"DeepSpeed has not put {fragment.name} where this version expects it; install the pinned deepspeed"
            )
    return flat, layout


def clip_in_units(wrapped: Any, units: list[float]) -> None:
    """Make DeepSpeed clip by the norm of gradients in the units of their groups; see `GPT2Module._clip`.

    DeepSpeed takes the norm of each group of gradients, and then hands the total to the function that clips a group.
    The norm that it reports stays the plain one. Two methods of its optimizer `wrapped`, of stage 1, 2 or 3, are
    replaced; `units` are those of its groups, in order.
    """
    norms: list[torch.Tensor] = []
    norm_of, clip = wrapped.get_grad_norm_direct, wrapped.unscale_and_clip_grads

    def measure(*arguments: Any, **options: Any) -> torch.Tensor:
        if len(norms) == len(units):
            norms.clear()  # of the step before
        norms.append(norm_of(*arguments, **options))
        return norms[-1]

    def clip_by_all(group: Any, total_norm: Any) -> None:
        clip(group, torch.linalg.vector_norm(torch.stack(norms) / norms[0].new_tensor(units)))

    if any(unit != 1.0 for unit in units):
        wrapped.get_grad_norm_direct, wrapped.unscale_and_clip_grads = measure, clip_by_all


def reduce_in_order(wrapped: Any, parameters: list[torch.Tensor]) -> None:
    """Make DeepSpeed reduce gradients in the backward order of the parameters, whatever order they arrive in.

    At stages 2 and 3 DeepSpeed (0.19.8) puts gradients into buckets as the backward pass makes them, and adds up the
    processes' buckets element by element. A compiled block hands out all its gradients at once, in an order that
    differs between processes: gradients of different parameters are then added to each other, silently.

    A gradient that arrives early waits until those before it have arrived. What still waits when the backward pass is
    over (behind a parameter without a gradient) goes then, in order. Two methods of DeepSpeed's optimizer `wrapped` are
    replaced; `parameters` are in the order of the forward pass.
    """
    order = {id(parameter): place for place, parameter in enumerate(reversed(parameters))}
    waiting: dict[int, tuple[Any, ...]] = {}
    reduce = wrapped.reduce_ready_partitions_and_remove_grads
    finish = wrapped.overlapping_partition_gradients_reduce_epilogue
    coming = 0

    def arrived(parameter: torch.Tensor, *more: Any) -> None:
        nonlocal coming
        waiting[order[id(parameter)]] = (parameter, *more)
        while coming in waiting:
            reduce(*waiting.pop(coming))
            coming += 1

    def end() -> None:
        nonlocal coming
        for place in sorted(waiting):
            reduce(*waiting.pop(place))
        coming = 0
        finish()

    wrapped.reduce_ready_partitions_and_remove_grads = arrived
    wrapped.overlapping_partition_gradients_reduce_epilogue = end
