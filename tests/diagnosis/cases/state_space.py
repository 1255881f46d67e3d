"""A selective state-space layer and an RWKV layer, looped over depth; a scan over time runs inside each visit and is no loop over depth.
Decay and mixing parameters start from a formula, the same in every layer. `mamba` and `rwkv` are right; `mamba_bare` has no scale;
`rwkv_decay` carries the stream by a decay that is 1 in single precision.
"""

import torch
import torch.nn.functional as F
from torch import nn

TRUTHS = {
    "mamba": {"codes": "", "law": "bounded", "loops": 5, "layers": 1, "kind": "state space"},
    "mamba_bare": {
        "codes": "unscaled-residual",
        "law": None,
        "loops": 5,
        "layers": 1,
        "kind": "state space",
        "attach": True,
    },
    "rwkv": {"codes": "", "law": "bounded", "loops": 4, "layers": 2, "kind": "state space"},
    "rwkv_decay": {"codes": "marginal-decay", "law": None, "loops": 4, "layers": 2, "kind": "state space"},
}


class Selective(nn.Module):
    def __init__(self, d=40, n=4):
        super().__init__()
        self.in_proj, self.x_proj, self.out_proj = nn.Linear(d, 2 * d), nn.Linear(d, d + 2 * n), nn.Linear(d, d)
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, n + 1)).repeat(d, 1))
        self.D, self.n = nn.Parameter(torch.ones(d)), n

    def forward(self, x):
        u, z = self.in_proj(x).chunk(2, -1)
        u = F.silu(u)
        dt, B, C = self.x_proj(u).split([u.shape[-1], self.n, self.n], -1)
        dt, A = F.softplus(dt), -torch.exp(self.A_log)
        h, ys = u.new_zeros(u.shape[0], u.shape[-1], self.n), []
        for t in range(u.shape[1]):
            h = torch.exp(dt[:, t, :, None] * A) * h + (dt[:, t] * u[:, t])[..., None] * B[:, t, None]
            ys.append((h * C[:, t, None]).sum(-1) + self.D * u[:, t])
        return self.out_proj(torch.stack(ys, 1) * F.silu(z))


class Mamba(nn.Module):
    def __init__(self, eps, n_loops=5, d=40):
        super().__init__()
        self.embedding, self.norm, self.mixer, self.norm_f = (
            nn.Embedding(70, d),
            nn.RMSNorm(d),
            Selective(d),
            nn.RMSNorm(d),
        )
        self.n_loops, self.eps = n_loops, eps

    def forward(self, ids):
        residual = self.embedding(ids)
        for _ in range(self.n_loops):
            residual = residual + self.eps * self.mixer(self.norm(residual))
        return F.linear(self.norm_f(residual), self.embedding.weight)


class Block(nn.Module):
    def __init__(self, eps, layer, d=40):
        super().__init__()
        self.ln1, self.ln2, self.eps = nn.LayerNorm(d), nn.LayerNorm(d), eps
        ratio = torch.arange(d) / d
        self.time_mix_k, self.time_mix_r = nn.Parameter(ratio.clone()), nn.Parameter(ratio**0.5)
        self.time_decay = nn.Parameter(-5 + 8 * ratio**0.7)
        self.key, self.value, self.receptance, self.output = (nn.Linear(d, d, bias=False) for _ in range(4))
        self.ffn_key, self.ffn_value = nn.Linear(d, 3 * d, bias=False), nn.Linear(3 * d, d, bias=False)

    def time(self, x):
        last = F.pad(x, (0, 0, 1, -1))
        k = self.key(torch.lerp(last, x, self.time_mix_k))
        r = torch.sigmoid(self.receptance(torch.lerp(last, x, self.time_mix_r)))
        v, w = self.value(x), torch.exp(-torch.exp(self.time_decay))
        num, den, ys = torch.zeros_like(x[:, 0]), torch.full_like(x[:, 0], 1e-6), []
        for t in range(x.shape[1]):
            num, den = w * num + k[:, t].exp() * v[:, t], w * den + k[:, t].exp()
            ys.append(num / den)
        return self.output(r * torch.stack(ys, 1))

    def forward(self, x):
        x = x + self.eps * self.time(self.ln1(x))
        return x + self.eps * self.ffn_value(torch.relu(self.ffn_key(self.ln2(x))) ** 2)


class RWKV(nn.Module):
    def __init__(self, recurrences=4, decay=None, d=40):
        super().__init__()
        eps = 1 / (recurrences * 2**0.5)
        self.emb, self.blocks = nn.Embedding(70, d), nn.ModuleList(Block(eps, i) for i in range(2))
        self.recurrences, self.head = recurrences, nn.Linear(d, 70)
        self.keep = None if decay is None else nn.Parameter(torch.full((d,), decay))

    def forward(self, ids):
        x = self.emb(ids)
        for _ in range(self.recurrences):
            if self.keep is not None:
                x = torch.exp(-torch.exp(self.keep)) * x
            for block in self.blocks:
                x = block(x)
        return self.head(x)


def mamba():
    torch.manual_seed(0)
    return Mamba(1 / 5)


def mamba_bare():
    torch.manual_seed(0)
    return Mamba(1.0)


def rwkv():
    torch.manual_seed(0)
    return RWKV()


def rwkv_decay():
    torch.manual_seed(0)
    return RWKV(decay=-18.0)
