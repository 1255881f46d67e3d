"""Looped models as people write them, I: GPT, Universal Transformer, Huginn, Ouro, Parcae, DEQ, TRM, injections."""

import copy
import math
import os
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F


@dataclass
class GPTConfig:
    block_size: int = 64
    vocab_size: int = 97
    n_layer: int = 2
    n_head: int = 4
    n_embd: int = 64
    dropout: float = 0.1
    bias: bool = False
    n_loop: int = 8


class CSA(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c_attn = nn.Linear(c.n_embd, 3 * c.n_embd, bias=c.bias)
        self.c_proj = nn.Linear(c.n_embd, c.n_embd, bias=c.bias)
        self.attn_dropout = nn.Dropout(c.dropout)
        self.resid_dropout = nn.Dropout(c.dropout)
        self.n_head, self.n_embd, self.dropout = c.n_head, c.n_embd, c.dropout

    def forward(self, x):
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        k = k.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        q = q.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        v = v.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0, is_causal=True)
        return self.resid_dropout(self.c_proj(y.transpose(1, 2).contiguous().view(B, T, C)))


class MLP(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c_fc = nn.Linear(c.n_embd, 4 * c.n_embd, bias=c.bias)
        self.gelu = nn.GELU()
        self.c_proj = nn.Linear(4 * c.n_embd, c.n_embd, bias=c.bias)
        self.dropout = nn.Dropout(c.dropout)

    def forward(self, x):
        return self.dropout(self.c_proj(self.gelu(self.c_fc(x))))


class Block(nn.Module):
    def __init__(self, c, scale=1.0):
        super().__init__()
        self.ln_1 = nn.LayerNorm(c.n_embd)
        self.attn = CSA(c)
        self.ln_2 = nn.LayerNorm(c.n_embd)
        self.mlp = MLP(c)
        self.scale = scale

    def forward(self, x):
        x = x + self.scale * self.attn(self.ln_1(x))
        return x + self.scale * self.mlp(self.ln_2(x))


class GPT(nn.Module):
    def __init__(self, c=None, scale=1.0, gpt2=True, nested=False):
        super().__init__()
        c = c or GPTConfig()
        self.config = c
        self.nested = nested
        self.transformer = nn.ModuleDict(
            dict(
                wte=nn.Embedding(c.vocab_size, c.n_embd),
                wpe=nn.Embedding(c.block_size, c.n_embd),
                drop=nn.Dropout(c.dropout),
                h=nn.ModuleList([Block(c, scale) for _ in range(c.n_layer)]),
                ln_f=nn.LayerNorm(c.n_embd),
            )
        )
        self.lm_head = nn.Linear(c.n_embd, c.vocab_size, bias=False)
        self.transformer.wte.weight = self.lm_head.weight
        self.apply(self._init)
        if gpt2:
            for n, p in self.named_parameters():
                if n.endswith("c_proj.weight"):
                    nn.init.normal_(p, std=0.02 / math.sqrt(2 * c.n_layer * (c.n_loop if gpt2 == "unrolled" else 1)))

    def _init(self, m):
        if isinstance(m, nn.Linear):
            nn.init.normal_(m.weight, std=0.02)
            if m.bias is not None:
                nn.init.zeros_(m.bias)
        elif isinstance(m, nn.Embedding):
            nn.init.normal_(m.weight, std=0.02)

    def forward(self, idx, targets=None):
        t = idx.size(1)
        pos = torch.arange(0, t, device=idx.device)
        x = self.transformer.drop(self.transformer.wte(idx) + self.transformer.wpe(pos))
        for _ in range(self.config.n_loop):
            if self.nested:
                y = x
                for b in self.transformer.h:
                    y = b(y)
                x = x + y
            else:
                for b in self.transformer.h:
                    x = b(x)
        x = self.transformer.ln_f(x)
        if targets is not None:
            logits = self.lm_head(x)
            return logits, F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1))
        return self.lm_head(x[:, [-1], :]), None


def nano_none():
    return GPT()


def nano_looped():
    return GPT(scale=1 / (8 * math.sqrt(2)), gpt2=False)


def nano_sqrt():
    return GPT(scale=1 / math.sqrt(16), gpt2=False)


