"""State-space and linear-attention layers that are looped over depth: every visit also runs its own recursion over time."""

import torch
import torch.nn.functional as F
from torch import nn


class TimeMix(nn.Module):
    """RWKV-4: token shift, and a weighted mean of values that is carried from token to token with a decay for each channel."""

    def __init__(self, d):
        super().__init__()
        self.time_decay, self.time_first = nn.Parameter(torch.linspace(-5, 1, d)), nn.Parameter(torch.zeros(d))
        self.mix_k, self.mix_v, self.mix_r = (nn.Parameter(torch.linspace(0, 1, d)) for _ in range(3))
        self.key, self.value, self.receptance, self.output = (nn.Linear(d, d, bias=False) for _ in range(4))

    def forward(self, x):
        last = F.pad(x, (0, 0, 1, -1))
        k = self.key(x * self.mix_k + last * (1 - self.mix_k))
        v = self.value(x * self.mix_v + last * (1 - self.mix_v))
        r = self.receptance(x * self.mix_r + last * (1 - self.mix_r))
        w = -self.time_decay.exp()
        num, den = torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0])
        top = torch.full_like(num, -1e30)
        told = []
        for t in range(x.shape[1]):
            q = torch.maximum(top, self.time_first + k[:, t])
            a, b = (top - q).exp(), (self.time_first + k[:, t] - q).exp()
            told.append((a * num + b * v[:, t]) / (a * den + b))
            q = torch.maximum(top + w, k[:, t])
            a, b = (top + w - q).exp(), (k[:, t] - q).exp()
            num, den, top = a * num + b * v[:, t], a * den + b, q
        return self.output(r.sigmoid() * torch.stack(told, 1))


