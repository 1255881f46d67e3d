"""Message passing on edge lists, with one layer for all rounds: GIN's sums, and GCNII with its initial residual."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def scatter_add(src: Tensor, index: Tensor, num_nodes: int) -> Tensor:
    return torch.zeros(num_nodes, src.size(-1)).index_add(0, index, src)


def add_self_loops(edge_index, num_nodes):
    loop = torch.arange(num_nodes)
    return torch.cat([edge_index, torch.stack([loop, loop])], dim=1)


def gcn_norm(edge_index, num_nodes):
    row, col = edge_index
    deg = torch.zeros(num_nodes).index_add(0, col, torch.ones(col.numel()))
    return deg.pow(-0.5)[row] * deg.pow(-0.5)[col]


class GINConv(nn.Module):
    def __init__(self, mlp, train_eps=True):
        super().__init__()
        self.nn = mlp
        self.eps = nn.Parameter(torch.zeros(1)) if train_eps else 0.0

    def forward(self, x, edge_index):
        out = scatter_add(x[edge_index[0]], edge_index[1], x.size(0))
        return self.nn(out + (1 + self.eps) * x)


class RecurrentGIN(nn.Module):
    def __init__(self, in_channels=7, hidden=32, rounds=6):
        super().__init__()
        self.lin_in = nn.Linear(in_channels, hidden)
        mlp = nn.Sequential(nn.Linear(hidden, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, hidden))
        for m in mlp:
            if isinstance(m, nn.Linear):
                nn.init.xavier_uniform_(m.weight)
        self.conv, self.rounds = GINConv(mlp), rounds
        self.lin_out = nn.Linear(hidden, 1)

    def forward(self, x, edge_index):
        x = F.relu(self.lin_in(x))
        for _ in range(self.rounds):
            x = F.relu(self.conv(x, edge_index))
        return self.lin_out(x.mean(0, keepdim=True))


class SharedGCNII(nn.Module):
    def __init__(self, in_channels=7, hidden=32, num_layers=12, alpha=0.2, lamda=0.5):
        super().__init__()
        self.fcs = nn.ModuleList([nn.Linear(in_channels, hidden), nn.Linear(hidden, 3)])
        self.weight = nn.Parameter(torch.empty(hidden, hidden))
        self.weight.data.uniform_(-1 / math.sqrt(hidden), 1 / math.sqrt(hidden))
        self.num_layers, self.alpha, self.beta = num_layers, alpha, lamda
        self.dropout = 0.3

    def forward(self, x, edge_index):
        edge_index = add_self_loops(edge_index, x.size(0))
        norm = gcn_norm(edge_index, x.size(0))
        x = F.dropout(x, self.dropout, training=self.training)
        h = h0 = F.relu(self.fcs[0](x))
        for _ in range(self.num_layers):
            hi = scatter_add(norm.unsqueeze(-1) * h[edge_index[0]], edge_index[1], x.size(0))
            support = (1 - self.alpha) * hi + self.alpha * h0
            h = F.relu(self.beta * (support @ self.weight) + (1 - self.beta) * support)
        return F.log_softmax(self.fcs[-1](h), dim=1)


def _graph(n=18, p=0.3):
    g = torch.Generator().manual_seed(71)
    a = torch.rand(n, n, generator=g) < p
    a = (a | a.T).fill_diagonal_(False)
    return torch.randn(n, 7, generator=g), a.nonzero().T.contiguous()


def gin_rounds(rounds=6):
    return RecurrentGIN(rounds=rounds), _graph()


def gcnii_shared(num_layers=12):
    return SharedGCNII(num_layers=num_layers), _graph()


TRUTHS = {
    "gin_rounds": dict(
        codes=["expanding-map"],
        loops=6,
        law="exponential",
        watch="RecurrentGIN.forward:x",
        kind="graph",
        level="medium",
        why="sums over some five neighbours and itself through an MLP, no skip past it, no norm",
    ),
    "gcnii_shared": dict(
        codes=[],
        may=["norm-bounded"],
        loops=12,
        watch="SharedGCNII.forward:h",
        kind="graph",
        level="hard",
        why="h0 comes in at every layer, but as a convex mix with a normed neighbourhood: the size settles after a few layers",
    ),
}