def nano_gpt2_on_top():
    return GPT(scale=1 / (8 * math.sqrt(2)), gpt2="unrolled")


def nano_nested():
    return GPT(nested=True)


def nano_train_dropout():
    return GPT().train()


def nano_one_loop():
    return GPT(GPTConfig(n_loop=1))


def nano_notloop():
    return GPT(GPTConfig(n_loop=1, n_layer=4))


def nano_gpt2_unrolled_only():
    return GPT(gpt2="unrolled")  # 1/sqrt(2NL) as init only


class UT(nn.Module):
    def __init__(self, d=64, vocab=50, steps=6, norm="post"):
        super().__init__()
        self.emb = nn.Embedding(vocab, d)
        self.time = nn.Embedding(steps, d)
        self.layer = nn.TransformerEncoderLayer(d, 4, 128, batch_first=True, norm_first=norm == "pre")
        self.max_hops = steps
        self.fc = nn.Linear(d, vocab)

    def forward(self, x):
        h = self.emb(x)
        for t in range(self.max_hops):
            h = h + self.time.weight[t]
            h = self.layer(h)
        return self.fc(h)


def ut_post():
    return UT()


def ut_pre():
    return UT(norm="pre")


class RMS(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d))

    def forward(self, x):
        return (x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)).type_as(x) * self.weight


