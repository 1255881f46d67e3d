"""Reasoners and relaxations: a tiny recursive model with its carry, energies whose gradient is the step, conditioning at every visit, GIN, stages with a loop each."""

import torch
import torch.nn.functional as F
from torch import nn


def rms_norm(x, variance_epsilon=1e-5):
    return x * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + variance_epsilon)


class SwiGLU(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.gate_up_proj, self.down_proj = nn.Linear(d, 4 * d, bias=False), nn.Linear(2 * d, d, bias=False)

    def forward(self, x):
        gate, up = self.gate_up_proj(x).chunk(2, -1)
        return self.down_proj(F.silu(gate) * up)


class ReasoningModule(nn.Module):
    def __init__(self, d, layers=2):
        super().__init__()
        self.token_mix, self.mlp = (
            nn.ModuleList(SwiGLU(16) for _ in range(layers)),
            nn.ModuleList(SwiGLU(d) for _ in range(layers)),
        )

    def forward(self, hidden_states, input_injection):
        hidden_states = hidden_states + input_injection
        for mix, mlp in zip(self.token_mix, self.mlp):
            hidden_states = rms_norm(hidden_states + mix(hidden_states.mT).mT)
            hidden_states = rms_norm(hidden_states + mlp(hidden_states))
        return hidden_states


class TinyRecursive(nn.Module):
    """TRM: one network for z_L and z_H, H_cycles - 1 rounds without gradient and one with it; called with the carry of the last call and a batch."""

    def __init__(self, H_cycles=3, L_cycles=4, d=32):
        super().__init__()
        self.embed_tokens, self.lm_head, self.q_head = (
            nn.Embedding(12, d),
            nn.Linear(d, 12, bias=False),
            nn.Linear(d, 2),
        )
        self.L_level, self.H_cycles, self.L_cycles = ReasoningModule(d), H_cycles, L_cycles
        self.H_init, self.L_init = nn.Buffer(torch.randn(d)), nn.Buffer(torch.randn(d))

    def forward(self, carry, batch):
        emb = self.embed_tokens(batch["inputs"])
        z_H, z_L = carry["z_H"], carry["z_L"]
        with torch.no_grad():
            for _ in range(self.H_cycles - 1):
                for _ in range(self.L_cycles):
                    z_L = self.L_level(z_L, z_H + emb)
                z_H = self.L_level(z_H, z_L)
        for _ in range(self.L_cycles):
            z_L = self.L_level(z_L, z_H + emb)
        z_H = self.L_level(z_H, z_L)
        logits = self.lm_head(z_H)
        loss = F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
        return {"z_H": z_H.detach(), "z_L": z_L.detach()}, loss, {"logits": logits, "q": self.q_head(z_H[:, 0])}


class PlainRecursive(nn.Module):
    """The same shape without its norms and without the cut, both states added to at full size."""

    def __init__(self, n=9, d=32):
        super().__init__()
        self.embed_tokens, self.lm_head, self.n = nn.Embedding(12, d), nn.Linear(d, 12), n
        self.net, self.norm = SwiGLU(d), nn.RMSNorm(d)
        (
            nn.init.xavier_normal_(self.net.gate_up_proj.weight, 1.8),
            nn.init.xavier_normal_(self.net.down_proj.weight, 1.8),
        )

    def forward(self, ids):
        emb = self.embed_tokens(ids)
        y, z = emb, torch.zeros_like(emb)
        for _ in range(self.n):
            z = z + self.net(self.norm(z + y + emb))
            y = y + self.net(self.norm(y + z))
        return self.lm_head(y)


class EnergySteps(nn.Module):
    """An energy-based transformer: the prediction descends the gradient of a learned energy, the graph of which is kept; step size 1/N."""

    def __init__(self, mcmc_num_steps=6, step=1.0, d=24):
        super().__init__()
        self.embed, self.head, self.n = nn.Embedding(40, d), nn.Linear(d, 40), mcmc_num_steps
        self.energy = nn.Sequential(nn.Linear(2 * d, 3 * d), nn.Softplus(), nn.Linear(3 * d, 1))
        for p in self.energy.parameters():
            if p.ndim == 2:
                nn.init.normal_(p, std=0.3)
        self.alpha = nn.Parameter(torch.tensor(step / mcmc_num_steps))

    def forward(self, ids):
        context = self.embed(ids)
        x = context.roll(1, 1)
        with torch.enable_grad():
            for _ in range(self.n):
                x = x if x.requires_grad else x.requires_grad_()
                e = self.energy(torch.cat([context, x], -1)).sum()
                (grad,) = torch.autograd.grad(e, x, create_graph=True)
                x = x - self.alpha * grad
        return self.head(x)


class Conditioned(nn.Module):
    """FiLM on the stream itself at every visit, from a label that does not change; the branch by 1/N."""

    def __init__(self, depth=8, std=0.15, d=32, on_branch=False):
        super().__init__()
        self.inp, self.label, self.depth, self.on_branch = nn.Linear(6, d), nn.Linear(3, 2 * d), depth, on_branch
        nn.init.normal_(self.label.weight, std=std)
        self.norm, self.mlp, self.out = (
            nn.LayerNorm(d),
            nn.Sequential(nn.Linear(d, 2 * d), nn.ReLU(), nn.Linear(2 * d, d)),
            nn.Linear(d, 2),
        )

    def forward(self, x, c):
        h = self.inp(x)
        gamma, beta = self.label(c).chunk(2, -1)
        gamma = gamma.abs()
        for _ in range(self.depth):
            if self.on_branch:
                h = h + self.mlp((1 + gamma) * self.norm(h) + beta) / self.depth
            else:
                h = (1 + gamma) * h + beta / self.depth
                h = h + self.mlp(self.norm(h)) / self.depth
        return self.out(h)


class CrossForgotten(nn.Module):
    """Self-attention and MLP by 1/N; the cross-attention to the encoder's memory was added to the block later, and added as it is."""

    def __init__(self, n_repeat=8, d=32):
        super().__init__()
        self.src, self.tgt, self.head, self.n_repeat = nn.Linear(7, d), nn.Embedding(30, d), nn.Linear(d, 30), n_repeat
        self.sa, self.ca = (nn.MultiheadAttention(d, 4, batch_first=True) for _ in range(2))
        nn.init.orthogonal_(self.ca.out_proj.weight, 2.0)
        self.ff, self.norms = (
            nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d)),
            nn.ModuleList(nn.LayerNorm(d) for _ in range(3)),
        )

    def forward(self, tgt, memory):
        x, memory = self.tgt(tgt), self.src(memory)
        for _ in range(self.n_repeat):
            h = self.norms[0](x)
            x = x + self.sa(h, h, h, need_weights=False)[0] / self.n_repeat
            x = x + self.ca(self.norms[1](x), memory, memory, need_weights=False)[0]
            x = x + self.ff(self.norms[2](x)) / self.n_repeat
        return self.head(x)


