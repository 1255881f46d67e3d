"""Looped models as people write them, II: outputs, gates, Post-LN, convolutions, cells, experts, wrappers, caches."""

import dataclasses
import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from looped_styles import GMLP, HB, RMS, Att, Block, GPTConfig
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint


@dataclasses.dataclass
class Out:
    hidden: torch.Tensor
    loss: object = None


class DC(nn.Module):
    def __init__(self, n=6, scale=1.0):
        super().__init__()
        self.e = nn.Embedding(64, 64)
        self.b = HB(64, scale)
        self.num_loops = n

    def forward(self, t):
        x = self.e(t)
        for _ in range(self.num_loops):
            x = self.b(x)
        return Out(x)


def dataclass_out():
    return DC()


def dataclass_out_ok():
    return DC(scale=1 / 6)


class Zero(nn.Module):
    def __init__(self, n=6, scale=1.0, zero=True):
        super().__init__()
        self.e = nn.Embedding(64, 64)
        self.n = nn.LayerNorm(64)
        self.up = nn.Linear(64, 256)
        self.down = nn.Linear(256, 64)
        self.T = n
        self.scale = scale
        self.head = nn.Linear(64, 64)
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def forward(self, t):
        x = self.e(t)
        for _ in range(self.T):
            x = x + self.scale * self.down(F.gelu(self.up(self.n(x))))
        return self.head(x)


def zero_none():
    return Zero()


def zero_ok():
    return Zero(scale=1 / 6)


class Gate(nn.Module):
    def __init__(self, n=8, init=0.0, kind="rezero"):
        super().__init__()
        self.e = nn.Embedding(64, 64)
        self.n = nn.LayerNorm(64)
        self.a = Att(64)
        self.m = GMLP(64)
        self.n2 = nn.LayerNorm(64)
        self.g = nn.Parameter(torch.full((2, 64) if kind == "ls" else (2,), init))
        self.K = n
        self.head = nn.Linear(64, 64)

    def forward(self, t):
        x = self.e(t)
        for _ in range(self.K):
            x = x + self.g[0] * self.a(self.n(x))
            x = x + self.g[1] * self.m(self.n2(x))
        return self.head(x)


def rezero():
    return Gate()


def layerscale():
    return Gate(init=1e-4, kind="ls")


def layerscale_n():
    return Gate(init=1 / 8, kind="ls")


class PerVisit(nn.Module):
    def __init__(self, n=6, init=None):
        super().__init__()
        self.e = nn.Embedding(64, 64)
        self.n = nn.LayerNorm(64)
        self.m = GMLP(64)
        self.s = nn.Parameter(torch.full((n,), init if init is not None else 1 / n))
        self.n_iter = n

    def forward(self, t):
        x = self.e(t)
        for i in range(self.n_iter):
            x = torch.addcmul(x, self.s[i], self.m(self.n(x)))
        return x


def pervisit_gates():
    return PerVisit()


def addcmul_none():
    return PerVisit(init=1.0)


class Post(nn.Module):
    def __init__(self, kind="plain", n=6, L=2):
        super().__init__()
        self.e = nn.Embedding(64, 64)
        E = n * L
        self.alpha = {"plain": 1.0, "deepnorm": (2 * E) ** 0.25, "deeploop": (2 * E) ** 0.5}[kind]
        beta = {"plain": 1.0, "deepnorm": (8 * E) ** -0.25, "deeploop": (8 * E) ** -0.5}[kind]
        self.l = nn.ModuleList(
            nn.ModuleDict(dict(a=Att(64), m=GMLP(64), n1=nn.LayerNorm(64), n2=nn.LayerNorm(64))) for _ in range(L)
        )
        self.repeats = n
        with torch.no_grad():
            for layer in self.l:
                layer["a"].proj.weight *= beta
                layer["m"].proj.weight *= beta
        self.o = nn.Linear(64, 64)

    def forward(self, t):
        x = self.e(t)
        for _ in range(self.repeats):
            for layer in self.l:
                x = layer["n1"](self.alpha * x + layer["a"](x))
                x = layer["n2"](self.alpha * x + layer["m"](x))
        return self.o(x)


