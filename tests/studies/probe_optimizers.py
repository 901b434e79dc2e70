"""Optimizers whose exponents are known, or that cannot be probed: what the probe is tried on."""

import torch
from torch.optim import Optimizer


class Known(Optimizer):
    """W <- W - lr (direction(G) + weight_decay W)."""

    def __init__(self, params, lr=0.01, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                self.one(p, group)

    def one(self, p, group):
        p.mul_(1 - group["lr"] * group["weight_decay"]).add_(self.direction(p.grad), alpha=-group["lr"])

    def direction(self, g):
        return g


class Sign(Known):
    def direction(self, g):
        return g.sign()


class Orthogonal(Known):
    """U Vᵀ of a matrix, by its SVD; the sign of a vector. Directions without gradient are left out."""

    def direction(self, g):
        if g.ndim == 1:
            return g.sign()
        u, s, vt = torch.linalg.svd(g, full_matrices=False)
        return u[:, s > 1e-5 * s[0]] @ vt[s > 1e-5 * s[0]]


class SignRoot(Known):
    """Declared as a sign, but wrong: larger by the root of the width."""

    def direction(self, g):
        return g.sign() * max(g.shape) ** 0.5


class FixedDecay(Sign):
    def one(self, p, group):
        p.mul_(1 - group["weight_decay"]).add_(p.grad.sign(), alpha=-group["lr"])


class LateDecay(Sign):
    """Decoupled, but taken off the weight that has been stepped already."""

    def one(self, p, group):
        p.sub_(p.grad.sign(), alpha=group["lr"]).mul_(1 - group["lr"] * group["weight_decay"])


class CoupledDecay(Sign):
    def one(self, p, group):
        p.sub_((p.grad + group["weight_decay"] * p).sign(), alpha=group["lr"])


class Squared(Known):
    """Not proportional to the learning rate."""

    def one(self, p, group):
        p.sub_(p.grad, alpha=group["lr"] ** 2)


class MatricesOnly(Orthogonal):
    def __init__(self, params, lr=0.01, weight_decay=0.0):
        params = list(params)
        if any(p.ndim != 2 for p in params):
            raise ValueError("only matrices, please")
        super().__init__(params, lr, weight_decay)


class Marked(Orthogonal):
    """Wants matrices and vectors in groups that say which is which, as Muon's own code does."""

    def __init__(self, params, lr=0.01, weight_decay=0.0):
        super().__init__(params, lr, weight_decay)
        for group in self.param_groups:
            assert all((p.ndim == 2) == group["use_muon"] for p in group["params"])


class LateStart(Known):
    """Changes nothing before its third step."""

    def one(self, p, group):
        self.state[p]["step"] = self.state[p].get("step", 0) + 1
        if self.state[p]["step"] > 2:
            super().one(p, group)


class Still(Known):
    def one(self, p, group):
        pass


class Infinite(Known):
    def direction(self, g):
        return g / 0.0


class SlowWeights(Known):
    def one(self, p, group):
        self.state[p].setdefault("slow", p.clone())
        super().one(p, group)


class Failing(Known):
    def one(self, p, group):
        raise KeyError("no curvature here")


class NeedsClosure(Known):
    def step(self, closure):
        closure()


class NoRate(Optimizer):
    def __init__(self, params, speed=0.01):
        super().__init__(params, {"speed": speed})