class ChannelMix(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.mix_k, self.mix_r = (nn.Parameter(torch.linspace(0, 1, d)) for _ in range(2))
        self.key, self.receptance, self.value = (
            nn.Linear(d, 3 * d, bias=False),
            nn.Linear(d, d, bias=False),
            nn.Linear(3 * d, d, bias=False),
        )

    def forward(self, x):
        last = F.pad(x, (0, 0, 1, -1))
        k = self.key(x * self.mix_k + last * (1 - self.mix_k)).relu().square()
        return self.receptance(x * self.mix_r + last * (1 - self.mix_r)).sigmoid() * self.value(k)


class RWKV(nn.Module):
    def __init__(self, n_loop, eps, gain=1.0, d=32):
        super().__init__()
        self.emb, self.ln0, self.ln_out, self.head = (
            nn.Embedding(40, d),
            nn.LayerNorm(d),
            nn.LayerNorm(d),
            nn.Linear(d, 40, bias=False),
        )
        self.ln1, self.ln2, self.att, self.ffn = nn.LayerNorm(d), nn.LayerNorm(d), TimeMix(d), ChannelMix(d)
        for p in [*self.att.parameters(), *self.ffn.parameters()]:
            if p.ndim == 2:
                nn.init.orthogonal_(p, gain)
        self.n_loop, self.eps = n_loop, eps

    def forward(self, idx):
        x = self.ln0(self.emb(idx))
        for _ in range(self.n_loop):
            x = x + self.eps * self.att(self.ln1(x))
            x = x + self.eps * self.ffn(self.ln2(x))
        return self.head(self.ln_out(x))


class SelectiveScan(nn.Module):
    """A small Mamba mixer: causal convolution, steps that depend on the input, a recursion over time written as a Python loop, a gate."""

    def __init__(self, d, n=4):
        super().__init__()
        self.in_proj, self.conv1d = nn.Linear(d, 4 * d, bias=False), nn.Conv1d(2 * d, 2 * d, 3, groups=2 * d, padding=2)
        self.x_proj, self.dt_proj, self.out_proj = (
            nn.Linear(2 * d, 2 * n + 2, bias=False),
            nn.Linear(2, 2 * d),
            nn.Linear(2 * d, d, bias=False),
        )
        nn.init.orthogonal_(self.out_proj.weight, 3.0)
        self.A_log, self.D, self.n = (
            nn.Parameter(torch.arange(1.0, n + 1).log().repeat(2 * d, 1)),
            nn.Parameter(torch.ones(2 * d)),
            n,
        )

    def forward(self, x):
        u, z = self.in_proj(x).chunk(2, -1)
        u = F.silu(self.conv1d(u.mT)[..., : x.shape[1]].mT)
        dt, B, C = self.x_proj(u).split([2, self.n, self.n], -1)
        dt = F.softplus(self.dt_proj(dt))
        h, ys = u.new_zeros(u.shape[0], u.shape[2], self.n), []
        for t in range(u.shape[1]):
            h = torch.exp(dt[:, t, :, None] * -self.A_log.exp()) * h + (dt[:, t] * u[:, t])[..., None] * B[:, t, None]
            ys.append((h * C[:, t, None]).sum(-1))
        return self.out_proj((torch.stack(ys, 1) + self.D * u) * F.silu(z))


class Bidirectional(nn.Module):
    """Vision-Mamba style: the same mixer forwards and backwards over the sequence, both into one update; 1/N."""

    def __init__(self, depth=5, d=24):
        super().__init__()
        self.emb, self.norm, self.mixer, self.head, self.depth = (
            nn.Embedding(40, d),
            nn.RMSNorm(d),
            SelectiveScan(d),
            nn.Linear(d, 40),
            depth,
        )

    def forward(self, idx):
        x = self.emb(idx)
        for _ in range(self.depth):
            y = self.norm(x)
            x = x + (self.mixer(y) + self.mixer(y.flip(1)).flip(1)) / (2 * self.depth)
        return self.head(x)


class DepthState(nn.Module):
    """A recurrent state over depth in every channel (a decay and an input gate), read by the block next to its stream; stream and state by 1/N."""

    def __init__(self, depth=7, d=32):
        super().__init__()
        self.emb, self.n1, self.n2, self.head, self.depth = (
            nn.Embedding(40, d),
            nn.LayerNorm(d),
            nn.LayerNorm(d),
            nn.Linear(d, 40),
            depth,
        )
        self.mix, self.write, self.decay = (
            nn.Sequential(nn.Linear(2 * d, 2 * d), nn.GELU(), nn.Linear(2 * d, d)),
            nn.Linear(d, d),
            nn.Parameter(torch.linspace(-1, 2, d)),
        )

    def forward(self, idx):
        x = self.emb(idx)
        state = torch.zeros_like(x)
        for _ in range(self.depth):
            a = torch.sigmoid(self.decay)
            state = a * state + (1 - a) * self.write(self.n1(x))
            x = x + self.mix(torch.cat([self.n2(x), state], -1)) / self.depth
        return self.head(x)


def rwkv(n_loop=6):
    return RWKV(n_loop, 1 / n_loop)


def rwkv_full(n_loop=6):
    return RWKV(n_loop, 1.0, gain=1.2)


def bidirectional(depth=5):
    return Bidirectional(depth)


def depth_state(depth=7):
    return DepthState(depth)


TRUTHS = {
    "rwkv": dict(
        codes=[],
        loops=6,
        layers=1,
        level="hard",
        kind="sequence",
        watch="RWKV.forward:x",
        why="1/N over depth; the recursion over 16 tokens is inside the branch",
    ),
    "rwkv_full": dict(
        codes=["unscaled-residual"],
        law="linear",
        loops=6,
        layers=1,
        level="hard",
        kind="sequence",
        watch="RWKV.forward:x",
        place={"unscaled-residual": ["x = x + self.eps * self.att|att"]},
        mend="either",
        why="eps = 1 over depth",
    ),
    "bidirectional": dict(
        codes=[],
        loops=5,
        level="hard",
        kind="sequence",
        watch="Bidirectional.forward:x",
        why="one update of two readings by 1/N; the mixer is called ten times for five visits",
    ),
    "depth_state": dict(
        codes=[],
        other=["norm-bounded"],
        loops=7,
        level="hard",
        kind="memory",
        watch="DepthState.forward:x",
        why="a convex state and a stream by 1/N",
    ),
}
