"""DeepSpeed's ZeRO under Lightning, the same code on GPUs (NCCL) and on CPU processes (gloo).

DeepSpeed sees float32 everywhere: with precision bf16 the forward pass runs under autocast, as in every other strategy,
and weights, gradients and what processes exchange stay float32. So all strategies are the same mathematics, and none of
the traps of DeepSpeed's own bf16 mode applies (a phantom first step at stage 0, a residual stream rounded to bf16).
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from torch import nn
from torch.optim import Optimizer

from mup_lightning.optim.optimizer import HybridOptimizer
from mup_lightning.training.gradient_order import InOrder
from mup_lightning.training.module import GPT2Module
from mup_lightning.training.zero_layout import layouts

BUCKET = 1 << 23
"""Numbers that are reduced, or fetched ahead, at once: 32 MB. DeepSpeed's own 2 GB are more than most models."""


class ZeROStrategy(DeepSpeedStrategy):
    """DeepSpeed with a ZeRO stage, around one `HybridOptimizer`.

    Args:
        stage: 0 (as ddp), 1 (optimizer states parted), 2 (gradients too), 3 (weights too).
        clip: largest norm of the raw gradients, 0 for none. At stages 1 to 3 DeepSpeed clips, because it alone holds
            the gradients; at stage 0 the module does.

    Attributes:
        stage: see above.
    """

    def __init__(self, stage: int, clip: float) -> None:
        self.stage = stage
        super().__init__(config=_config(stage, clip), logging_level=logging.ERROR)
        self._process_group_backend: str | None = None

    @property
    def parts_gradients(self) -> bool:
        """Whether a process holds a part of the gradients only."""
        return self.stage > 0

    def setup_environment(self) -> None:
        """See `Strategy`; Lightning's own refuses CPUs."""
        DDPStrategy.setup_environment(self)

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
        """Wrap model and optimizer, and tell the optimizer where its parameters have gone."""
        import deepspeed

        assert isinstance(optimizer, HybridOptimizer)
        names = {id(parameter): name for name, parameter in optimizer.originals.items()}
        if self.stage == 3:
            assert self.config is not None
            self.config["zero_optimization"]["stage3_max_live_parameters"] = _gathered_at_once(model)
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
                optimizer.set_layout(flat, layout)
        if self.stage > 1:
            InOrder(wrapped, list(model.parameters()))
        return engine, wrapped

    def backward(
        self, closure_loss: torch.Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """See `Strategy`. Lightning has divided the loss by the micro-batches of a step; DeepSpeed would once more."""
        return super().backward(closure_loss, optimizer, *args, scale_wrt_gas=False, **kwargs)

    def optimizer_step(self, optimizer: Optimizer, closure: Any, model: Any = None, **kwargs: Any) -> Any:
        """See `Strategy`. DeepSpeed would skip a step whose gradients are not finite, and say nothing."""
        last_of_step = self.deepspeed_engine.is_gradient_accumulation_boundary()
        result = super().optimizer_step(optimizer, closure, model, **kwargs)
        if self.parts_gradients and last_of_step:
            module = self.lightning_module
            assert isinstance(module, GPT2Module)
            wrapped: Any = self.optimizers[0]
            norm = float("inf") if wrapped.overflow else wrapped._global_grad_norm
            module.see_gradient_norm(torch.as_tensor(norm, device=self.root_device))
        return result

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Lightning's counters, as in every other strategy; DeepSpeed's own files would need pickle."""
        DDPStrategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """See `save_checkpoint`."""
        return DDPStrategy.load_checkpoint(self, checkpoint_path, weights_only)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Nothing: weights are saved by `shards`, by every process its own."""
        return {}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """See `lightning_module_state_dict`."""
        return {}


def _gathered_at_once(model: nn.Module) -> int:
    """Numbers of gathered weights up to which DeepSpeed fetches more ahead: two blocks, this one and the next.

    Its own 1e9 are all of most models: every layer fetches a bucket more, from the end of the forward pass on those of
    the backward pass, and what is there already is not given back.
    """
    assert isinstance(model, GPT2Module)
    return 2 * sum(parameter.numel() for parameter in model.model.blocks[0].parameters())


def _config(stage: int, clip: float) -> dict[str, Any]:
    """DeepSpeed's configuration; Lightning adds the accumulation of gradients."""
    return {
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": stage,
            "reduce_bucket_size": BUCKET,
            "reduce_scatter": stage == 3,  # at 1 and 2 it is an all-reduce in any case, by way of one more copy
            "stage3_prefetch_bucket_size": BUCKET,
            "stage3_max_reuse_distance": 0,  # a layer's whole weights go after its forward pass, and come again
        },
        "gradient_clipping": clip if stage > 0 else 0.0,
        "train_micro_batch_size_per_gpu": 1,  # only for DeepSpeed's own logs
        "steps_per_print": 1 << 60,
    }
