"""Universal Transformer with adaptive computation time, and PonderNet with a GRU cell: own code after the two papers.

`make` and `ponder` end their loop before the most that they allow; `full` and `never` have the same code with a halting unit that stays shut, and
so look like the former and halt nothing.
"""

import torch
from torch import nn

TRUTHS = {
    "make": {"codes": "norm-bounded halts-early", "law": "bounded", "loops": 3, "layers": 1, "kind": "halting"},
    "full": {
        "codes": "norm-bounded",
        "law": "bounded",
        "loops": 8,
        "layers": 1,
        "kind": "halting",
        "hard": "look-alike",
    },
    "ponder": {"codes": "norm-bounded halts-early train-eval-differ", "law": "bounded", "loops": 4, "kind": "halting"},
    "never": {"codes": "norm-bounded", "law": "bounded", "loops": 9, "kind": "halting", "hard": "look-alike"},
}


class ACT(nn.Module):
    def __init__(self, bias, hops=8, d=48):
        super().__init__()
        self.wte, self.max_hops = nn.Embedding(64, d), hops
        self.attn, self.ln1, self.ln2 = nn.MultiheadAttention(d, 4, batch_first=True), nn.LayerNorm(d), nn.LayerNorm(d)
        self.ff = nn.Sequential(nn.Linear(d, 4 * d), nn.ReLU(), nn.Linear(4 * d, d))
        self.ponder, self.head = nn.Linear(d, 1), nn.Linear(d, 64)
        nn.init.zeros_(self.ponder.weight)
        nn.init.constant_(self.ponder.bias, bias)
        self.register_buffer("when", torch.sin(torch.arange(hops)[:, None] * torch.arange(1.0, d + 1)))

    def transition(self, state):
        state = self.ln1(state + self.attn(state, state, state, need_weights=False)[0])
        return self.ln2(state + self.ff(state))

    def forward(self, ids):
        state = self.wte(ids)
        halted = torch.zeros(ids.shape)
        mixed = torch.zeros_like(state)
        for hop in range(self.max_hops):
            p = torch.sigmoid(self.ponder(state + self.when[hop])).squeeze(-1)
            running = (halted < 0.99).float()
            ends = ((halted + p * running) >= 0.99).float() * running
            weight = p * running * (1 - ends) + (1 - halted) * ends
            halted = halted + weight
            state = self.transition(state + self.when[hop])
            mixed = mixed + weight[..., None] * state
            if bool((halted >= 0.99).all()):
                break
        return self.head(mixed)


class Ponder(nn.Module):
    """Every step in training; in evaluation until the answer has probably halted."""

    def __init__(self, rate, max_steps=9):
        super().__init__()
        self.cell, self.lift = nn.GRUCell(32, 32), nn.Linear(10, 32)
        self.halt, self.answer, self.max_steps, self.rate = nn.Linear(32, 1), nn.Linear(32, 3), max_steps, rate

    def forward(self, x):
        u = self.lift(x)
        h = torch.zeros_like(u)
        left, answers = torch.ones(x.shape[0], 1), []
        for _ in range(self.max_steps):
            h = self.cell(u, h)
            rate = self.rate + 0 * self.halt(h)
            answers.append(left * rate * self.answer(h))
            left = left * (1 - rate)
            if not self.training and float(left.detach().max()) < 0.1:
                break
        return torch.stack(answers).sum(0)


def make():
    torch.manual_seed(0)
    return ACT(bias=-0.4), torch.arange(32).view(2, 16)


def full():
    torch.manual_seed(0)
    return ACT(bias=-5.0), torch.arange(32).view(2, 16)


def ponder():
    torch.manual_seed(0)
    return Ponder(rate=0.5), torch.randn(4, 10)


def never():
    torch.manual_seed(0)
    return Ponder(rate=0.1), torch.randn(4, 10)