def post_plain():
    return Post()


def post_deepnorm():
    return Post("deepnorm")


def post_deeploop():
    return Post("deeploop")


class RecConv(nn.Module):
    def __init__(self, n=6, scale=1.0, bn=False):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.c1 = nn.Conv2d(16, 16, 3, padding=1)
        self.c2 = nn.Conv2d(16, 16, 3, padding=1)
        self.n = nn.BatchNorm2d(16) if bn else nn.GroupNorm(4, 16)
        self.iters = n
        self.scale = scale
        self.fc = nn.Linear(16, 10)

    def forward(self, img):
        x = F.relu(self.stem(img))
        for _ in range(self.iters):
            x = x + self.scale * self.c2(F.relu(self.c1(F.relu(self.n(x)))))
        return self.fc(x.mean((2, 3)))


def conv_none():
    return RecConv(n=8)


def conv_ok():
    return RecConv(n=8, scale=1 / 8)


class ConvPostRelu(nn.Module):
    def __init__(self, n=5):
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.c1 = nn.Conv2d(16, 16, 3, padding=1)
        self.b1 = nn.BatchNorm2d(16)
        self.c2 = nn.Conv2d(16, 16, 3, padding=1)
        self.b2 = nn.BatchNorm2d(16)
        self.n = n
        self.fc = nn.Linear(16, 10)

    def forward(self, img):
        x = self.stem(img)
        for _ in range(self.n):
            x = F.relu(x + self.b2(self.c2(F.relu(self.b1(self.c1(x))))))
        return self.fc(x.mean((2, 3)))


def resnet_postrelu():
    return ConvPostRelu()


class Rnn(nn.Module):
    def __init__(self, T=10):
        super().__init__()
        self.e = nn.Embedding(64, 32)
        self.cell = nn.GRUCell(32, 48)
        self.o = nn.Linear(48, 64)

    def forward(self, t):
        x = self.e(t)
        h = torch.zeros(t.shape[0], 48)
        outs = []
        for i in range(t.shape[1]):
            h = self.cell(x[:, i], h)
            outs.append(self.o(h))
        return torch.stack(outs, 1)


def gru():
    return Rnn()


class SSM(nn.Module):
    def __init__(self):
        super().__init__()
        self.A = nn.Parameter(-torch.rand(16) - 0.5)
        self.B = nn.Linear(8, 16)
        self.C = nn.Linear(16, 4)

    def forward(self, u):
        h = torch.zeros(u.shape[0], 16)
        ys = []
        for t in range(u.shape[1]):
            h = torch.exp(self.A) * h + self.B(u[:, t])
            ys.append(self.C(h))
        return torch.stack(ys, 1)


def ssm():
    return SSM()


class MoE(nn.Module):
    def __init__(self, d=64, E=4, k=2):
        super().__init__()
        self.r = nn.Linear(d, E)
        self.ex = nn.ModuleList(nn.Sequential(nn.Linear(d, 128), nn.GELU(), nn.Linear(128, d)) for _ in range(E))
        self.k = k

    def forward(self, x):
        B, T, D = x.shape
        f = x.reshape(-1, D)
        w, i = self.r(f).softmax(-1).topk(self.k, -1)
        w = w / w.sum(-1, keepdim=True)
        out = torch.zeros_like(f)
        for j, e in enumerate(self.ex):
            rows, which = (i == j).nonzero(as_tuple=True)
            if rows.numel():
                out.index_add_(0, rows, w[rows, which, None] * e(f[rows]))
        return out.view(B, T, D)


class MoELoop(nn.Module):
    def __init__(self, n=6, scale=1.0):
        super().__init__()
        self.e = nn.Embedding(64, 64)
        self.a = Att(64)
        self.moe = MoE()
        self.n1 = RMS(64)
        self.n2 = RMS(64)
        self.depth = n
        self.scale = scale
        self.o = nn.Linear(64, 64)

    def forward(self, t):
        x = self.e(t)
        for _ in range(self.depth):
            x = x + self.scale * self.a(self.n1(x))
            x = x + self.scale * self.moe(self.n2(x))
        return self.o(x)


def moe_none():
    return MoELoop()


