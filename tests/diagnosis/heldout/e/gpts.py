"""Small language models that were made to loop: a compiled block, a lerp, places at every visit, nGPT, weights as training leaves them, bf16."""

import inspect
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class GPTConfig:
    block_size: int = 64
    vocab_size: int = 96
    n_loop: int = 8
    n_layer: int = 1
    n_head: int = 4
    n_kv_head: int = 2
    n_embd: int = 48
    bias: bool = False


def rotate(x, base=10000.0):
    T, D = x.shape[-2:]
    angles = torch.outer(torch.arange(T), base ** (-torch.arange(0, D, 2) / D))
    a, b = x[..., : D // 2], x[..., D // 2 :]
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


class GroupedAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        assert config.n_embd % config.n_head == 0
        self.n_head, self.n_kv, self.hd = config.n_head, config.n_kv_head, config.n_embd // config.n_head
        self.c_q = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.c_kv = nn.Linear(config.n_embd, 2 * self.n_kv * self.hd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x):
        B, T, C = x.size()
        q = rotate(self.c_q(x).view(B, T, self.n_head, self.hd).transpose(1, 2))
        k, v = self.c_kv(x).view(B, T, 2, self.n_kv, self.hd).permute(2, 0, 3, 1, 4)
        k = rotate(k).repeat_interleave(self.n_head // self.n_kv, 1)
        v = v.repeat_interleave(self.n_head // self.n_kv, 1)
        q, k = F.rms_norm(q, (self.hd,)), F.rms_norm(k, (self.hd,))
        att = (q @ k.transpose(-2, -1)) / math.sqrt(self.hd)
        att = att.masked_fill(torch.ones(T, T, dtype=torch.bool).triu(1), float("-inf")).softmax(-1)
        return self.c_proj((att @ v).transpose(1, 2).contiguous().view(B, T, C))


class ReluSquared(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x):
        return self.c_proj(F.relu(self.c_fc(x)).square())


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = GroupedAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = ReluSquared(config)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        x = x + self.mlp(self.ln_2(x))
        return x


class LoopGPT(nn.Module):
    """nanoGPT in which `h` is walked through n_loop times; nothing else was touched."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.transformer = nn.ModuleDict(
            dict(
                wte=nn.Embedding(config.vocab_size, config.n_embd),
                h=nn.ModuleList([Block(config) for _ in range(config.n_layer)]),
                ln_f=nn.LayerNorm(config.n_embd, bias=config.bias),
            )
        )
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.transformer.wte.weight = self.lm_head.weight
        self.apply(self._init_weights)

    def _init_weights(self, module):
        if isinstance(module, nn.Linear):
            torch.nn.init.normal_(module.weight, mean=0.0, std=0.11)

    def get_num_params(self):
        return sum(p.numel() for p in self.parameters())

    def body(self, x):
        for _ in range(self.config.n_loop):
            for block in self.transformer.h:
                x = block(x)
        return x

    def forward(self, idx, targets=None):
        x = self.body(self.transformer.wte(idx) * math.sqrt(self.config.n_embd))
        logits = self.lm_head(self.transformer.ln_f(x))
        loss = None if targets is None else F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1))
        return logits, loss


class CompiledBlocks(LoopGPT):
    """Three layers, each handed to torch.compile by itself as large models do."""

    def __init__(self, config):
        super().__init__(config)
        for i, block in enumerate(self.transformer.h):
            self.transformer.h[i] = torch.compile(block, backend="eager", dynamic=False)


class LerpGPT(LoopGPT):
    """The stream goes a part of the way to what the block makes of it."""

    def body(self, x):
        t = 1.0 / (self.config.n_loop * math.sqrt(self.config.n_layer))
        for _ in range(self.config.n_loop):
            for block in self.transformer.h:
                x = torch.lerp(x, block(x), t)
        return x


class TrainedGPT(LoopGPT):
    """As a run leaves its weights: a few heavy rows and columns, norms with gains far from one, a few channels of the embedding ten times the others."""

    def __init__(self, config):
        super().__init__(config)
        g = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for name, p in self.named_parameters():
                if "ln_" in name:
                    p.mul_(torch.empty_like(p).uniform_(0.3, 1.8, generator=g))
                elif ".h." in name:
                    left, right = torch.randn(p.shape[0], 2, generator=g), torch.randn(2, p.shape[1], generator=g)
                    p.mul_(0.7).add_(left @ right, alpha=0.02)
            self.lm_head.weight[:, ::17] *= 4

    def body(self, x):
        eps = torch.tensor(self.config.n_loop).float().reciprocal() / self.config.n_layer**0.5
        for _ in range(self.config.n_loop):
            for b in self.transformer.h:
                x = torch.add(x, eps * b.attn(b.ln_1(x)))
                x = torch.add(x, eps * b.mlp(b.ln_2(x)))
        return x


class PlacedGPT(LoopGPT):
    """The learned places are looked up and added before every visit, so that deep visits do not forget them. Branches by 1/N."""

    def __init__(self, config):
        super().__init__(config)
        self.transformer.wpe = nn.Embedding(config.block_size, config.n_embd)

    def body(self, x):
        pos, eps = torch.arange(x.size(1), dtype=torch.long), 1 / self.config.n_loop
        for _ in range(self.config.n_loop):
            x = x + self.transformer.wpe(pos)
            b = self.transformer.h[0]
            x = x + eps * b.attn(b.ln_1(x))
            x = x + eps * b.mlp(b.ln_2(x))
        return x


def justnorm(x):
    return x / x.norm(p=2, dim=-1, keepdim=True)


class NormalizedGPT(nn.Module):
    """nGPT with its one layer again and again: points on a sphere, learned step sizes for each channel, no other norm."""

    def __init__(self, config):
        super().__init__()
        d = config.n_embd
        self.config, self.wte, self.head = config, nn.Embedding(config.vocab_size, d), nn.Linear(d, config.vocab_size)
        self.attn, self.mlp = GroupedAttention(config), ReluSquared(config)
        self.attn_alpha, self.mlp_alpha = (nn.Parameter(torch.full((d,), 0.05 * d**-0.5)) for _ in range(2))

    def forward(self, idx):
        h, scale = justnorm(self.wte(idx)), 1 / (self.config.n_embd**-0.5)
        for _ in range(self.config.n_loop):
            a, lr = justnorm(self.attn(h)), (self.attn_alpha * scale).abs()
            h = justnorm(h + lr * (a - h))
            m, lr = justnorm(self.mlp(h)), (self.mlp_alpha * scale).abs()
            h = justnorm(h + lr * (m - h))
        return self.head(h * scale)


class HalfGPT(nn.Module):
    """Everything was cast with .to(torch.bfloat16); initialised as GPT-2 is, the embedding in the paper's way of T5 (deviation one); 1/N."""

    def __init__(self, config):
        super().__init__()
        self.config, self.wte = config, nn.Embedding(config.vocab_size, config.n_embd)
        self.layer, self.norm = Block(config), nn.LayerNorm(config.n_embd)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size)
        for p in self.layer.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)

    def forward(self, idx):
        x, inv = self.wte(idx), 1 / self.config.n_loop
        for _ in range(self.config.n_loop):
            x = x + inv * self.layer.attn(self.layer.ln_1(x))
            x = x + inv * self.layer.mlp(self.layer.ln_2(x))
        return self.lm_head(self.norm(x))


class Configurable(nn.Module):
    """The run script's flag is `n_loops`, the model looks for `n_loop` and has a default, so the flag does nothing."""

    def __init__(self, **kwargs):
        super().__init__()
        known = set(inspect.signature(GPTConfig).parameters)
        self.config = GPTConfig(**{k: v for k, v in kwargs.items() if k in known})
        self.wte, self.block = nn.Embedding(96, self.config.n_embd), Block(self.config)
        self.head = nn.Linear(self.config.n_embd, 96)

    def forward(self, idx):
        x = self.wte(idx)
        for _ in range(self.config.n_loop):
            x = x + (self.block(x) - x) / self.config.n_loop
        return self.head(x)


def compiled_blocks(n_loop=6):
    return CompiledBlocks(GPTConfig(n_loop=n_loop, n_layer=3))


def lerp(n_loop=8):
    return LerpGPT(GPTConfig(n_loop=n_loop, n_layer=2))


def trained(n_loop=8):
    return TrainedGPT(GPTConfig(n_loop=n_loop, n_layer=2))


def placed(n_loop=8):
    return PlacedGPT(GPTConfig(n_loop=n_loop))


def ngpt(n_loop=8):
    return NormalizedGPT(GPTConfig(n_loop=n_loop))


def half(n_loop=24):
    return HalfGPT(GPTConfig(n_loop=n_loop)).to(torch.bfloat16)


def flag(n_loops=8):
    return Configurable(n_loops=n_loops, n_embd=32)


TRUTHS = {
    "compiled_blocks": dict(
        codes=["unscaled-residual"],
        loops=6,
        layers=3,
        level="medium",
        kind="how it is run",
        watch="LoopGPT.body:x",
        why="three layers of two branches at full size, six times; that they are compiled changes nothing",
    ),
    "lerp": dict(
        codes=[],
        loops=8,
        layers=2,
        level="medium",
        kind="code style",
        watch="LerpGPT.body:x",
        why="1/(N sqrt 2) of the way that a full block goes, by lerp",
    ),
    "trained": dict(
        codes=[],
        loops=8,
        layers=2,
        level="hard",
        kind="trained",
        watch="TrainedGPT.body:x",
        why="uneven weights and gains; 1/(N sqrt 2)",
    ),
    "placed": dict(
        codes=["unscaled-injection"],
        loops=8,
        layers=1,
        level="medium",
        kind="injection",
        watch="PlacedGPT.body:x",
        place={"unscaled-injection": ["x = x + self.transformer.wpe(pos)|wpe"]},
        why="the same places eight times; branches right",
    ),
    "ngpt": dict(
        codes=["norm-bounded"],
        law="bounded",
        loops=8,
        layers=1,
        level="medium",
        kind="norm",
        watch="NormalizedGPT.forward:h",
        why="the stream is put back onto the sphere after every branch",
    ),
    "half": dict(
        codes=["bf16-absorbed"],
        loops=24,
        layers=1,
        level="medium",
        kind="precision",
        watch="HalfGPT.forward:x",
        why="additions of far less than 2^-9 of a bfloat16 stream",
    ),
    "flag": dict(
        codes=["knob-without-effect"],
        loops=8,
        layers=1,
        level="medium",
        kind="knob",
        watch="Configurable.forward:x",
        why="n_loops is filtered out, the default of n_loop happens to be 8 as well; 1/N",
    ),
}
