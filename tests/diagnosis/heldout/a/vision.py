"""Loops over images: a ViT with LayerScale, an MLP-Mixer, a U-Net step, a recurrent convolution with recall."""

import torch
import torch.nn.functional as F
from torch import nn


def pictures(side=16):
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(3))


class ViTBlock(nn.Module):
    def __init__(self, dim, start):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = nn.MultiheadAttention(dim, 4, batch_first=True)
        self.fc1, self.fc2 = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)
        self.ls1, self.ls2 = nn.Parameter(start * torch.ones(dim)), nn.Parameter(start * torch.ones(dim))

    def forward(self, x):
        n = self.norm1(x)
        x = x + self.ls1 * self.attn(n, n, n, need_weights=False)[0]
        return x + self.ls2 * self.fc2(F.gelu(self.fc1(self.norm2(x))))


class RecurrentViT(nn.Module):
    """LayerScale starts at 1/depth, so it is the eps; a class token and positions stand before the loop."""

    def __init__(self, dim=32, depth=6):
        super().__init__()
        self.patch, self.depth = nn.Conv2d(3, dim, 4, 4), depth
        self.cls, self.pos = nn.Parameter(torch.randn(1, 1, dim)), nn.Parameter(torch.randn(1, 17, dim))
        self.block, self.norm, self.head = ViTBlock(dim, 1 / depth), nn.LayerNorm(dim), nn.Linear(dim, 10)

    def forward(self, images):
        x = self.patch(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.pos
        for _ in range(self.depth):
            x = self.block(x)
        return self.head(self.norm(x)[:, 0])


class Mixer(nn.Module):
    def __init__(self, dim=32, n_iter=8):
        super().__init__()
        self.stem, self.n_iter = nn.Conv2d(3, dim, 4, stride=4), n_iter
        self.ln_token, self.ln_channel = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.token_mix = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16))
        self.channel_mix = nn.Sequential(nn.Linear(dim, 64), nn.GELU(), nn.Linear(64, dim))
        self.out = nn.Linear(dim, 10)

    def forward(self, images):
        x = self.stem(images).flatten(2).mT
        for _ in range(self.n_iter):
            x = x + self.token_mix(self.ln_token(x).mT).mT
            x = x + self.channel_mix(self.ln_channel(x))
        return self.out(x.mean(1))


class UNetStep(nn.Module):
    """Down, up, and a concatenation inside the branch."""

    def __init__(self, c=8):
        super().__init__()
        self.norm = nn.GroupNorm(2, c)
        self.enter, self.down = nn.Conv2d(c, c, 3, padding=1), nn.Conv2d(c, 2 * c, 3, stride=2, padding=1)
        self.mid, self.up = nn.Conv2d(2 * c, 2 * c, 3, padding=1), nn.ConvTranspose2d(2 * c, c, 2, stride=2)
        self.leave = nn.Conv2d(2 * c, c, 3, padding=1)

    def forward(self, x):
        a = F.silu(self.enter(self.norm(x)))
        deep = F.silu(self.down(a))
        deep = deep + F.silu(self.mid(deep))
        return self.leave(torch.cat([a, self.up(deep)], 1))


class Denoiser(nn.Module):
    def __init__(self, steps=5):
        super().__init__()
        self.inp, self.net, self.out, self.steps = nn.Conv2d(3, 8, 1), UNetStep(), nn.Conv2d(8, 3, 1), steps

    def forward(self, noisy):
        x = self.inp(noisy)
        for _ in range(self.steps):
            x = x + self.net(x) / self.steps
        return noisy - self.out(x)


class Recall(nn.Module):
    """A recurrent convolution that reads state and picture, no skip, no norm."""

    def __init__(self, c=12, iters=8):
        super().__init__()
        self.enter, self.cell, self.out = (
            nn.Conv2d(3, c, 3, padding=1),
            nn.Conv2d(c + 3, c, 3, padding=1),
            nn.Conv2d(c, 2, 1),
        )
        self.iters = iters
        nn.init.kaiming_normal_(self.cell.weight, nonlinearity="relu")
        with torch.no_grad():
            self.cell.weight.mul_(1.8)

    def forward(self, images):
        h = torch.relu(self.enter(images))
        for _ in range(self.iters):
            h = torch.relu(self.cell(torch.cat([h, images], 1)))
        return self.out(h)


def vit(depth=6):
    return RecurrentViT(depth=depth), pictures()


def mixer(n_iter=8):
    return Mixer(n_iter=n_iter), pictures()


def denoiser(steps=5):
    return Denoiser(steps), pictures(8)


def recall(iters=8):
    return Recall(iters=iters), pictures(8)


TRUTHS = {
    "vit": dict(
        codes=[],
        loops=6,
        layers=1,
        level="easy",
        kind="image",
        watch="RecurrentViT.forward:x",
        why="LayerScale of 1/N; the last token alone is read",
    ),
    "mixer": dict(
        codes=["unscaled-residual"],
        law="linear",
        loops=8,
        layers=1,
        level="easy",
        kind="image",
        watch="Mixer.forward:x",
        mend="attach",
        place={"unscaled-residual": ["x = x + self.token_mix|token_mix", "x = x + self.channel_mix|channel_mix"]},
        why="token and channel mixing at eps = 1",
    ),
    "denoiser": dict(
        codes=[],
        loops=5,
        layers=1,
        level="hard",
        kind="image",
        watch="Denoiser.forward:x",
        why="the inner skip of the U-Net belongs to the branch, which is added at 1/N",
    ),
    "recall": dict(
        codes=["expanding-map"],
        law="exponential",
        loops=8,
        level="medium",
        kind="image",
        watch="Recall.forward:h",
        place={"expanding-map": ["cell|h = torch.relu(self.cell"]},
        why="1.8 times the initialisation that keeps the size, no skip, no norm",
    ),
}
