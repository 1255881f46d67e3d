"""Recurrent depth after Huginn, in own code: prelude, core of two layers, coda; a random first state, an adapter on (state, embedding),
N drawn in training, gradients through the last four visits. `make`: a norm after each addition. `bare`: pre-norm without a scale and the
embedding added, not adapted; both grow the stream. `scaled`: `bare` with both remedies.
"""

import torch
import torch.nn.functional as F
from torch import nn

SAMPLED = "truncated-gradient train-eval-differ"
TRUTHS = {
    "make": {"codes": f"norm-bounded {SAMPLED}", "law": "bounded", "loops": 8, "layers": 2, "kind": "recurrent depth"},
    "bare": {
        "codes": f"unscaled-residual unscaled-injection {SAMPLED}",
        "law": "linear",
        "loops": 8,
        "layers": 2,
        "kind": "recurrent depth",
        "hard": "two faults",
        "mended": "scaled",
    },
    "scaled": {"codes": SAMPLED, "law": "bounded", "loops": 8, "layers": 2, "kind": "recurrent depth"},
}


class Layer(nn.Module):
    def __init__(self, d, after, eps):
        super().__init__()
        self.n1, self.n2, self.n3, self.n4 = (nn.RMSNorm(d) for _ in range(4))
        self.Wqkv, self.proj = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False)
        self.fc, self.down = nn.Linear(d, 4 * d, bias=False), nn.Linear(2 * d, d, bias=False)
        self.after, self.eps = after, eps

    def attend(self, x):
        q, k, v = (z.unflatten(-1, (4, -1)).transpose(1, 2) for z in self.Wqkv(x).chunk(3, -1))
        return self.proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))

    def feed(self, x):
        a, b = self.fc(x).chunk(2, -1)
        return self.down(F.silu(a) * b)

    def forward(self, x):
        if self.after:
            x = self.n2(x + self.attend(self.n1(x)))
            return self.n4(x + self.feed(self.n3(x)))
        x = x + self.eps * self.attend(self.n1(x))
        return x + self.eps * self.feed(self.n3(x))


class Depth(nn.Module):
    def __init__(self, after=True, eps=1.0, inject=1.0, mean_recurrence=8, backprop=4, d=48):
        super().__init__()
        self.wte, self.prelude, self.coda = nn.Embedding(96, d), Layer(d, False, 1.0), Layer(d, False, 1.0)
        self.core = nn.ModuleList(Layer(d, after, eps) for _ in range(2))
        self.adapter = nn.Linear(2 * d, d, bias=False) if after else None
        self.mean_recurrence, self.backprop, self.inject = mean_recurrence, backprop, inject
        self.ln_f, self.lm_head = nn.RMSNorm(d), nn.Linear(d, 96, bias=False)

    def iterate(self, s, e):
        s = self.adapter(torch.cat([s, e], -1)) if self.adapter is not None else s + self.inject * e
        for layer in self.core:
            s = layer(s)
        return s

    def steps(self):
        return int(torch.poisson(torch.tensor(3.0))) + 9 if self.training else self.mean_recurrence

    def forward(self, ids):
        e = self.prelude(self.wte(ids))
        n = self.steps()
        s = torch.randn_like(e) * (0.4 if self.adapter is not None else 1.0)
        with torch.no_grad():
            for _ in range(n - self.backprop):
                s = self.iterate(s, e)
        for _ in range(min(n, self.backprop)):
            s = self.iterate(s, e)
        return {"logits": self.lm_head(self.ln_f(self.coda(s)))}


def make():
    torch.manual_seed(0)
    return Depth()


def bare():
    torch.manual_seed(0)
    return Depth(after=False)


def scaled():
    torch.manual_seed(0)
    return Depth(after=False, eps=1 / (8 * 2**0.5), inject=1 / 8)
