"""Deep equilibrium models in own code: a solver that ends at a tolerance without gradients, one more visit with them. `make` contracts.
`linear` has the same solver over an affine map of radius 1.6, no squash, no norm: each visit multiplies. `energy` steps down the gradient of an
energy that `torch.autograd.grad` gives inside the forward, 1/N a step; `steep` takes steps of 1. `strong` is `energy` with eight times the force: its map has a radius of 1.5
at the last visit, which six visits multiply to 13 (first stated as right; the limit of 1 + 2/N says otherwise).
"""

import torch
from torch import nn

TRUTHS = {
    "make": {
        "codes": "norm-bounded truncated-gradient halts-early",
        "law": "bounded",
        "loops": 12,
        "kind": "equilibrium",
    },
    "linear": {
        "codes": "expanding-map truncated-gradient",
        "law": "exponential",
        "loops": 13,
        "kind": "equilibrium",
        "hard": "two faults",
    },
    "energy": {"codes": "", "law": "bounded", "loops": 6, "kind": "equilibrium", "hard": "unusual code"},
    "strong": {
        "codes": "growth-unexplained",
        "law": "bounded",
        "loops": 6,
        "kind": "equilibrium",
        "hard": "unusual code",
    },
    "steep": {"codes": "unscaled-residual", "law": "linear", "loops": 6, "kind": "equilibrium", "hard": "unusual code"},
}


class Fixed(nn.Module):
    def __init__(self, radius, squash, max_iter=40):
        super().__init__()
        w = torch.linalg.qr(torch.randn(32, 32))[0]
        self.W, self.U, self.out = nn.Parameter(radius * w), nn.Linear(8, 32), nn.Linear(32, 4)
        self.squash, self.max_iter = squash, max_iter

    def f(self, z, x):
        return self.squash(z @ self.W + self.U(x))

    def forward(self, x):
        with torch.no_grad():
            z = torch.zeros(x.shape[0], 32)
            for _ in range(self.max_iter):
                new = self.f(z, x)
                done = float((new - z).norm() / new.norm()) < 1e-3
                z = new
                if done:
                    break
        return self.out(self.f(z, x))


class Energy(nn.Module):
    def __init__(self, step, sharp=1.0, force=1.0, iters=6, d=32):
        super().__init__()
        self.table, self.iters, self.step, self.sharp, self.force = nn.Embedding(50, d), iters, step, sharp, force
        self.norm, self.memory, self.head = nn.LayerNorm(d), nn.Linear(d, 96, bias=False), nn.Linear(d, 50)

    def energy(self, g):
        return -torch.logsumexp(self.sharp * self.memory(g), -1).sum() * self.force

    def forward(self, ids):
        x = self.table(ids)
        with torch.enable_grad():
            for _ in range(self.iters):
                x = x if x.requires_grad else x.requires_grad_()
                g = self.norm(x)
                (down,) = torch.autograd.grad(self.energy(g), g, create_graph=True)
                x = x - self.step * down
        return self.head(x)


def make():
    torch.manual_seed(0)
    return Fixed(0.6, torch.tanh), torch.randn(6, 8)


def linear():
    torch.manual_seed(0)
    return Fixed(1.6, nn.Identity(), max_iter=12), torch.randn(6, 8)


def energy():
    torch.manual_seed(0)
    return Energy(1 / 6)


def strong():
    torch.manual_seed(0)
    return Energy(1 / 6, 4.0, 2.0)


def steep():
    torch.manual_seed(0)
    return Energy(1.0, 4.0, 2.0)
