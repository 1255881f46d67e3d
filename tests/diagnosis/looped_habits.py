"""Looped models as people write them, III: changes in place, buffers, solvers, raw weights, adapters, odd configs."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from looped_styles import GMLP, HB, RMS, Att


class InplaceAdd(nn.Module):
    def __init__(self, n=8, scale=1.0):
        super().__init__()
        self.e = nn.Embedding(64, 64)
        self.n = RMS(64)
        self.m = GMLP(64)
        self.a = Att(64)
        self.n2 = RMS(64)
        self.n_loop = n
        self.scale = scale
        self.o = nn.Linear(64, 64)

    def forward(self, t):
        x = self.e(t).clone()
        for _ in range(self.n_loop):
            x.add_(self.a(self.n(x)), alpha=self.scale)
            x.add_(self.m(self.n2(x)) * self.scale)
        return self.o(x)


def inplace_none():
    return InplaceAdd()


def inplace_ok():
    return InplaceAdd(scale=1 / 8)


class SetItem(nn.Module):
    def __init__(self, n=8, scale=1.0):
        super().__init__()
        self.inp = nn.Linear(12, 32)
        self.f = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))
        self.n = n
        self.scale = scale

    def forward(self, x):
        h = self.inp(x)
        hist = torch.zeros(self.n + 1, *h.shape)
        hist[0] = h
        for i in range(self.n):
            hist[i + 1] = hist[i] + self.scale * self.f(hist[i])
        return hist


def setitem_none():
    return SetItem()


def setitem_ok():
    return SetItem(scale=1 / 8)


class EncDec(nn.Module):
    """seq2seq: two inputs, looped decoder with cross attention"""

    def __init__(self):
        super().__init__()
        self.src = nn.Embedding(64, 32)
        self.tgt = nn.Embedding(64, 32)
        self.enc = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True)
        self.dec = nn.TransformerDecoderLayer(32, 2, 64, batch_first=True, norm_first=True)
        self.o = nn.Linear(32, 64)
        self.n_iters = 6

    def forward(self, src, tgt):
        m = self.enc(self.src(src))
        x = self.tgt(tgt)
        for _ in range(self.n_iters):
            x = self.dec(x, m)
        return self.o(x)


def encdec():
    return EncDec()


class Diff(nn.Module):
    """ODE-style euler"""

    def __init__(self, steps=10):
        super().__init__()
        self.f = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 2))
        self.steps = steps

    def forward(self, x):
        dt = 1 / self.steps
        for _ in range(self.steps):
            x = x + dt * self.f(x)
        return x


def ode():
    return Diff()


class RK4(nn.Module):
    def __init__(self, steps=6):
        super().__init__()
        self.f = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 4))
        self.steps = steps

    def forward(self, x):
        dt = 1 / self.steps
        for _ in range(self.steps):
            k1 = self.f(x)
            k2 = self.f(x + dt / 2 * k1)
            k3 = self.f(x + dt / 2 * k2)
            k4 = self.f(x + dt * k3)
            x = x + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return x


def rk4():
    return RK4()


class MHA(nn.Module):
    def __init__(self, n=6, scale=1.0):
        super().__init__()
        self.e = nn.Embedding(100, 64)
        self.att = nn.MultiheadAttention(64, 4, batch_first=True)
        self.ff = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Dropout(0.1), nn.Linear(256, 64))
        self.l1 = nn.LayerNorm(64)
        self.l2 = nn.LayerNorm(64)
        self.n = n
        self.scale = scale
        self.h = nn.Linear(64, 100)

    def forward(self, t):
        x = self.e(t)
        for _ in range(self.n):
            h = self.l1(x)
            x = x + self.scale * self.att(h, h, h, need_weights=False)[0]
            x = x + self.scale * self.ff(self.l2(x))
        return self.h(x)


def mha_none():
    return MHA()


def mha_ok():
    return MHA(scale=1 / 6)


def mha_sqrt():
    return MHA(n=16, scale=1 / 4)


class SkipEnd(nn.Module):
    """x0 added at the end only; and looped core around a residual"""

    def __init__(self, n=8):
        super().__init__()
        self.e = nn.Embedding(64, 64)
        self.b = HB(64, 1 / 8)
        self.n = n
        self.o = nn.Linear(64, 64)

    def forward(self, t):
        x0 = self.e(t)
        x = x0
        for _ in range(self.n):
            x = self.b(x)
        return self.o(x + x0)


def skip_end_ok():
    return SkipEnd()


class LoopNested2(nn.Module):
    """x = x + scale*block(x), block has own skip, scale=1/N : gain e per pass: bounded"""

    def __init__(self, n=8, sc=None):
        super().__init__()
        self.e = nn.Embedding(64, 64)
        self.b = HB(64, 1.0)
        self.n = n
        self.sc = sc or 1 / n

    def forward(self, t):
        x = self.e(t)
        for _ in range(self.n):
            x = x + self.sc * self.b(x)
        return x


def nested_scaled():
    return LoopNested2()


def nested_half():
    return LoopNested2(sc=0.5)


class AdaptiveHalt(nn.Module):
    """ACT with break when halted"""

    def __init__(self):
        super().__init__()
        self.e = nn.Embedding(64, 64)
        self.b = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
        self.halt = nn.Linear(64, 1)
        self.max = 8
        self.o = nn.Linear(64, 64)

    def forward(self, t):
        x = self.e(t)
        p = torch.zeros(t.shape)
        acc = torch.zeros_like(x)
        for _i in range(self.max):
            pr = torch.sigmoid(self.halt(x)).squeeze(-1) * 0.3
            x = self.b(x)
            acc = acc + pr.unsqueeze(-1) * x
            p = p + pr
            if bool((p > 0.99).all()):
                break
        return self.o(acc)


def act():
    return AdaptiveHalt()


class Norm1(nn.Module):
    """nGPT-like normalized residual"""

    def __init__(self, n=8):
        super().__init__()
        self.e = nn.Embedding(64, 64)
        self.m = GMLP(64)
        self.a = Att(64)
        self.n = n
        self.al = nn.Parameter(torch.full((64,), 0.05))

    def forward(self, t):
        x = F.normalize(self.e(t), dim=-1)
        for _ in range(self.n):
            x = F.normalize(x + self.al * (F.normalize(self.a(x), dim=-1) - x), dim=-1)
            x = F.normalize(x + self.al * (F.normalize(self.m(x), dim=-1) - x), dim=-1)
        return x


def ngpt():
    return Norm1()


class Branches(nn.Module):
    """parallel attention+mlp (GPT-J)"""

    def __init__(self, n=8, scale=1.0):
        super().__init__()
        self.e = nn.Embedding(64, 64)
        self.ln = nn.LayerNorm(64)
        self.a = Att(64)
        self.m = GMLP(64)
        self.n = n
        self.scale = scale
        self.o = nn.Linear(64, 64)

    def forward(self, t):
        x = self.e(t)
        for _ in range(self.n):
            h = self.ln(x)
            x = x + self.scale * (self.a(h) + self.m(h))
        return self.o(x)


def parallel_none():
    return Branches()


def parallel_ok():
    return Branches(scale=1 / 8)


class RawW(nn.Module):
    """einsum with raw parameter dict"""

    def __init__(self, n=6, scale=1.0):
        super().__init__()
        self.p = nn.ParameterDict(
            {"w1": nn.Parameter(torch.randn(32, 64) / 6), "w2": nn.Parameter(torch.randn(64, 32) / 8)}
        )
        self.n = n
        self.scale = scale

    def forward(self, x):
        for _ in range(self.n):
            h = torch.einsum("btd,df->btf", x / x.norm(dim=-1, keepdim=True) * 32**0.5, self.p["w1"]).relu()
            x = x + self.scale * torch.einsum("btf,fd->btd", h, self.p["w2"])
        return x


def einsum_none():
    return RawW()


def einsum_ok():
    return RawW(scale=1 / 6)


class LoRA(nn.Module):
    """relaxed recursive: shared base plus per-visit LoRA"""

    def __init__(self, n=6, scale=1.0):
        super().__init__()
        self.e = nn.Embedding(64, 64)
        self.ln = nn.LayerNorm(64)
        self.up = nn.Linear(64, 256)
        self.dn = nn.Linear(256, 64)
        self.A = nn.ParameterList([nn.Parameter(torch.randn(4, 64) / 8) for _ in range(n)])
        self.B = nn.ParameterList([nn.Parameter(torch.zeros(256, 4)) for _ in range(n)])
        self.n = n
        self.scale = scale

    def forward(self, t):
        x = self.e(t)
        for i in range(self.n):
            h = self.ln(x)
            u = self.up(h) + h @ self.A[i].T @ self.B[i].T
            x = x + self.scale * self.dn(F.gelu(u))
        return x


def lora_none():
    return LoRA()


def lora_ok():
    return LoRA(scale=1 / 6)


class LearnedDecay(nn.Module):
    """sigmoid decay saturated"""

    def __init__(self, logit=30.0, n=10):
        super().__init__()
        self.e = nn.Embedding(64, 64)
        self.g = nn.Parameter(torch.full((64,), logit))
        self.inp = nn.Linear(64, 64)
        self.n = n
        self.core = GMLP(64)
        self.ln = RMS(64)

    def forward(self, t):
        u = self.inp(self.e(t))
        h = u
        for _ in range(self.n):
            a = torch.sigmoid(self.g)
            h = a * h + (1 - a) * u
            h = h + self.core(self.ln(h)) / self.n
        return h


def sig_decay_one():
    return LearnedDecay()


def sig_decay_ok():
    return LearnedDecay(1.0)


class Sampled(nn.Module):
    """loops sampled in training, fixed in eval, with truncated BPTT"""

    def __init__(self, scale_follow=True):
        super().__init__()
        self.e = nn.Embedding(64, 64)
        self.b = HB(64, 1.0)
        self.mean = 8
        self.follow = scale_follow
        self.o = nn.Linear(64, 64)

    def forward(self, t, num_recurrences=None):
        import random

        n = num_recurrences or (random.randint(4, 12) if self.training else self.mean)
        x = self.e(t)
        for i in range(n):
            if i == n - 4:
                x = x.detach()
            x = x + (1 / n if self.follow else n**-0.5) * self.b.f(self.b.n(x))
        return self.o(x)


def sampled_ok():
    return Sampled().train()


def sampled_sqrt():
    return Sampled(False)


class ListIn(nn.Module):
    def __init__(self):
        super().__init__()
        self.b = HB(32, 1.0)
        self.inp = nn.Linear(7, 32)

    def forward(self, batch):
        x = self.inp(batch["x"])
        for _ in range(5):
            x = self.b(x)
        return x


def dict_in():
    return ListIn()


class Unusual(nn.Module):
    def __init__(self, n=6):
        super().__init__()
        self.cfg = {"model": {"n_unroll": n}}
        self.e = nn.Embedding(64, 64)
        self.b = HB(64, 1.0)

    def forward(self, t):
        x = self.e(t)
        for _ in range(self.cfg["model"]["n_unroll"]):
            x = self.b(x)
        return x


def nested_cfg():
    return Unusual()


class TwoLoops(nn.Module):
    """two looped stages one after the other, each its own weights: encoder loop ok, decoder loop unscaled"""

    def __init__(self):
        super().__init__()
        self.e = nn.Embedding(64, 64)
        self.b1 = HB(64, 1 / 6)
        self.b2 = HB(64, 1.0)
        self.n1 = 6
        self.n2 = 6

    def forward(self, t):
        x = self.e(t)
        for _ in range(self.n1):
            x = self.b1(x)
        for _ in range(self.n2):
            x = self.b2(x)
        return x


def two_loops():
    return TwoLoops()


class Fp16(nn.Module):
    def __init__(self):
        super().__init__()
        self.e = nn.Embedding(64, 64)
        self.b = HB(64, 1.0)
        self.n = 6

    def forward(self, t):
        x = self.e(t)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for _ in range(self.n):
                x = self.b(x)
        return x.float()


def autocast_none():
    return Fp16()


class OnlyMlpScaled(nn.Module):
    def __init__(self, n=8):
        super().__init__()
        self.e = nn.Embedding(64, 64)
        self.n = n
        self.l1 = RMS(64)
        self.l2 = RMS(64)
        self.a = Att(64)
        self.m = GMLP(64)
        self.o = nn.Linear(64, 64)

    def forward(self, t):
        x = self.e(t)
        for _ in range(self.n):
            x = x + self.a(self.l1(x))
            x = x + self.m(self.l2(x)) / self.n
        return self.o(x)


def only_mlp_scaled():
    return OnlyMlpScaled()


class Overflow(nn.Module):
    def __init__(self, n=40):
        super().__init__()
        self.f = nn.Linear(16, 16, bias=False)
        self.n = n
        nn.init.normal_(self.f.weight, std=10)

    def forward(self, x):
        for _ in range(self.n):
            x = x + self.f(x)
        return x


def overflow():
    return Overflow()


class NoNorm(nn.Module):
    def __init__(self, n=8, sc=1.0):
        super().__init__()
        self.f = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))
        self.n = n
        self.sc = sc

    def forward(self, x):
        for _ in range(self.n):
            x = x + self.sc * self.f(x)
        return x


def nonorm_none():
    m = NoNorm()
    [nn.init.kaiming_normal_(p) for p in m.parameters() if p.ndim == 2]
    return m


def nonorm_ok():
    m = NoNorm(sc=1 / 8)
    [nn.init.kaiming_normal_(p) for p in m.parameters() if p.ndim == 2]
    return m