def moe_ok():
    return MoELoop(scale=1 / 6)


class FC(nn.Module):
    def __init__(self, n=6, scale=1.0):
        super().__init__()
        self.e = nn.Embedding(64, 64)
        self.b = HB(64, scale)
        self.n = n

    def forward(self, t):
        x = self.e(t)
        p = dict(self.b.named_parameters())
        for _ in range(self.n):
            x = functional_call(self.b, p, (x,))
        return x


def functional_none():
    return FC()


class Ckpt(nn.Module):
    def __init__(self, n=6, scale=1.0, re=False):
        super().__init__()
        self.e = nn.Embedding(64, 64)
        self.b = HB(64, scale)
        self.n = n
        self.re = re
        self.o = nn.Linear(64, 64)

    def forward(self, t):
        x = self.e(t)
        for _ in range(self.n):
            x = checkpoint(self.b, x, use_reentrant=self.re)
        return self.o(x)


def ckpt_none():
    return Ckpt()


def ckpt_re_none():
    return Ckpt(re=True)


def ckpt_ok():
    return Ckpt(scale=1 / 6)


class Bf(nn.Module):
    def __init__(self, n=8, scale=1.0):
        super().__init__()
        self.e = nn.Embedding(64, 64)
        self.b = HB(64, scale)
        self.n = n

    def forward(self, t):
        x = self.e(t)
        for _ in range(self.n):
            x = self.b(x)
        return x


def bf16_none():
    return Bf().bfloat16()


def bf16_absorbed():
    m = Bf(64, 1 / 64)
    nn.init.normal_(m.e.weight, std=4.0)
    return m.bfloat16()


class Cache(nn.Module):
    def __init__(self, n=5, scale=1.0):
        super().__init__()
        self.tok = nn.Embedding(64, 64)
        self.l = nn.ModuleList([Blk2(scale) for _ in range(2)])
        self.num_recur = n
        self.head = nn.Linear(64, 64)

    def forward(
        self, input_ids=None, attention_mask=None, past_key_values=None, use_cache=True, labels=None, return_dict=True
    ):
        x = self.tok(input_ids)
        cache = []
        for _r in range(self.num_recur):
            for layer in self.l:
                x, kv = layer(x)
                cache.append(kv)
        logits = self.head(x)
        return {"loss": None, "logits": logits, "past_key_values": tuple(cache) if use_cache else None}


