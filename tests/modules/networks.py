"""Modules that nobody here wrote, or that know nothing of the recipe, in any width and depth."""

import torch
import transformers
from torch import nn

HEAD = 16
transformers.logging.set_verbosity_error()


def gpt2(width, depth):
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            **{"vocab_size": 64, "n_positions": 16, "n_embd": width, "n_layer": depth, "n_head": width // HEAD},
            **{"bos_token_id": None, "eos_token_id": None},
        )
    )


def llama(width, depth):
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            **{"vocab_size": 64, "hidden_size": width, "num_hidden_layers": depth},
            **{"num_attention_heads": width // HEAD},
            **{"num_key_value_heads": max(1, width // HEAD // 2), "intermediate_size": 3 * width},
            **{"max_position_embeddings": 16, "bos_token_id": None, "eos_token_id": None},
        )
    )


def vit(width, depth):
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(
            **{"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": width // HEAD},
            **{"intermediate_size": 4 * width, "image_size": 16, "patch_size": 4, "num_labels": 10},
        )
    )


def timm_vit(width, depth):
    from timm.models.vision_transformer import VisionTransformer  # no test needs it, and it needs torchvision

    return VisionTransformer(16, 4, num_classes=10, embed_dim=width, depth=depth, num_heads=width // HEAD)


class ResidualMLP(nn.Module):
    """Blocks x + W2 relu(W1 norm(x)) between two linear layers, as torch initialises them."""

    def __init__(self, width, depth):
        super().__init__()
        self.first = nn.Linear(24, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.last = nn.Linear(width, 10)

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return self.last(self.norm(x))


def batch(name, seed, size=16):
    """Inputs, and labels that depend on them."""
    generator = torch.Generator().manual_seed(seed)
    if name in ("gpt2", "llama"):
        tokens = torch.randint(64, (size, 17), generator=generator)
        tokens[:, 1::2] = (3 * tokens[:, :-1:2] + 1) % 64  # every other token follows from the one before
        return tokens[:, :-1], tokens[:, 1:].flatten()
    shape = (size, 3, 16, 16) if name in ("vit", "timm") else (size, 24)
    x = torch.randn(shape, generator=generator)
    teacher = torch.randn(x[0].numel(), 10, generator=torch.Generator().manual_seed(99))
    return x, (x.flatten(1) @ teacher).argmax(1)


def logits(model, x):
    out = model(x)
    return (out if isinstance(out, torch.Tensor) else out.logits).flatten(0, -2)


BUILD = {"gpt2": gpt2, "llama": llama, "vit": vit, "mlp": ResidualMLP}
FINAL_NORM = {"gpt2": "transformer.ln_f", "llama": "model.norm", "vit": "vit.layernorm", "mlp": "norm", "timm": "norm"}
