"""Mixtures of experts and of depths in a loop, own code. `experts`: one expert for each token by mask, a router private to each visit, attention
and experts by 1/N. `half`: the same with the experts left at 1, attention at 1/N. `depths`: half of the tokens are chosen and their update is
scattered back, without a scale; `depths_right`: by 1/N.
"""

import torch
from torch import nn

TRUTHS = {
    "experts": {"codes": "", "law": "bounded", "loops": 6, "layers": 1, "kind": "routing"},
    # The law was first stated as linear; routers that are private to a visit turn the updates, and the exponent is 0.6.
    "half": {
        "codes": "unscaled-residual",
        "law": None,
        "loops": 6,
        "layers": 1,
        "kind": "routing",
        "mended": "experts",
    },
    "depths": {
        "codes": "unscaled-residual",
        "law": None,
        "loops": 8,
        "kind": "routing",
        "hard": "unusual code",
        "mended": "depths_right",
    },
    "depths_right": {"codes": "", "law": "bounded", "loops": 8, "kind": "routing", "hard": "unusual code"},
}


class Switch(nn.Module):
    def __init__(self, d, n=3):
        super().__init__()
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d)) for _ in range(n)
        )

    def forward(self, x, router):
        flat = x.reshape(-1, x.shape[-1])
        gate, chosen = router(flat).softmax(-1).max(-1)
        out = torch.zeros_like(flat)
        for i, expert in enumerate(self.experts):
            mine = chosen == i
            if mine.any():
                out[mine] = (2 * gate[mine])[:, None] * expert(flat[mine])
        return out.view_as(x)


class Experts(nn.Module):
    def __init__(self, eps_attn, eps_moe, visits=6, d=48):
        super().__init__()
        self.embed, self.visits, self.scales = nn.Embedding(64, d), visits, (eps_attn, eps_moe)
        self.norm1, self.norm2, self.final = nn.RMSNorm(d), nn.RMSNorm(d), nn.RMSNorm(d)
        self.attention, self.moe = nn.MultiheadAttention(d, 4, batch_first=True), Switch(d)
        self.routers = nn.ModuleList(nn.Linear(d, 3) for _ in range(visits))
        self.out = nn.Linear(d, 64)

    def forward(self, ids):
        x = self.embed(ids)
        for i in range(self.visits):
            y = self.norm1(x)
            x = x + self.scales[0] * self.attention(y, y, y, need_weights=False)[0]
            x = x + self.scales[1] * self.moe(self.norm2(x), self.routers[i])
        return self.out(self.final(x))


class Depths(nn.Module):
    def __init__(self, eps, n_recur=8, d=48):
        super().__init__()
        self.embed, self.n_recur, self.eps = nn.Embedding(64, d), n_recur, eps
        self.norm, self.router, self.out = nn.LayerNorm(d), nn.Linear(d, 1), nn.Linear(d, 64)
        self.block = nn.Sequential(nn.Linear(d, 3 * d), nn.GELU(), nn.Linear(3 * d, d))

    def forward(self, ids):
        x = self.embed(ids)
        for _ in range(self.n_recur):
            score = self.router(self.norm(x)).squeeze(-1)
            weight, where = score.topk(ids.shape[1] // 2, dim=-1)
            index = where[..., None].expand(-1, -1, x.shape[-1])
            update = self.block(self.norm(x.gather(1, index))) * torch.sigmoid(weight)[..., None]
            x = x.scatter_add(1, index, self.eps * update)
        return self.out(x)


def experts():
    torch.manual_seed(0)
    return Experts(1 / 6, 1 / 6)


def half():
    torch.manual_seed(0)
    return Experts(1 / 6, 1.0)


def depths():
    torch.manual_seed(0)
    return Depths(1.0)


def depths_right():
    torch.manual_seed(0)
    return Depths(1 / 8)
