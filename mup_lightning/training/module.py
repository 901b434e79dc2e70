"""The LightningModule: a GPT-2 with multipliers, trained by the spectral recipe."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from mup_lightning.callbacks.step import WatchedModule
from mup_lightning.errors import UserError
from mup_lightning.model.gpt2 import build
from mup_lightning.model.loss import cross_entropy
from mup_lightning.optim.groups import make_groups
from mup_lightning.optim.hessian import estimate, sample_labels
from mup_lightning.optim.hybrid import HybridOptimizer
from mup_lightning.optim.schedule import make_schedule
from mup_lightning.spectral.recipe import derive
from mup_lightning.training.config import Config
from mup_lightning.training.evaluate import loss_sums


class GPT2Module(WatchedModule):
    """Trains a `GPT2` on windows of tokens.

    Args:
        config: the whole configuration.
        device: where the weights are made; "meta" to look without making them.

    Attributes:
        model: the network.
        recipe: the values derived for its shape.
        micro_losses: (loss, counters) of each micro-batch of the current step; losses stay on the device.
    """

    def __init__(self, config: Config, device: str = "cpu") -> None:
        super().__init__()
        self.config = config
        self.recipe = derive(config.recipe, width=config.model.width, depth=config.model.depth)
        self.model = build(
            config.model,
            self.recipe,
            config.seed,
            device=device,
            gpt2_residual_init=config.recipe.gpt2_residual_init,
        )
        self.micro_losses: list[tuple[torch.Tensor, torch.Tensor]] = []

    def configure_optimizers(self) -> Any:
        """Roles -> recipe -> groups -> one optimizer -> schedule."""
        groups = make_groups(
            dict(self.model.named_parameters()), self.model.parameter_info, self.recipe, self.config.rules
        )
        # No check of its own: configure_gradient_clipping has looked at the same gradients.
        optimizer = HybridOptimizer(groups, check=False)
        schedule = make_schedule(optimizer, self.config.schedule, self.config.recipe.lr, self.config.trainer.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Loss of one micro-batch: `tokens` (b, T + 1) and `counters` (b,), the samples' places in the global order."""
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self.micro_losses.clear()
        if self.config.model.dropout > 0:
            # Dropout's mask, too, is a pure function of the place in the run: nothing to save, nothing to lose.
            torch.manual_seed(_mix(self.config.seed, batch_idx, self.global_rank))
        self._window = batch["tokens"]
        recorder, self.recorder = self.recorder, None
        loss = self.model.loss(batch["tokens"], recorder)
        self.micro_losses.append((loss.detach(), batch["counters"]))
        return loss

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the raw gradients by their global norm, and stop before the optimizer sees one that is not finite.

        Raises:
            UserError: the loss or a gradient is NaN or infinite; names the step and the batch.
        """
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self.gradient_norm = get_total_norm([p.grad for p in parameters])
        if not torch.isfinite(self.gradient_norm + self.step_loss()):
            raise UserError(self._not_finite())
        limit = self.config.trainer.gradient_clip
        if limit > 0:
            clip_grads_with_norm_(parameters, limit, self.gradient_norm)
        self.estimate_hessian()

    def estimate_hessian(self) -> None:
        """Where a rule (Sophia) wants it before this step: estimate the Hessian's diagonal on the last micro-batch.

        A second backward pass that touches no .grad, and so none of the hooks that average gradients over processes;
        each process estimates on its own tokens with its own draws, and the mean of all goes in.
        """
        optimizer = self.trainer.optimizers[0]
        assert isinstance(optimizer, HybridOptimizer)
        parameters = optimizer.wants_hessian()
        if not parameters:
            return
        window = self._window
        generator = torch.Generator(window.device).manual_seed(
            _mix(self.config.seed, self.trainer.global_step, self.global_rank, 1)
        )
        with self.trainer.precision_plugin.forward_context():
            diagonals = estimate(lambda: self._loss_on_own_labels(window, generator), parameters, window[:, 1:].numel())
        reduce = self.trainer.strategy.reduce
        optimizer.give_hessian(parameters, [reduce(diagonal, reduce_op="mean") for diagonal in diagonals])

    def _loss_on_own_labels(self, window_BT1: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Mean cross-entropy against labels drawn from the model's own predictions."""
        model, chunk = self.model, self.config.model.loss_chunk
        features_NC = model.features(window_BT1[:, :-1]).flatten(0, 1)
        labels_N = sample_labels(features_NC, model.output_matrix, model.vocab_size, generator, chunk=chunk)
        return cross_entropy(features_NC, model.output_matrix, labels_N, model.vocab_size, chunk=chunk)[0]

    def step_loss(self) -> torch.Tensor:
        """See `WatchedModule`."""
        return torch.stack([loss for loss, _ in self.micro_losses]).mean()

    def validation_loss(self) -> float:
        """See `WatchedModule`. Each process takes its share of the windows; the sums meet in one exchange."""
        trainer = self.trainer
        sums = loss_sums(self.model, trainer.datamodule.val_windows(), self.device)  # type: ignore[attr-defined]
        total = trainer.strategy.reduce(sums, reduce_op="sum")
        return float(total[0] / total[1])

    def _not_finite(self) -> str:
        bad = [(loss, counters) for loss, counters in self.micro_losses if not torch.isfinite(loss)]
        if bad:
            what, counters = f"the loss is {bad[0][0].item()}", bad[0][1]
        else:
            what = f"the norm of the gradients is {float(self.gradient_norm)}"
            counters = torch.cat([counters for _, counters in self.micro_losses])
        samples = self.trainer.datamodule.describe(counters.cpu())  # type: ignore[attr-defined]
        return (
            f"{what} in step {self.trainer.global_step + 1}. Stopped before the optimizer step: no weight has changed, "
            f"and every saved checkpoint is kept. Usual cures: a lower recipe.lr, a longer schedule.warmup_steps.\n"
            f"The batch on process {self.global_rank}:\n{samples}"
        )


def _mix(*numbers: int) -> int:
    """A 63-bit seed from a few numbers."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:8], "little") >> 1
