"""What attention needs of the tokens before the next one, kept while text is generated.

Shapes: L blocks, B sequences, G heads of keys and values, S positions, D head dimension.
"""

import torch

from mup_lightning.config.model import ModelConfig


class Cache:
    """Keys and values of all blocks at the `length` positions that a model has been given, with room for its context.

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