class Blk2(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.q = nn.Linear(64, 64)
        self.k = nn.Linear(64, 64)
        self.v = nn.Linear(64, 64)
        self.o = nn.Linear(64, 64)
        self.n = RMS(64)
        self.n2 = RMS(64)
        self.m = GMLP(64)
        self.scale = scale

    def forward(self, x):
        h = self.n(x)
        q, k, v = (f(h).unflatten(-1, (4, 16)).transpose(1, 2) for f in (self.q, self.k, self.v))
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.scale * self.o(a)
        x = x + self.scale * self.m(self.n2(x))
        return x, (k, v)


def cache_none():
    return Cache()


def cache_ok():
    return Cache(scale=1 / (5 * math.sqrt(2)))


def frozen_none():
    m = Cache()
    m.requires_grad_(False)
    return m


def compiled_none():
    return torch.compile(DC())


def compiled_inner():
    m = DC()
    m.b = torch.compile(m.b)
    return m


class Wrapper(nn.Module):
    def __init__(self, b, i):
        super().__init__()
        self.inner_weight = b
        self.idx = i

    def forward(self, x):
        return self.inner_weight(x)


class Wraps(nn.Module):
    def __init__(self, n=6, scale=1.0):
        super().__init__()
        self.e = nn.Embedding(64, 64)
        b = HB(64, scale)
        self.w = nn.ModuleList()
        for i in range(n):
            c = HB(64, scale)
            c.f[0].weight = b.f[0].weight
            c.f[2].weight = b.f[2].weight
            c.f[0].bias = b.f[0].bias
            c.f[2].bias = b.f[2].bias  # own norms
            self.w.append(Wrapper(c, i))

    def forward(self, t):
        x = self.e(t)
        for w in self.w:
            x = w(x)
        return x


def wrappers_none():
    return Wraps()


def wrappers_ok():
    return Wraps(scale=1 / 6)


class NoneOut(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(32, 32)
        self.hist = []

    def forward(self, x):
        for _ in range(4):
            x = x + torch.tanh(self.lin(x))
        self.hist = [float(x.norm())]


def none_out():
    return NoneOut()


class Prev(nn.Module):
    """LoopFormer-like time-conditioned: AdaLN"""

    def __init__(self, n=8):
        super().__init__()
        self.e = nn.Embedding(64, 64)
        self.ada = nn.Linear(64, 192)
        self.a = Att(64)
        self.m = GMLP(64)
        self.n = n
        self.t = nn.Linear(1, 64)

    def forward(self, t):
        x = self.e(t)
        for i in range(self.n):
            c = self.t(torch.tensor([[i / self.n]]))
            sh, sc, _g = self.ada(F.silu(c)).chunk(3, -1)
            h = F.layer_norm(x, (64,)) * (1 + sc) + sh
            x = x + self.a(h)
            x = x + self.m(F.layer_norm(x, (64,)))
        return x


def loopformer():
    return Prev()


def albert_groups():
    from transformers import AlbertConfig, AlbertModel

    return AlbertModel(
        AlbertConfig(
            hidden_size=32,
            embedding_size=16,
            num_hidden_layers=8,
            num_hidden_groups=2,
            num_attention_heads=2,
            intermediate_size=64,
            vocab_size=61,
        )
    )


class Mixed(nn.Module):
    """prelude, core, coda with different classes, token drop routing"""

    def __init__(self, scale=1.0):
        super().__init__()
        c = GPTConfig()
        self.e = nn.Embedding(97, 64)
        self.pre = nn.ModuleList([Block(c)])
        self.core = nn.ModuleList([Block(c, scale), Block(c, scale)])
        self.coda = nn.ModuleList([Block(c)])
        self.r = 6
        self.h = nn.Linear(64, 97)

    def forward(self, idx):
        x = self.e(idx)
        for b in self.pre:
            x = b(x)
        for _ in range(self.r):
            for b in self.core:
                x = b(x)
        for b in self.coda:
            x = b(x)
        return self.h(x)


def prelude_coda_none():
    return Mixed()


def prelude_coda_ok():
    return Mixed(1 / (6 * math.sqrt(2)))


class Momentum(nn.Module):
    def __init__(self, n=8, sc=1 / 8):
        super().__init__()
        self.e = nn.Embedding(64, 64)
        self.b = HB(64, 1.0)
        self.n = n
        self.sc = sc

    def forward(self, t):
        x = self.e(t)
        v = torch.zeros_like(x)
        for _ in range(self.n):
            v = 0.5 * v + (self.b(x) - x)
            x = x + self.sc * v
        return x


def momentum_ok():
    return Momentum()


class Interp(nn.Module):
    def __init__(self, n=8, a=0.125):
        super().__init__()
        self.e = nn.Embedding(64, 64)
        self.n = n
        self.a = a
        self.ln = nn.LayerNorm(64)
        self.m = GMLP(64)

    def forward(self, t):
        x = self.e(t)
        for _ in range(self.n):
            x = (1 - self.a) * x + self.a * self.m(self.ln(x))
        return x


def interp():
    return Interp()


class Meta(nn.Module):
    def __init__(self):
        super().__init__()
        self.m = DC().to("meta")

    def forward(self, t):
        return self.m(t)


def meta():
    return Meta()


class NoParamLoopHyper(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 10))

    def forward(self, x):
        return self.net(x)


def mlp_plain():
    return NoParamLoopHyper()


def vit_plain():
    from transformers import ViTConfig, ViTModel

    return ViTModel(
        ViTConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            image_size=32,
            patch_size=8,
        )
    )


class Siamese(nn.Module):
    def __init__(self):
        super().__init__()
        self.enc = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))
        self.o = nn.Linear(32, 1)

    def forward(self, a, b):
        return self.o(torch.cat([self.enc(a), self.enc(b)], -1))


def siamese():
    return Siamese()


def tied_emb():
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_head=2, n_layer=3, vocab_size=61))