class Att(nn.Module):
    def __init__(self, d, h=4):
        super().__init__()
        self.Wqkv = nn.Linear(d, 3 * d, bias=False)
        self.proj = nn.Linear(d, d, bias=False)
        self.h = h

    def forward(self, x):
        B, T, D = x.shape
        q, k, v = self.Wqkv(x).view(B, T, 3, self.h, D // self.h).permute(2, 0, 3, 1, 4)
        a = torch.einsum("bhtd,bhsd->bhts", q, k) / math.sqrt(D // self.h)
        a = a.masked_fill(torch.ones(T, T, dtype=torch.bool).triu(1), float("-inf")).softmax(-1)
        return self.proj(torch.einsum("bhts,bhsd->bhtd", a, v).transpose(1, 2).reshape(B, T, D))


class GMLP(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.fc = nn.Linear(d, 8 * d, bias=False)
        self.proj = nn.Linear(4 * d, d, bias=False)

    def forward(self, x):
        a, b = self.fc(x).chunk(2, -1)
        return self.proj(F.silu(a) * b)


class HuginnBlock(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.n1, self.n2, self.n3, self.n4 = (RMS(d) for _ in range(4))
        self.attn = Att(d)
        self.mlp = GMLP(d)

    def forward(self, x):
        x = self.n2(self.attn(self.n1(x)) + x)
        return self.n4(self.mlp(self.n3(x)) + x)


class Huginn(nn.Module):
    def __init__(self, d=64, vocab=80, rec=8):
        super().__init__()
        self.wte = nn.Embedding(vocab, d)
        self.prelude = nn.ModuleList(HuginnBlock(d) for _ in range(2))
        self.adapter = nn.Linear(2 * d, d, bias=False)
        self.core_block = nn.ModuleList(HuginnBlock(d) for _ in range(2))
        self.coda = nn.ModuleList(HuginnBlock(d) for _ in range(2))
        self.ln_f = RMS(d)
        self.head = nn.Linear(d, vocab, bias=False)
        self.mean_recurrence = rec

    def forward(self, input_ids, num_steps=None):
        e = self.wte(input_ids)
        for b in self.prelude:
            e = b(e)
        x = torch.randn_like(e) * 0.4
        n = num_steps or self.mean_recurrence
        with torch.no_grad():
            for _ in range(n - 4):
                x = self.it(x, e)
        for _ in range(min(n, 4)):
            x = self.it(x, e)
        for b in self.coda:
            x = b(x)
        return {"logits": self.head(self.ln_f(x)), "latents": x}

    def it(self, x, e):
        x = self.adapter(torch.cat([x, e], -1))
        for b in self.core_block:
            x = b(x)
        return x


def huginn():
    return Huginn()


class Ouro(nn.Module):
    def __init__(self, d=64, vocab=80, ut=4, L=2, fnorm=True):
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab, d)
        self.layers = nn.ModuleList(
            nn.ModuleDict(dict(a=Att(d), m=GMLP(d), n1=RMS(d), n2=RMS(d), n3=RMS(d), n4=RMS(d))) for _ in range(L)
        )
        self.norm = RMS(d)
        self.total_ut_steps = ut
        self.lm_head = nn.Linear(d, vocab)
        self.gate = nn.Linear(d, 1)
        self.fnorm = fnorm

    def forward(self, input_ids):
        x = self.embed_tokens(input_ids)
        outs = []
        gates = []
        for _ in range(self.total_ut_steps):
            for layer in self.layers:
                x = x + layer["n2"](layer["a"](layer["n1"](x)))
                x = x + layer["n4"](layer["m"](layer["n3"](x)))
            if self.fnorm:
                x = self.norm(x)
            outs.append(self.lm_head(x))
            gates.append(self.gate(x).sigmoid())
        return outs, gates


def ouro():
    return Ouro()


def ouro_nofinal():
    return Ouro(ut=8, fnorm=False)


class Parcae(nn.Module):
    def __init__(self, d=64, vocab=80, T=8, alog=0.0, dtb=-1.0, scale=1 / 8):
        super().__init__()
        self.wte = nn.Embedding(vocab, d)
        self.A_log = nn.Parameter(torch.full((d,), alog))
        self.dt = nn.Parameter(torch.full((d,), dtb))
        self.B = nn.Linear(d, d, bias=False)
        self.blk = nn.ModuleList([nn.ModuleDict(dict(a=Att(d), m=GMLP(d), n1=RMS(d), n2=RMS(d)))])
        self.T = T
        self.head = nn.Linear(d, vocab)
        self.scale = scale
        self.nf = RMS(d)

    def forward(self, idx):
        e = self.wte(idx)
        h = torch.zeros_like(e)
        for _ in range(self.T):
            dt = F.softplus(self.dt)
            dA = torch.exp(-dt * torch.exp(self.A_log))
            h = dA * h + dt * self.B(e)
            for layer in self.blk:
                h = h + self.scale * layer["a"](layer["n1"](h))
                h = h + self.scale * layer["m"](layer["n2"](h))
        return self.head(self.nf(h))


def parcae():
    return Parcae()


def parcae_one():
    return Parcae(alog=-20.0)


def parcae_unscaled():
    return Parcae(scale=1.0)


class DEQ(nn.Module):
    def __init__(self, d=48, iters=12, g=0.5):
        super().__init__()
        self.W = nn.Linear(d, d)
        self.U = nn.Linear(d, d)
        self.inp = nn.Linear(10, d)
        self.out = nn.Linear(d, 3)
        self.max_iter = iters
        with torch.no_grad():
            self.W.weight.copy_(torch.randn(d, d) / math.sqrt(d) * g)

    def forward(self, x):
        u = self.U(self.inp(x))
        z = torch.zeros_like(u)
        for _ in range(self.max_iter):
            z = torch.tanh(self.W(z) + u)
        return self.out(z)


def deq():
    return DEQ()


class TRM(nn.Module):
    def __init__(self, d=64, vocab=12, H=3, Lc=4):
        super().__init__()
        self.emb = nn.Embedding(vocab, d)
        self.net = nn.ModuleList(nn.ModuleDict(dict(a=Att(d), m=GMLP(d))) for _ in range(2))
        self.H_cycles = H
        self.L_cycles = Lc
        self.register_buffer("H_init", torch.randn(d))
        self.register_buffer("L_init", torch.randn(d))
        self.head = nn.Linear(d, vocab)

    def lvl(self, h, inj):
        h = h + inj
        for layer in self.net:
            h = F.rms_norm(h + layer["a"](h), (h.shape[-1],))
            h = F.rms_norm(h + layer["m"](h), (h.shape[-1],))
        return h

    def forward(self, x):
        e = self.emb(x) * 8
        zH = self.H_init.expand_as(e)
        zL = self.L_init.expand_as(e)
        with torch.no_grad():
            for _ in range(self.H_cycles - 1):
                for _ in range(self.L_cycles):
                    zL = self.lvl(zL, zH + e)
                zH = self.lvl(zH, zL)
        for _ in range(self.L_cycles):
            zL = self.lvl(zL, zH + e)
        zH = self.lvl(zH, zL)
        return self.head(zH), (zH.detach(), zL.detach())


def trm():
    return TRM()


class Inject(nn.Module):
    def __init__(self, mode="add", d=64, vocab=80, n=12, scale=None, L=1, order="stack"):
        super().__init__()
        self.e = nn.Embedding(vocab, d)
        self.layers = nn.ModuleList(
            nn.ModuleDict(dict(a=Att(d), m=GMLP(d), n1=nn.LayerNorm(d), n2=nn.LayerNorm(d))) for _ in range(L)
        )
        self.n = n
        self.mode = mode
        self.scale = 1 / (n * math.sqrt(L)) if scale is None else scale
        self.h = nn.Linear(d, vocab)
        self.order = order

    def blk(self, layer, x):
        x = x + layer["a"](layer["n1"](x)) * self.scale
        return torch.add(x, layer["m"](layer["n2"](x)), alpha=self.scale)

    def forward(self, t):
        e = self.e(t)
        x = torch.zeros_like(e) if self.mode == "zero+add" else e
        if self.order == "layer":
            for layer in self.layers:
                for _ in range(self.n):
                    x = self.blk(layer, x)
            return self.h(x)
        for _i in range(self.n):
            if "add" in self.mode:
                x = x + e
            if self.mode == "scaled":
                x = x + e / self.n
            for layer in self.layers:
                x = self.blk(layer, x)
        return self.h(x)


def inject_add():
    return Inject()


def inject_zero_add():
    return Inject("zero+add")


def inject_scaled():
    return Inject("scaled")


def layerwise_none():
    return Inject("none", scale=1.0, L=3, n=5, order="layer")


def layerwise_ok():
    return Inject("none", L=3, n=5, order="layer")


def three_layers_none():
    return Inject("none", scale=1.0, L=3, n=5)


def n64_none():
    return Inject("none", scale=1.0, n=64)


def n4_none():
    return Inject("none", scale=1.0, n=4)


class Repeat(nn.Module):
    def __init__(self, d=64, n=6, scale=1.0):
        super().__init__()
        self.e = nn.Embedding(64, d)
        blk = HB(d, scale)
        self.layers = nn.ModuleList([blk] * n)
        self.out = nn.Linear(d, 64)

    def forward(self, t):
        x = self.e(t)
        for layer in self.layers:
            x = layer(x)
        return self.out(x)


class HB(nn.Module):
    def __init__(self, d, scale):
        super().__init__()
        self.n = nn.LayerNorm(d)
        self.f = nn.Sequential(nn.Linear(d, 4 * d), nn.ReLU(), nn.Linear(4 * d, d))
        self.scale = scale

    def forward(self, x):
        x = x.clone()
        x += self.scale * self.f(self.n(x))
        return x


def repeat_none():
    return Repeat()


def repeat_ok():
    return Repeat(scale=1 / 6)


def repeat_seq():
    b = HB(32, 1.0)
    return nn.Sequential(nn.Linear(8, 32), *[b] * 7, nn.Linear(32, 2))


class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        b = HB(64, 1 / 5)
        self.e = nn.Embedding(64, 64)
        self.layers = nn.ModuleList([copy.deepcopy(b) for _ in range(5)])

    def forward(self, t):
        x = self.e(t)
        for layer in self.layers:
            x = layer(x)
        return x


def deepcopy_untied():
    return Deep()


class Kw(nn.Module):
    def __init__(self, scale_by_n=True):
        super().__init__()
        self.e = nn.Embedding(64, 64)
        self.b = HB(64, 1.0)
        self.by = scale_by_n

    def forward(self, tokens, *, n_loops):
        x = self.e(tokens)
        s_ = 1 / n_loops if self.by else 1.0
        for _ in range(n_loops):
            x = x + s_ * (self.b(x) - x)
        return x


def kw_required():
    return Kw()


def kw_required_none():
    return Kw(False)


class Env(nn.Module):
    def __init__(self):
        super().__init__()
        self.e = nn.Embedding(64, 64)
        self.b = HB(64, 1.0)

    def forward(self, t):
        x = self.e(t)
        for _ in range(int(os.environ.get("N_LOOPS", "5"))):
            x = self.b(x)
        return x


def env_none():
    return Env()
