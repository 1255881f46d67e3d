"""State spaces without kernels: a minimal Mamba that loops over depth, and an RG-LRU-like carry in depth (decays by channel)."""

import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F


@dataclass
class ModelArgs:
    d_model: int = 32
    n_layer: int = 2
    n_loop: int = 6
    vocab_size: int = 60
    d_state: int = 4
    expand: int = 2
    dt_rank: int | str = "auto"
    d_conv: int = 4

    def __post_init__(self):
        self.d_inner = int(self.expand * self.d_model)
        if self.dt_rank == "auto":
            self.dt_rank = math.ceil(self.d_model / 16)


class MambaBlock(nn.Module):
    def __init__(self, args: ModelArgs):
        super().__init__()
        self.args = args
        self.in_proj = nn.Linear(args.d_model, args.d_inner * 2, bias=False)
        self.conv1d = nn.Conv1d(
            args.d_inner, args.d_inner, args.d_conv, groups=args.d_inner, padding=args.d_conv - 1, bias=True
        )
        self.x_proj = nn.Linear(args.d_inner, args.dt_rank + args.d_state * 2, bias=False)
        self.dt_proj = nn.Linear(args.dt_rank, args.d_inner, bias=True)
        A = torch.arange(1, args.d_state + 1, dtype=torch.float32).repeat(args.d_inner, 1)
        self.A_log = nn.Parameter(torch.log(A))
        self.D = nn.Parameter(torch.ones(args.d_inner))
        self.out_proj = nn.Linear(args.d_inner, args.d_model, bias=False)

    def forward(self, x):
        seq_len = x.shape[1]
        x, res = self.in_proj(x).split(split_size=[self.args.d_inner, self.args.d_inner], dim=-1)
        x = self.conv1d(x.transpose(1, 2))[:, :, :seq_len].transpose(1, 2)
        y = self.ssm(F.silu(x)) * F.silu(res)
        return self.out_proj(y)

    def ssm(self, x):
        n = self.args.d_state
        A, D = -torch.exp(self.A_log.float()), self.D.float()
        delta, B, C = self.x_proj(x).split(split_size=[self.args.dt_rank, n, n], dim=-1)
        return self.selective_scan(x, F.softplus(self.dt_proj(delta)), A, B, C, D)

    def selective_scan(self, u, delta, A, B, C, D):
        (b, seq_len, d_in), n = u.shape, A.shape[1]
        deltaA = torch.exp(delta.unsqueeze(-1) * A)
        deltaB_u = delta.unsqueeze(-1) * B.unsqueeze(2) * u.unsqueeze(-1)
        x = torch.zeros((b, d_in, n))
        ys = []
        for i in range(seq_len):
            x = deltaA[:, i] * x + deltaB_u[:, i]
            ys.append((x * C[:, i, None]).sum(-1))
        return torch.stack(ys, dim=1) + u * D


class ResidualBlock(nn.Module):
    def __init__(self, args: ModelArgs):
        super().__init__()
        self.mixer, self.norm = MambaBlock(args), nn.RMSNorm(args.d_model)

    def forward(self, x):
        return self.mixer(self.norm(x)) * 3.0 + x  # muP output multiplier of the base model


class Mamba(nn.Module):
    def __init__(self, args: ModelArgs):
        super().__init__()
        self.args = args
        self.embedding = nn.Embedding(args.vocab_size, args.d_model)
        self.layers = nn.ModuleList([ResidualBlock(args) for _ in range(args.n_layer)])
        self.norm_f = nn.RMSNorm(args.d_model)
        self.lm_head = nn.Linear(args.d_model, args.vocab_size, bias=False)
        self.lm_head.weight = self.embedding.weight
        nn.init.normal_(self.embedding.weight, std=0.2)

    def forward(self, input_ids):
        x = self.embedding(input_ids)
        for _ in range(self.args.n_loop):
            for layer in self.layers:
                x = layer(x)
        return self.lm_head(self.norm_f(x))


class DepthCarry(nn.Module):
    """h <- a * h + (1/n) * f(norm(h)), a = sigmoid(Lambda) for each channel, as the RG-LRU does over time."""

    def __init__(self, d=40, n_step=8, low=2.0, high=9.0, vocab=60):
        super().__init__()
        self.emb, self.n_step = nn.Embedding(vocab, d), n_step
        self.Lambda = nn.Parameter(torch.linspace(low, high, d))
        self.norm, self.time = nn.LayerNorm(d), nn.Parameter(torch.rand(d))
        self.key, self.receptance = nn.Linear(d, 2 * d, bias=False), nn.Linear(d, d, bias=False)
        self.value = nn.Linear(2 * d, d, bias=False)
        self.ln_out, self.head = nn.LayerNorm(d), nn.Linear(d, vocab, bias=False)

    def channel_mix(self, x):
        past = F.pad(x, (0, 0, 1, -1))
        x = x * self.time + past * (1 - self.time)
        return torch.sigmoid(self.receptance(x)) * self.value(torch.relu(self.key(x)) ** 2)

    def forward(self, idx):
        h = self.emb(idx)
        a = torch.sigmoid(self.Lambda)
        for _ in range(self.n_step):
            h = a * h + self.channel_mix(self.norm(h)) / self.n_step
        return self.head(self.ln_out(h))


def _ids():
    return torch.randint(0, 60, (2, 12), generator=torch.Generator().manual_seed(41))


def mamba_loop(n_loop=6):
    return Mamba(ModelArgs(n_loop=n_loop)), _ids()


def carry_near_one(n_step=8):
    return DepthCarry(n_step=n_step), _ids()


def carry_rounded(n_step=8):
    return DepthCarry(n_step=n_step, low=4.0, high=22.0), _ids()


TRUTHS = {
    "mamba_loop": dict(
        codes=["unscaled-residual"],
        loops=6,
        layers=2,
        watch="Mamba.forward:x",
        place={"unscaled-residual": ["return self.mixer(self.norm(x)) * 3.0 + x|mixer|out_proj"]},
        mend="attach",
        kind="sequence",
        level="medium",
        why="a multiplier of 3 on each mixer at 6 visits of two layers; the scan's own loop over time is not the loop",
    ),
    "carry_near_one": dict(
        codes=[],
        may=["norm-bounded"],
        loops=8,
        layers=1,
        watch="DepthCarry.forward:h",
        kind="decay",
        level="hard",
        why="decays from 0.88 to 0.9999, none is 1 in fp32; the branch carries 1/N",
    ),
    "carry_rounded": dict(
        codes=["marginal-decay"],
        may=["norm-bounded"],
        loops=8,
        layers=1,
        watch="DepthCarry.forward:h",
        place={"marginal-decay": ["h = a * h|a = torch.sigmoid|Lambda"]},
        kind="decay",
        level="medium",
        why="the decay of twelve of forty channels is exactly 1.0 in fp32",
    ),
}
