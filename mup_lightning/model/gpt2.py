"""A decoder-only Transformer with an input, a residual and an output multiplier in its forward pass.

    h_0 = α_in (token + position embedding)
    h_l = h_{l-1} + α_res · attention(norm(h_{l-1})),  then the same with the MLP
    logits = α_out · W_out · norm(h_L), softly capped where model.logit_cap says so

With all multipliers at 1 and the default switches it is exactly GPT-2; with those of recipes/model/llama.yaml or
mixtral.yaml, Llama or Mixtral.

Shapes: B batch, T positions, C width, V padded vocabulary; of kept keys and values L blocks, G heads, S positions, D
head dimension.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from mup_lightning.config.model import ModelConfig
from mup_lightning.config.schema import leaves
from mup_lightning.errors import UserError
from mup_lightning.model import taps
from mup_lightning.model.layers import Block, documents, make_norm, rotation
from mup_lightning.model.loss import cross_entropy, soft_cap
from mup_lightning.model.parameters import Declaration, ParameterInfo, collect, initialise, norm
from mup_lightning.spectral.recipe import Multipliers, Recipe
from mup_lightning.spectral.roles import Role


class Cache:
    """Keys and values of all blocks at the `length` positions that a model has been given, with room for its context.

    Kept while text is generated: what attention needs of the tokens before the next one.

    Attributes:
        length: positions whose keys and values are there; 0 forgets them.
    """

    def __init__(self, config: ModelConfig, batch: int = 1, *, device: torch.device | str = "cpu") -> None:
        kv_heads = config.kv_dim // config.head_dim
        shape = (config.depth, 2, batch, kv_heads, config.context, config.head_dim)
        self.length, self._kv_L2BGSD = 0, torch.empty(shape, device=device)

    def grow(self, tokens: int) -> list[torch.Tensor]:
        """Make room for more positions: for each block (2, B, G, S, D), whose last `tokens` positions it fills.

        Raises ValueError where they exceed the model's context.
        """
        self.length += tokens
        if self.length > self._kv_L2BGSD.shape[4]:
            raise ValueError(f"{self.length} positions in a context of {self._kv_L2BGSD.shape[4]}")
        return list(self._kv_L2BGSD[..., : self.length, :])


class GPT2(nn.Module):
    """A language model of GPT-2's kind (vocab_size must be set); `build` makes one with the recipe's weights.

    `parameter_info` is everything known about each parameter, by name, recorded before any wrapper touches them.
    """

    def __init__(self, config: ModelConfig, multipliers: Multipliers) -> None:
        super().__init__()
        self.config, self.multipliers = config, multipliers
        self.vocab_size: int = config.vocab_size or 0
        self.compiled = False
        self.token = nn.Embedding(config.padded_vocab, config.width)
        self.position = nn.Embedding(config.context, config.width) if config.position == "learned" else None
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer, multipliers) for layer in range(config.depth))
        self.final_norm = make_norm(config)
        self.head = None if config.tied else nn.Linear(config.width, config.padded_vocab, bias=False)
        self.parameter_info: dict[str, ParameterInfo] = collect(self)

    def declarations(self) -> dict[str, Declaration]:
        """See `parameters.collect`. A tied matrix counts as an input; `check_tied` ensures that this is right."""
        result = {"token.weight": Declaration(Role.INPUT, "embedding")}
        if self.position is not None:
            result["position.weight"] = Declaration(Role.INPUT, "position")
        if self.head is not None:
            result["head.weight"] = Declaration(Role.OUTPUT, "head")
        return result | norm(self.final_norm, "final_norm", Role.INPUT_BIAS)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile every block, one graph for all, and on a GPU the loss's passes over the logits.

        In place, so that names stay and every strategy finds the blocks that it expects.
        """
        self.compiled = True
        # A sweep compiles many shapes in one process, and past the limit torch runs the rest uncompiled.
        torch._dynamo.config.recompile_limit = 256
        for block in self.blocks:
            block.compile(*args, **kwargs)

    def initialise(self, recipe: Recipe, seed: int) -> None:
        """Draw all weights; a pure function of the recipe, the seed, and each parameter's name and shape."""
        for name, parameter in self.named_parameters():
            info = self.parameter_info[name]
            initialise(parameter, info, recipe.of(info).init_std, seed)

    def features(
        self, tokens_BT: torch.Tensor, recorder: taps.Recorder | None = None, cache: Cache | None = None
    ) -> torch.Tensor:
        """(B, T) tokens -> (B, T, C) features before the output matrix, times the output multiplier.

        With a cache the tokens follow those that it has seen, and are seen by it; they are one document.
        """
        return self._features(tokens_BT, recorder, cache)[0]

    def _features(
        self, tokens_BT: torch.Tensor, recorder: taps.Recorder | None = None, cache: Cache | None = None
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """`features`, and what each block with experts says of their balance."""
        T, start = tokens_BT.shape[1], cache.length if cache else 0
        kept = cache.grow(T) if cache else [None] * self.config.depth
        positions, mask_B1TT = torch.arange(start, start + T, device=tokens_BT.device), None
        if self.config.document_mask and not cache:
            assert self.config.end_of_text is not None, "model.end_of_text has not been filled in"
            positions, mask_B1TT = documents(tokens_BT, self.config.end_of_text)
        x_BTC, turn_2TR, balances = self.token(tokens_BT), None, list[torch.Tensor]()
        if self.position is not None:
            x_BTC = x_BTC + self.position(positions)
        else:
            turn_2TR = rotation(positions, self.config.head_dim, self.config.rope_base, x_BTC.dtype)
        x_BTC = self.dropout(x_BTC * self.multipliers.input)
        if recorder is not None:
            recorder.feature(taps.EMBEDDING, None, x_BTC)
        for block, kv_2BGSD in zip(self.blocks, kept, strict=True):
            x_BTC, balance = block(x_BTC, recorder, turn_2TR, kv_2BGSD, mask_B1TT)
            balances += [] if balance is None else [balance]
        x_BTC = self.final_norm(x_BTC)
        if recorder is not None:
            recorder.feature(taps.FINAL_NORM, None, x_BTC)
        return x_BTC * self.multipliers.output, balances

    def forward(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        """(B, T) tokens -> (B, T, vocab_size) logits, with all multipliers, without the vocabulary's padding."""
        return self.logits(self.features(tokens_BT))

    def logits(self, features_BTC: torch.Tensor) -> torch.Tensor:
        """(B, T, C) `features` -> (B, T, vocab_size) logits."""
        logits_BTV = features_BTC @ self.output_matrix.t()
        return soft_cap(logits_BTV, self.config.logit_cap)[..., : self.vocab_size]

    def loss(
        self,
        window_BT1: torch.Tensor,
        recorder: taps.Recorder | None = None,
        losses_BT: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Mean next-token cross-entropy in nats, 0-dim, of (B, T + 1) int64 tokens: each but the first is a target.

        The recorder, if any, receives the features at every tap, and `losses_BT` every token's own loss. Gradients have
        model.balance times the mean of the blocks' load-balancing losses added, the loss that is returned has not.
        """
        features_BTC, balances = self._features(window_BT1[:, :-1], recorder)
        loss, rms = cross_entropy(
            features_BTC.flatten(0, 1),
            self.output_matrix,
            window_BT1[:, 1:].flatten(),
            self.vocab_size,
            cap=self.config.logit_cap,
            z_loss=self.config.z_loss,
            chunk=self.config.loss_chunk,
            measure=recorder is not None,
            losses_N=None if losses_BT is None else losses_BT.view(-1),
            compiled=self.compiled and window_BT1.is_cuda,  # on a CPU the products are nearly all of the time
        )
        if recorder is not None and rms is not None:
            recorder.feature(taps.LOGITS, None, rms)
        if balances and torch.is_grad_enabled():
            balance = self.config.balance * torch.stack(balances).mean()
            loss = loss + (balance - balance.detach())  # its gradient, and not its value
        return loss

    @property
    def multiplied(self) -> list[ParameterInfo]:
        """All parameters but lookup tables; a tied token embedding is the head, too, and so is none."""
        lookups = {"position.weight"} | (set() if self.config.tied else {"token.weight"})
        return [info for name, info in self.parameter_info.items() if name not in lookups]

    @property
    def flops_per_token(self) -> int:
        """6N + 12·L·n·T (Chowdhery et al. 2022, appendix B), the convention that others divide by for their MFU.

        N counts `multiplied`, of experts those of one token, and attention as if every token saw all T.
        """
        attention = 12 * self.config.depth * self.config.query_dim * self.config.context
        return 6 * sum(map(self.active, self.multiplied)) + attention

    @property
    def computed_flops(self) -> tuple[int, int]:
        """What training really computes for a token: in products with matrices, and in attention, which is causal.

        A weight takes 2 forward, 2 for its own gradient, 2 for its input's. Attention has 2 products forward and 5
        backward (the logits again, then the gradients of value, probability, query and key), each with 2·Q per pair of
        positions, of which causality leaves (T + 1)/2 per token.
        """
        config, matrices = self.config, [info for info in self.multiplied if not info.role.is_vector]
        attention = 7 * config.query_dim * (config.context + 1) * config.depth
        return 6 * sum(map(self.active, matrices)), attention

    def active(self, info: ParameterInfo) -> int:
        """How many of a parameter's elements compute for one token: all but those of other experts."""
        config = self.config
        if not (info.routed and config.experts) or info.side:  # the router computes for all
            return info.numel
        return info.numel * config.experts_per_token // config.experts

    @property
    def output_matrix(self) -> torch.Tensor:
        """(V, C): the head's own, or the token embedding's where they are tied."""
        return self.token.weight if self.head is None else self.head.weight


def build(config: ModelConfig, recipe: Recipe, seed: int, *, device: torch.device | str = "cpu") -> GPT2:
    """Make a model and draw its weights, by the recipe for its shape; see `GPT2.initialise`.

    It is laid out on the meta device first, without torch's own random init, which would be overwritten; a model on
    "meta" stays there. Raises UserError where the recipe does not allow tied embeddings, but the model has them.
    """
    with torch.device("meta"), _NoInit():
        model = GPT2(config, recipe.multipliers)
    if config.tied:
        check_tied(model.parameter_info["token.weight"], recipe)
    if torch.device(device).type != "meta":
        model.to_empty(device=device)
        model.initialise(recipe, seed)
    return model


class _NoInit(TorchFunctionMode):
    """Skips torch's own init, which does nothing on the meta device but spends a second importing the compiler."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def check_tied(info: ParameterInfo, recipe: Recipe) -> None:
    """Raise UserError for a tied embedding where the recipe wants different values for input and output matrix."""
    as_output = replace(info, role=Role.OUTPUT, label="head")
    first, last = (leaves(vars(recipe.of(one))) for one in (info, as_output))
    differing = [key.removeprefix("scaled.") for key in first | last if first.get(key) != last.get(key)]
    if differing:
        what = f"input and output matrix different values of {', '.join(differing)}"
        raise UserError(f"model.tied is true, but this recipe gives {what}; set model.tied false")
