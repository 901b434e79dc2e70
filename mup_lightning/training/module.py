"""The LightningModule: a language model with multipliers, trained by the spectral recipe."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim.lr_scheduler import LambdaLR

from mup_lightning.callbacks.noise_scale import gradient_square
from mup_lightning.config.schema import Config
from mup_lightning.data.datamodule import Batch
from mup_lightning.errors import Diverged
from mup_lightning.model.gpt2 import GPT2, build
from mup_lightning.model.loss import cross_entropy
from mup_lightning.model.parameters import stable_seed
from mup_lightning.model.taps import Recorder
from mup_lightning.optim.optimizer import HybridOptimizer
from mup_lightning.optim.registry import make_groups
from mup_lightning.optim.schedule import lr_factor
from mup_lightning.optim.sophia import estimate, sample_labels, uniforms
from mup_lightning.optim.spectral_norm import total_norm


def build_training(config: Config, device: str = "cpu") -> tuple[GPT2, HybridOptimizer]:
    """Roles -> recipe -> weights on a device (or "meta") -> parameter groups -> one optimizer over all of them.

    Raises UserError where the model's switches and the recipe contradict each other.
    """
    recipe = config.derive()
    model = build(config.model, recipe, config.seed, device=device)
    named = dict(model.named_parameters())
    return model, HybridOptimizer(make_groups(named, model.parameter_info, recipe, config.rules))


class GPT2Module(pl.LightningModule):
    """Trains a `GPT2` on windows of tokens.

    Attributes:
        model: the network.
        hybrid: the optimizer, as it was before a strategy wrapped it.
        recorder: receives the features of the next micro-batch, and is dropped after it.
        gradient_norm: global norm of the raw gradients in the last step, 0-dim, before clipping.
        noise_sequences: how many of the step's first sequences have their gradient taken a second time; 0: none.
        noise_square: squared norm of that gradient, 0-dim, float64.
        micro_losses: (loss, batch) of each micro-batch of the current step; losses stay on the device.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.model, self.hybrid = build_training(config)
        self.hybrid.check = False  # see_gradient_norm has looked at the same gradients
        if config.trainer.compile == "on":
            self.model.compile()
        self.strict_loading = False  # weights come from `tensors`, not from Lightning
        self.recorder: Recorder | None = None
        self.gradient_norm: torch.Tensor = torch.tensor(0.0)
        self.noise_sequences = 0
        self.noise_square: torch.Tensor = torch.tensor(0.0)
        self.micro_losses: list[tuple[torch.Tensor, Batch]] = []

    def configure_optimizers(self) -> Any:
        """The one optimizer, made before Lightning moved the model to its device, and its schedule over steps."""
        schedule = LambdaLR(self.hybrid, lr_factor(self.config))
        return {"optimizer": self.hybrid, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Loss of one micro-batch: `tokens` (b, T + 1) and `counters` (b,), the samples' places in the global order."""
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self.micro_losses.clear()
            self.trainer.optimizers[0].zero_grad()
        if self.config.model.dropout > 0:
            # Dropout's mask is a pure function of the place in the run too: there is no generator's state to save.
            torch.manual_seed(stable_seed(repr((self.config.seed, batch_idx, self.global_rank))))
        recorder, self.recorder = self.recorder, None
        # Recording would be compiled anew, and differently: a measured step runs uncompiled.
        with self._autocast(), torch.compiler.set_stance("force_eager" if recorder else "default"):
            mixed, inputs_BT = len(self.config.data.sources) > 1, batch["tokens"][:, 1:]
            losses_BT = torch.empty(inputs_BT.shape, device=inputs_BT.device) if mixed else None
            loss = self.model.loss(batch["tokens"], recorder, losses_BT)
        if losses_BT is not None:
            batch = batch | {"losses": losses_BT.mean(1)}
        self.micro_losses.append((loss.detach(), batch))
        return loss

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        """Nothing: `training_step` has, before the forward pass, so that old gradients are not there beside logits."""

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the raw gradients; where ZeRO shards them, DeepSpeed does, later.

        Raises Diverged, which names step and batch, before the optimizer sees a gradient that is NaN or infinite.
        """
        # DeepSpeed's strategy asks after every micro-batch, not only after the last one of a step.
        if len(self.micro_losses) < self.trainer.accumulate_grad_batches:
            return
        if not getattr(self.trainer.strategy, "parts_gradients", False):
            self._clip(optimizer.param_groups)
        if wanting := self.hybrid.wants_hessian():
            self._estimate_hessian(wanting)
        if self.noise_sequences:
            self._measure_noise()

    def _clip(self, groups: list[dict[str, Any]]) -> None:
        """Clip all gradients by one factor, by their norm in units of what each role's gradients are at this size."""
        gradients: dict[float, list[torch.Tensor]] = {}
        for group in groups:
            of_group = [p.grad for p in group["params"] if p.grad is not None]
            gradients[group["gradient"]] = gradients.get(group["gradient"], []) + of_group
        # Where nothing is clipped, squares that overflow in float32 would do so in the optimizer's state too.
        length = total_norm if self.config.trainer.gradient_clip > 0 else get_total_norm
        norms = torch.stack([length(of_unit) for of_unit in gradients.values()])
        if self.hybrid.layouts:  # under FSDP, each process has a shard
            norms = self.trainer.strategy.reduce(norms.square(), reduce_op="sum").sqrt()
        self.see_gradient_norm(torch.linalg.vector_norm(norms))
        if self.config.trainer.gradient_clip > 0:
            # Divided by numbers, not by a tensor of them, whose way to a GPU would make the CPU wait for it.
            relative = torch.linalg.vector_norm(
                torch.stack([n / unit for n, unit in zip(norms, gradients, strict=True)])
            )
            parameters = [p for group in groups for p in group["params"]]
            clip_grads_with_norm_(parameters, self.config.trainer.gradient_clip, relative)

    def see_gradient_norm(self, norm: torch.Tensor) -> None:
        """Keep the global norm of this step's raw gradients; raises Diverged where it, or the loss, is not finite."""
        self.gradient_norm = norm
        if torch.isfinite(norm + self.step_loss()):
            return
        step, what = self.trainer.global_step + 1, f"the norm of the gradients is {float(norm)}"
        # The tokens of the first bad micro-batch, or of the whole step.
        counters = torch.cat([batch["counters"] for _, batch in self.micro_losses])
        for loss, batch in reversed(self.micro_losses):
            if not torch.isfinite(loss):
                what, counters = f"the loss is {loss.item()}", batch["counters"]
        samples = self.trainer.datamodule.describe(counters.cpu())  # type: ignore[attr-defined]
        raise Diverged(
            f"{what} in step {step}. Stopped before the optimizer step: no weight has changed, and every saved "
            f"checkpoint is kept. Usual remedies: a lower recipe.lr, a longer schedule.warmup_steps.\n"
            f"The batch on process {self.global_rank}:\n{samples}",
            step,
        )

    def _estimate_hessian(self, wanting: dict[str, torch.Tensor]) -> None:
        """Estimate the Hessian's diagonal on the whole batch, which a rule (Sophia) needs before this step.

        A second forward and backward pass that touches no .grad, and so none of the hooks that average gradients over
        processes.
        """
        context, reduce = self.config.model.context, self.trainer.strategy.reduce
        draws = partial(uniforms, self.config.seed, self.trainer.global_step)
        with self._autocast():
            diagonals = estimate(
                [partial(self, b["tokens"], draws(b["counters"].tolist(), context)) for _, b in self.micro_losses],
                list(wanting.values()),
                self.config.data.batch_size * context,
                lambda gradient: reduce(gradient, reduce_op="mean"),
                getattr(self.trainer.strategy, "gradient", torch.autograd.grad),
            )
        self.hybrid.give_hessian(dict(zip(wanting, diagonals, strict=True)))

    def _measure_noise(self) -> None:
        """The squared gradient of the step's first sequences, which the first process has; see `callbacks.noise_scale`.

        After the estimate of the Hessian, for which it would move the generator of dropout. Every process takes part,
        with sequences of its own: ZeRO-3 gathers the weights for all of them.
        """
        window, strategy = self.micro_losses[0][1]["tokens"][: self.noise_sequences], self.trainer.strategy
        first = self.global_rank == 0
        with self._autocast(), torch.enable_grad(), torch.compiler.set_stance("force_eager"):
            if differentiate := getattr(strategy, "gradient", None):  # it takes the mean over the processes
                share, parameters = self.trainer.world_size * first, [held.tensor for held in self.hybrid.held.values()]
                shards = differentiate(self(window) * share, parameters, whole=False)
                mine = torch.stack([shard.double().square().sum() for shard in shards]).sum()
            else:
                square = gradient_square(partial(self, window), self.parameters())
                mine = square if first else torch.zeros_like(square)
        self.noise_square = strategy.reduce(mine, reduce_op="sum")

    def forward(self, window_BT1: torch.Tensor, uniforms_N: torch.Tensor | None = None) -> torch.Tensor:
        """Mean cross-entropy of (B, T + 1) tokens; given (B·T,) draws, of labels from the model's own predictions."""
        model = self.model
        options: dict[str, Any] = {"cap": self.config.model.logit_cap, "chunk": self.config.model.loss_chunk}
        if uniforms_N is None:
            return model.loss(window_BT1)
        features_NC = model.features(window_BT1[:, :-1]).flatten(0, 1)
        labels_N = sample_labels(features_NC, model.output_matrix, model.vocab_size, uniforms_N, **options)
        return cross_entropy(features_NC, model.output_matrix, labels_N, model.vocab_size, **options)[0]

    def _autocast(self) -> torch.autocast:
        """Precision bf16: float32 weights, bf16 matrix products; the same under every strategy, unlike Lightning's."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.trainer.precision == "bf16")

    def step_loss(self) -> torch.Tensor:
        """Mean loss of this process's share of the current step, 0-dim, on the device."""
        return torch.stack([loss for loss, _ in self.micro_losses]).mean()

    def source_losses(self) -> torch.Tensor:
        """(2, sources) float64 of this process's part of a mixture's step: its sequences' losses, and their number."""
        sums = torch.zeros(2, len(self.config.data.sources), dtype=torch.float64, device=self.device)
        for _, batch in self.micro_losses:
            rows = torch.stack((batch["losses"], torch.ones_like(batch["losses"]))).double()
            sums.index_add_(1, batch["sources"], rows)
        return sums

    def validation_sums(self, source: int = 0) -> tuple[float, float, float]:
        """`loss_sums` of a source's validation tokens. Each process takes its share of them; one exchange adds up."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        with self._autocast():
            # Through this module rather than the model: ZeRO-3 gathers the weights in its forward pass.
            sums = loss_sums(self.model, data.val_windows(source=source), data.token_bytes, self.device, self)
        nats, tokens, text = self.trainer.strategy.reduce(sums, reduce_op="sum").tolist()
        return nats, tokens, text


@torch.no_grad()
def loss_sums(
    model: GPT2,
    batches: Iterable[torch.Tensor],
    token_bytes: torch.Tensor,
    device: torch.device,
    loss: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Add up the next-token cross-entropy over batches of windows, without dropout.

    Args:
        model: on `device`; left in the mode (training or not) that it came in.
        batches: (b, T + 1) int64 windows; b may be 0.
        token_bytes: (vocab_size,) int64, the bytes of text that each token stands for.
        loss: mean loss of a batch; None: the model's own.

    Returns:
        (3,) float64: the sum of the losses in nats, the number of tokens predicted, which are all but each window's
        first, and the bytes of their text; to be added up over processes.
    """
    was_training = model.training
    model.eval()
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    for window_BT1 in batches:
        tokens = window_BT1.shape[0] * (window_BT1.shape[1] - 1)
        mean = (loss or model.loss)(window_BT1.to(device))
        if tokens:  # a process that has run out of windows takes part in the forward pass only
            sums[0] += mean.double() * tokens
            sums[1] += tokens
            sums[2] += token_bytes[window_BT1[:, 1:]].sum()
    model.train(was_training)
    return sums