class GIN(nn.Module):
    """A graph isomorphism network whose one layer is used again: (1 + eps) h and the sum of the neighbours through an MLP with a batch norm."""

    def __init__(self, num_layers=5, d=24):
        super().__init__()
        self.enc, self.out, self.num_layers, self.eps = (
            nn.Linear(4, d),
            nn.Linear(d, 2),
            num_layers,
            nn.Parameter(torch.zeros(())),
        )
        self.mlp = nn.Sequential(nn.Linear(d, 2 * d), nn.BatchNorm1d(2 * d), nn.ReLU(), nn.Linear(2 * d, d))
        nn.init.kaiming_normal_(self.mlp[0].weight), nn.init.kaiming_normal_(self.mlp[3].weight)

    def forward(self, x, adj):
        h = self.enc(x)
        for _ in range(self.num_layers):
            h = self.mlp((1 + self.eps) * h + adj @ h)
        return self.out(h.mean(0, keepdim=True))


class TwoStages(nn.Module):
    """An encoder looped six times by 1/6, a decoder looped ten times by nothing."""

    def __init__(self, enc_loops=6, dec_loops=10, rate=1.0, gain=1.4, d=32):
        super().__init__()
        self.inp, self.out, self.enc_loops, self.dec_loops, self.rate = (
            nn.Linear(6, d),
            nn.Linear(d, 3),
            enc_loops,
            dec_loops,
            rate,
        )
        self.enc, self.dec = (
            nn.Sequential(nn.LayerNorm(d), nn.Linear(d, 3 * d), nn.GELU(), nn.Linear(3 * d, d)) for _ in range(2)
        )
        for m in (self.enc, self.dec):
            nn.init.xavier_normal_(m[1].weight, gain), nn.init.xavier_normal_(m[3].weight, gain)
        self.bridge = nn.Linear(d, d)

    def forward(self, x):
        h = self.inp(x)
        for _ in range(self.enc_loops):
            h = h + self.enc(h) / self.enc_loops
        y = self.bridge(F.layer_norm(h, h.shape[-1:]))
        for _ in range(self.dec_loops):
            y = y + self.rate * self.dec(y)
        return self.out(y)


