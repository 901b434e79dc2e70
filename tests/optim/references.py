"""Each rule once more, in float64 numpy, written from the paper's equation and from nothing else."""

import numpy as np

QUINTIC = [(3.4445, -4.7750, 2.0315)] * 5
POLAR_EXPRESS = [  # Amsel et al. 2025, table of the first eight polynomials
    (8.2051, -22.9019, 16.4607),
    (4.0664, -2.8612, 0.5184),
    (3.9096, -2.8234, 0.5250),
    (3.2856, -2.4153, 0.4853),
    (2.2779, -1.6198, 0.3985),
    (1.8726, -1.2307, 0.3585),
    (1.8564, -1.2132, 0.3568),
    (1.8750, -1.2500, 0.3750),
]


def newton_schulz(x, polynomials):
    for a, b, c in polynomials:
        x = a * x + b * (x @ x.T) @ x + c * (x @ x.T) @ (x @ x.T) @ x
    return x


def unit(x):
    return x / max(np.linalg.norm(x), 1e-300)


def adamw(w, grads, lr, wd, eps, beta1=0.9, beta2=0.95, **_):
    m = v = 0.0
    for t, g in enumerate(grads, 1):
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        a = (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps)
        w = w - lr * (a + wd * w)
    return w


def adan(w, grads, lr, wd, eps, beta1=0.98, beta2=0.92, beta3=0.99, **_):
    m = v = n = 0.0
    for t, g in enumerate(grads, 1):
        change = g - grads[max(t - 2, 0)]
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * change
        n = beta3 * n + (1 - beta3) * (g + beta2 * change) ** 2
        ahead = m / (1 - beta1**t) + beta2 * v / (1 - beta2**t)
        w = w - lr * (ahead / (np.sqrt(n / (1 - beta3**t)) + eps) + wd * w)
    return w


def muon(w, grads, lr, wd, eps, momentum=0.95, scale=1.0, polynomials=QUINTIC, **_):
    m = 0.0
    for g in grads:
        m = momentum * m + g
        w = w - lr * (scale * newton_schulz(unit(g + momentum * m), polynomials) + wd * w)
    return w


def muon_kimi(w, grads, lr, wd, eps, polynomials=QUINTIC, **_):
    return muon(w, grads, lr, wd, eps, scale=0.2 * np.sqrt(max(w.shape)), polynomials=polynomials)


def sgd(w, grads, lr, wd, eps, momentum=0.9, **_):
    m = 0.0
    for g in grads:
        m = momentum * m + g
        w = w - lr * (m + wd * w)
    return w


def lion(w, grads, lr, wd, eps, beta1=0.9, beta2=0.99, **_):
    m = 0.0
    for g in grads:
        w = w - lr * (np.sign(beta1 * m + (1 - beta1) * g) + wd * w)
        m = beta2 * m + (1 - beta2) * g
    return w


def sophia(w, grads, lr, wd, eps, beta1=0.965, beta2=0.99, rho=0.05, hessian=None, **_):
    m, h = 0.0, np.zeros_like(w)
    for t, g in enumerate(grads):
        m = beta1 * m + (1 - beta1) * g
        if t % 10 == 0:
            h = beta2 * h + (1 - beta2) * hessian(g)
        w = w - lr * (np.clip(m / np.maximum(rho * h, 1e-12), -1, 1) + wd * w)
    return w


def inverse_root(x, eps, power):
    values, vectors = np.linalg.eigh(x)
    return vectors @ np.diag((np.maximum(values, 0) + eps) ** power) @ vectors.T


def shampoo(w, grads, lr, wd, eps, beta1=0.95, beta2=0.95, correct_bias=True, **_):
    m = left = right = 0.0
    for t, g in enumerate(grads, 1):
        m = beta1 * m + (1 - beta1) * g
        left, right = beta2 * left + (1 - beta2) * g @ g.T, beta2 * right + (1 - beta2) * g.T @ g
        correction = 1 - beta2**t
        a = inverse_root(left / correction, eps, -1 / 4) @ (m / (1 - beta1**t) if correct_bias else m)
        w = w - lr * (a @ inverse_root(right / correction, eps, -1 / 4) + wd * w)
    return w


def soap(w, grads, lr, wd, eps, beta1=0.95, beta2=0.95, every=10, bases=None, **_):
    """`bases`: the first eigenbases to use. Those of a singular matrix are not unique, and SOAP depends on them."""
    g = grads[0]
    left, right = (1 - beta2) * g @ g.T, (1 - beta2) * g.T @ g
    q_l, q_r = bases or (np.linalg.eigh(x)[1][:, ::-1] for x in (left, right))
    for q, x in ((q_l, left), (q_r, right)):
        scale = max(np.linalg.norm(x), 1.0)
        precision = 1e-12 if q.dtype == np.float64 else 1e-5
        assert np.abs(q.T @ q - np.eye(len(q))).max() < precision
        assert np.abs(q.T @ x @ q - np.diag(np.diag(q.T @ x @ q))).max() < precision * scale
    m, v = np.zeros_like(g), np.zeros_like(g)
    for t, g in enumerate(grads[1:], 1):
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * (q_l.T @ g @ q_r) ** 2
        a = q_l @ ((q_l.T @ m @ q_r) / (np.sqrt(v) + 1e-8)) @ q_r.T
        w = w - lr * (np.sqrt(1 - beta2**t) / (1 - beta1**t) * a + wd * w)
        left, right = beta2 * left + (1 - beta2) * g @ g.T, beta2 * right + (1 - beta2) * g.T @ g
        if t % every == 0:
            for q, x, axis in ((q_l, left, 0), (q_r, right, 1)):
                order = np.argsort(-np.diag(q.T @ x @ q))
                v = np.take(v, order, axis)
                q[...] = np.linalg.qr(x @ q[:, order])[0]
    return w


def sso(w, grads, lr, wd, eps, momentum=0.9, **_):
    radius = np.sqrt(w.shape[0] / w.shape[1])
    m = 0.0
    for g in grads:
        m = momentum * m + (1 - momentum) * g
        u, s, vt = np.linalg.svd(w)
        theta = np.outer(u[:, 0], vt[0])
        w = w * radius / s[0]

        def phi(multiplier, m=m, theta=theta):
            return newton_schulz((unit(m) + multiplier * theta) / (1 + abs(multiplier)), POLAR_EXPRESS)

        low, high = -4.0, 4.0
        for _ in range(100 if np.any(m) else 0):  # bisection, to the last bit
            middle = (low + high) / 2
            low, high = (middle, high) if np.sum(theta * phi(middle)) < 0 else (low, middle)
        w = w - lr * (radius * phi((low + high) / 2) + wd * w)
    return w


REFERENCES = {rule.__name__: rule for rule in (adamw, adan, muon, muon_kimi, sgd, lion, sophia, shampoo, soap, sso)}
