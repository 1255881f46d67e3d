"""DEQ in the style of the implicit-layers tutorial: Anderson without a tape, then one step with it. And learned shrinkage (LISTA)."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class ResNetLayer(nn.Module):
    def __init__(self, n_channels, n_inner_channels, kernel_size=3, num_groups=4):
        super().__init__()
        self.conv1 = nn.Conv2d(n_channels, n_inner_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.conv2 = nn.Conv2d(n_inner_channels, n_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm1 = nn.GroupNorm(num_groups, n_inner_channels)
        self.norm2 = nn.GroupNorm(num_groups, n_channels)
        self.norm3 = nn.GroupNorm(num_groups, n_channels)
        self.conv1.weight.data.normal_(0, 0.01)
        self.conv2.weight.data.normal_(0, 0.01)

    def forward(self, z, x):
        y = self.norm1(F.relu(self.conv1(z)))
        return self.norm3(F.relu(z + self.norm2(x + self.conv2(y))))


class DEQFixedPoint(nn.Module):
    def __init__(self, f, k=12):
        super().__init__()
        self.f, self.k = f, k

    def forward(self, x):
        with torch.no_grad():
            z = torch.zeros_like(x)
            for _ in range(self.k):
                z = self.f(z, x)
        z = self.f(z, x)  # the phantom step
        return z


def deq_phantom():
    chan = 16
    f = ResNetLayer(chan, 24)
    model = nn.Sequential(
        nn.Conv2d(3, chan, kernel_size=3, bias=True, padding=1),
        nn.GroupNorm(4, chan),
        DEQFixedPoint(f),
        nn.AvgPool2d(4, 4),
        nn.Flatten(),
        nn.Linear(chan * 4, 10),
    )
    return model, torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(11))


class LISTA(nn.Module):
    r"""z_{k+1} = soft(W_e x + S z_k, theta) with W_e = A^T / lip, S = I - A^T A / lip, shared by all layers."""

    def __init__(self, n_iter=10, m=24, n=40):
        super().__init__()
        u, _, vh = torch.linalg.svd(torch.randn(m, n), full_matrices=False)
        A = u * torch.linspace(1.0, 0.8, m) @ vh  # a well-conditioned dictionary
        lip = torch.linalg.matrix_norm(A, 2) ** 2
        self.We = nn.Parameter(A.T / lip)
        self.S = nn.Parameter(torch.eye(n) - A.T @ A / lip)
        self.theta = nn.Parameter(torch.full((n,), 0.02))
        self.D = nn.Parameter(A.clone())
        self.n_iter = n_iter

    def shrink(self, v):
        return torch.sign(v) * torch.relu(torch.abs(v) - self.theta)

    def forward(self, x):
        b = x @ self.We.T
        z = self.shrink(b)
        for _ in range(self.n_iter):
            z = self.shrink(b + z @ self.S.T)
        return z @ self.D.T


def lista(n_iter=10):
    return LISTA(n_iter), torch.randn(4, 24, generator=torch.Generator().manual_seed(12))


TRUTHS = {
    "deq_phantom": dict(
        codes=["norm-bounded", "truncated-gradient"],
        law="bounded",
        watch="DEQFixedPoint.forward:z",
        kind="equilibrium",
        level="medium",
        why="norm3 ends every visit; of 13 visits the last alone has a gradient. The input is injected inside of a norm",
    ),
    "lista": dict(
        codes=[],
        may=["norm-bounded"],
        loops=10,
        watch="LISTA.forward:z",
        kind="solver",
        level="hard",
        why="b is added at every visit, but S has its largest eigenvalue at 1 only where A sees nothing: the iteration settles",
    ),
}