def numbers(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(41))


def puzzle():
    return torch.randint(0, 12, (2, 16), generator=torch.Generator().manual_seed(41))


def trm(H_cycles=3):
    z = numbers(2, 16, 32)
    return TinyRecursive(H_cycles), ({"z_H": z, "z_L": z.flip(-1)}, {"inputs": puzzle(), "labels": puzzle().flip(1)})


def plain_recursive(n=9):
    return PlainRecursive(n), puzzle()


def energy_steps(mcmc_num_steps=6):
    return EnergySteps(mcmc_num_steps)


def film(depth=8):
    return Conditioned(depth), (numbers(5, 6), F.one_hot(torch.tensor([0, 1, 2, 0, 1]), 3).float())


def film_inside(depth=8):
    return Conditioned(depth, on_branch=True), (numbers(5, 6), F.one_hot(torch.tensor([0, 1, 2, 0, 1]), 3).float())


def cross_forgotten(n_repeat=8):
    return CrossForgotten(n_repeat), (puzzle(), numbers(2, 9, 7))


def gin(num_layers=5):
    adj = (numbers(14, 14) > 0.6).float()
    return GIN(num_layers), (numbers(14, 4), ((adj + adj.T) > 0).float())


def two_stages():
    return TwoStages(), numbers(7, 6)


def two_stages_scaled():
    return TwoStages(rate=0.1, gain=1.0), numbers(7, 6)


TRUTHS = {
    "trm": dict(
        codes=["norm-bounded", "truncated-gradient"],
        law="bounded",
        level="hard",
        kind="two time scales",
        watch="TinyRecursive.forward:z_L",
        why="post-norm, and two of three rounds without gradient",
    ),
    "plain_recursive": dict(
        codes=["unscaled-residual"],
        law="linear",
        level="hard",
        kind="two time scales",
        watch="PlainRecursive.forward:y",
        place={"unscaled-residual": ["y = y + self.net|net"]},
        why="one network adds to both states at full size",
    ),
    "energy_steps": dict(
        codes=[],
        loops=6,
        level="hard",
        kind="equilibrium",
        watch="EnergySteps.forward:x",
        why="gradients of an energy by 1/N",
    ),
    "film": dict(
        codes=["nested-skip"],
        others=[["expanding-map"], ["growth-unexplained"]],
        law="exponential",
        loops=8,
        level="hard",
        kind="conditioning",
        watch="Conditioned.forward:h",
        place={"nested-skip": ["h = (1 + gamma) * h|label"]},
        why="a factor above 1 on the stream at every visit. Which of the names is open, silence is not",
    ),
    "film_inside": dict(
        codes=[],
        loops=8,
        layers=1,
        level="medium",
        kind="conditioning",
        watch="Conditioned.forward:h",
        why="the same on the input of the branch; 1/N",
    ),
    "cross_forgotten": dict(
        codes=["unscaled-residual"],
        other=["unscaled-injection"],
        law="linear",
        loops=8,
        level="medium",
        kind="one branch of two",
        watch="CrossForgotten.forward:x",
        place={"unscaled-residual": ["x = x + self.ca|ca"], "unscaled-injection": ["x = x + self.ca|ca"]},
        why="what the memory gives is nearly the same at every visit, and is added as it is",
    ),
    "gin": dict(
        codes=["expanding-map", "train-eval-differ"],
        law="exponential",
        loops=5,
        level="hard",
        kind="graph",
        watch="GIN.forward:h",
        why="sums over neighbours and no norm in evaluation at the first statistics; the batch norm bounds it in training",
    ),
    "two_stages": dict(
        codes=["unscaled-residual"],
        law="linear",
        level="hard",
        kind="two loops",
        watch="TwoStages.forward:y",
        place={"unscaled-residual": ["y = y + self.rate * self.dec|dec"]},
        why="the second loop takes full updates, the first does not",
    ),
    "two_stages_scaled": dict(
        codes=[],
        level="medium",
        kind="two loops",
        watch="TwoStages.forward:y",
        why="each loop by its own 1/N",
    ),
}
