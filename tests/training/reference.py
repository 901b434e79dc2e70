"""A second, plain implementation of training, to compare with: no Lightning, no groups, no chunked loss."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from mup_lightning.data.sampler import epoch_permutation
from mup_lightning.model.gpt2 import build
from mup_lightning.optim.schedule import lr_factor
from mup_lightning.training.tensors import Shards


def weights_of(path):
    """Parameter name -> tensor of a checkpoint's folder."""
    return quantities_of(path, "weight")


def quantities_of(path, *wanted):
    """Parameter name -> a quantity of a checkpoint's folder, flat where several processes wrote it."""
    shards = Shards(Path(path))
    return {
        name: shards.read(quantity, name)
        for name, kept in shards.quantities.items()
        for quantity in kept
        if quantity in wanted
    }


def tree(folder):
    """The content of every file below a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same_training(found, wanted, bound=1e-5):
    """Compare the weights of two runs that differ in rounding alone.

    Biases of keys are left out: they add the same number to all logits of a query, so their gradient is exactly zero
    but for rounding, and AdamW makes steps of full size out of that.
    """
    assert found.keys() == wanted.keys()
    for name, weight in wanted.items():
        difference = (found[name].view_as(weight) - weight).abs()
        if name.endswith("qkv.bias"):
            difference[len(weight) // 3 : 2 * len(weight) // 3] = 0.0
        assert difference.max() < bound, name


def train_plainly(config, steps):
    """The same run, for `adamw` and without dropout: the whole batch at once, one torch.optim.AdamW group a parameter.

    Returns:
        The parameters by name.
    """
    recipe = config.derive()
    model = build(config.model, recipe, config.seed)
    groups, units = [], []
    for name, parameter in model.named_parameters():
        values = recipe.of(model.parameter_info[name])
        own = {"lr": values.lr, "weight_decay": values.weight_decay, "eps": config.recipe.eps * values.scaled["eps"]}
        groups.append({"params": [parameter], **own})
        units.append(values.gradient)
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), foreach=False, fused=False)
    factor = lr_factor(config)
    tokens = np.fromfile(f"{config.data.path}/train-00000.bin", dtype="<u2").astype(np.int64)
    context, batch = config.model.context, config.data.batch_size
    samples = (len(tokens) - 1) // context
    for step in range(steps):
        windows = []
        for counter in range(step * batch, (step + 1) * batch):
            epoch, place = divmod(counter, samples)
            start = int(epoch_permutation(config.seed, epoch, samples)[place]) * context
            windows.append(torch.from_numpy(tokens[start : start + context + 1]))
        window = torch.stack(windows)
        loss = F.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        squares = [(p.grad.norm() / unit) ** 2 for p, unit in zip(model.parameters(), units, strict=True)]
        factor_of_clip = min(1.0, config.trainer.gradient_clip / float(sum(squares)) ** 0.5)
        for parameter in model.parameters():
            parameter.grad.mul_(factor_of_clip)
        for group, first in zip(optimizer.param_groups, groups, strict=True):
            group["lr"] = first.setdefault("first_lr", group["lr"]) * factor(step)
        optimizer.step()
    return {name: parameter.detach() for name, parameter in model.named_parameters()}
