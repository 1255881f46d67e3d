"""Images, boxes and fields: shared U-Net stages, pooled tokens, boxes that are refined, flows that are integrated, a DEQ with phantom gradients."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn


class ConvStage(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.gn, self.c1, self.c2 = nn.GroupNorm(4, c), nn.Conv2d(c, c, 3, padding=1), nn.Conv2d(c, c, 3, padding=1)

    def forward(self, x):
        return self.c2(F.silu(self.c1(F.silu(self.gn(x)))))


class SharedUNet(nn.Module):
    """One stage for all scales on the way down and one for all on the way up; the skips are averaged in."""

    def __init__(self, scales=4, c=16):
        super().__init__()
        self.stem, self.down, self.up, self.head, self.scales = (
            nn.Conv2d(3, c, 3, padding=1),
            ConvStage(c),
            ConvStage(c),
            nn.Conv2d(c, 2, 1),
            scales,
        )

    def forward(self, image):
        x, kept = self.stem(image), []
        for _ in range(self.scales):
            x = x + self.down(x) / self.scales
            kept.append(x)
            x = F.avg_pool2d(x, 2)
        for skip in reversed(kept):
            x = (F.interpolate(x, scale_factor=2.0, mode="nearest") + skip) / 2
            x = x + self.up(x) / self.scales
        return self.head(x)


class TokenBlock(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.n1, self.n2, self.attn = nn.LayerNorm(d), nn.LayerNorm(d), nn.MultiheadAttention(d, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d))

    def forward(self, x, eps):
        h = self.n1(x)
        x = x + eps * self.attn(h, h, h, need_weights=False)[0]
        return x + eps * self.mlp(self.n2(x))


class PooledViT(nn.Module):
    """A looped ViT that merges pairs of patches after each third of its visits: 64, 32, 16 tokens; 1/N."""

    def __init__(self, depth=6, d=32):
        super().__init__()
        self.patch, self.pos = nn.Conv2d(3, d, 4, 4), nn.Parameter(0.02 * torch.randn(1, 64, d))
        self.block, self.norm, self.fc, self.depth = TokenBlock(d), nn.LayerNorm(d), nn.Linear(d, 10), depth

    def forward(self, img):
        x = self.patch(img).flatten(2).mT + self.pos
        for i in range(self.depth):
            x = self.block(x, 1 / self.depth)
            if i + 1 in (self.depth // 3, 2 * self.depth // 3):
                x = x.unflatten(1, (-1, 2)).mean(2)
        return self.fc(self.norm(x).mean(1))


class ClsViT(nn.Module):
    """Only the patches are updated, through a slice, in place; the class token reads them once at the end. No factor."""

    def __init__(self, depth=9, d=32):
        super().__init__()
        self.patch, self.cls = nn.Conv2d(3, d, 8, 8), nn.Parameter(torch.randn(1, 1, d))
        self.norm, self.mix, self.fc, self.depth = (
            nn.LayerNorm(d),
            nn.Sequential(nn.Linear(d, 3 * d), nn.GELU(), nn.Linear(3 * d, d)),
            nn.Linear(d, 10),
            depth,
        )
        nn.init.xavier_normal_(self.mix[0].weight, 1.4), nn.init.xavier_normal_(self.mix[2].weight, 1.4)

    def forward(self, img):
        x = self.patch(img).flatten(2).mT
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1)
        for _ in range(self.depth):
            new = x.clone()
            new[:, 1:] += self.mix(self.norm(x))[:, 1:]
            x = new
        return self.fc(x[:, 0] + x[:, 1:].mean(1))


class BoxDecoder(nn.Module):
    """DETR-like queries that are refined by one shared decoder layer; the reference boxes are corrected in logit space and detached, the correction starts at zero."""

    def __init__(self, iters=6, d=32, q=5):
        super().__init__()
        self.backbone, self.query, self.ref = (
            nn.Conv2d(3, d, 8, 8),
            nn.Parameter(torch.randn(q, d)),
            nn.Parameter(torch.randn(q, 4)),
        )
        self.n1, self.n2, self.n3 = (nn.LayerNorm(d) for _ in range(3))
        self.self_attn, self.cross = (nn.MultiheadAttention(d, 2, batch_first=True) for _ in range(2))
        self.ffn, self.pos = nn.Sequential(nn.Linear(d, 2 * d), nn.ReLU(), nn.Linear(2 * d, d)), nn.Linear(4, d)
        self.bbox, self.cls, self.iters = nn.Linear(d, 4), nn.Linear(d, 3), iters
        nn.init.zeros_(self.bbox.weight), nn.init.zeros_(self.bbox.bias)

    def forward(self, img):
        memory = self.backbone(img).flatten(2).mT
        tgt, ref = self.query.expand(len(img), -1, -1), self.ref.sigmoid().expand(len(img), -1, -1)
        for _ in range(self.iters):
            h, pos = self.n1(tgt), self.pos(ref)
            tgt = tgt + self.self_attn(h + pos, h + pos, h, need_weights=False)[0] / self.iters
            tgt = tgt + self.cross(self.n2(tgt) + pos, memory, memory, need_weights=False)[0] / self.iters
            tgt = tgt + self.ffn(self.n3(tgt)) / self.iters
            box = torch.sigmoid(self.bbox(tgt) + torch.logit(ref, eps=1e-5))
            ref = box.detach()
        return {"pred_boxes": box, "pred_logits": self.cls(tgt)}


class Velocity(nn.Module):
    """A DiT-like velocity with adaLN-zero: the modulation and the last layer start at zero."""

    def __init__(self, d=32):
        super().__init__()
        self.inp, self.t, self.norm, self.ada = (
            nn.Linear(8, d),
            nn.Linear(1, d),
            nn.LayerNorm(d, elementwise_affine=False),
            nn.Linear(d, 3 * d),
        )
        self.mlp, self.out = nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d)), nn.Linear(d, 8)
        for m in (self.ada, self.out):
            nn.init.zeros_(m.weight), nn.init.zeros_(m.bias)

    def forward(self, x, t):
        shift, scale, gate = self.ada(F.silu(self.t(t))).chunk(3, -1)
        h = self.inp(x)
        h = h + gate * self.mlp(self.norm(h) * (1 + scale) + shift)
        return self.out(h)


class RectifiedFlow(nn.Module):
    """Sampling as a decoder: Euler steps of a velocity that is zero at first, dt = 1/steps."""

    def __init__(self, n_steps=8):
        super().__init__()
        self.v, self.n_steps = Velocity(), n_steps

    def forward(self, z):
        dt = 1.0 / self.n_steps
        for i in range(self.n_steps):
            z = z + dt * self.v(z, torch.full((len(z), 1), i * dt))
        return z


class LoopedDiT(nn.Module):
    """A DiT block that is used again, its gates (adaLN-zero of time and label) zero at first; `rate` is what an open gate lets through."""

    def __init__(self, depth=8, rate=1.0, d=32):
        super().__init__()
        self.x_embedder, self.t_embedder, self.final = (
            nn.Linear(8, d),
            nn.Sequential(nn.Linear(1, d), nn.SiLU()),
            nn.Linear(d, 8),
        )
        self.attn = nn.MultiheadAttention(d, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(approximate="tanh"), nn.Linear(4 * d, d))
        self.n1, self.n2 = (nn.LayerNorm(d, elementwise_affine=False) for _ in range(2))
        self.adaLN_modulation, self.depth, self.rate = nn.Linear(d, 6 * d), depth, rate
        nn.init.zeros_(self.adaLN_modulation.weight), nn.init.zeros_(self.adaLN_modulation.bias)

    def forward(self, x, t):
        x, c = self.x_embedder(x), self.t_embedder(t)
        for _ in range(self.depth):
            s1, g1, a1, s2, g2, a2 = self.adaLN_modulation(c).unsqueeze(1).chunk(6, -1)
            h = self.n1(x) * (1 + g1) + s1
            x = x + self.rate * a1 * self.attn(h, h, h, need_weights=False)[0]
            x = x + self.rate * a2 * self.mlp(self.n2(x) * (1 + g2) + s2)
        return self.final(x)


def odeint_rk4(f, y, ts):
    for t0, t1 in pairwise(ts):
        h = t1 - t0
        k1 = f(t0, y)
        k2 = f(t0 + h / 2, y + h * k1 / 2)
        k3 = f(t0 + h / 2, y + h * k2 / 2)
        k4 = f(t1, y + h * k3)
        y = y + h * (k1 + 2 * k2 + 2 * k3 + k4) / 6
    return y


class ODEBlock(nn.Module):
    """A neural ODE by RK4 with steps of one: the end time is the number of layers that it replaced."""

    def __init__(self, layers=8, d=24):
        super().__init__()
        self.enc, self.dec, self.layers = nn.Linear(6, d), nn.Linear(d, 2), layers
        self.net = nn.Sequential(nn.LayerNorm(d), nn.Linear(d, 3 * d), nn.Tanh(), nn.Linear(3 * d, d))
        nn.init.xavier_normal_(self.net[1].weight, 1.5), nn.init.xavier_normal_(self.net[3].weight, 1.5)

    def forward(self, x):
        return self.dec(
            odeint_rk4(lambda t, y: self.net(y), self.enc(x), torch.linspace(0, self.layers, self.layers + 1))
        )


class Adaptive(nn.Module):
    """The same ODE from 0 to 1 with steps of its own choice (Euler within Heun), rejected ones made again smaller."""

    def __init__(self, tol=2e-3, d=24):
        super().__init__()
        self.enc, self.dec, self.tol = nn.Linear(6, d), nn.Linear(d, 2), tol
        self.net = nn.Sequential(nn.LayerNorm(d), nn.Linear(d, 3 * d), nn.Tanh(), nn.Linear(3 * d, d))

    def forward(self, x):
        y, t, h = self.enc(x), 0.0, 0.25
        while t < 1 - 1e-6:
            h = min(h, 1 - t)
            k1 = self.net(y)
            k2 = self.net(y + h * k1)
            error = float((h / 2 * (k2 - k1)).detach().abs().max())
            if error < self.tol:
                y, t = y + h / 2 * (k1 + k2), t + h
            h = 0.9 * h * min(2.0, max(0.3, (self.tol / (error + 1e-12)) ** 0.5))
        return self.dec(y)


class Phantom(nn.Module):
    """A DEQ: the fixed point without gradient, then a few damped steps with it (phantom gradients)."""

    def __init__(self, f_solver_iter=16, phantom_steps=4, tau=0.8, d=32):
        super().__init__()
        self.inject, self.W, self.out, self.ln = nn.Linear(6, d), nn.Linear(d, d), nn.Linear(d, 3), nn.LayerNorm(d)
        nn.init.orthogonal_(self.W.weight, 0.6)
        self.n, self.k, self.tau = f_solver_iter, phantom_steps, tau

    def f(self, z, u):
        return torch.tanh(self.ln(self.W(z) + u))

    def forward(self, x):
        u = self.inject(x)
        z = torch.zeros_like(u)
        with torch.no_grad():
            for _ in range(self.n):
                z = self.f(z, u)
        for _ in range(self.k):
            z = (1 - self.tau) * z + self.tau * self.f(z, u)
        return self.out(z)


def seeded(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(31))


def shared_unet():
    return SharedUNet(), seeded(2, 3, 32, 32)


def pooled(depth=6):
    return PooledViT(depth), seeded(2, 3, 32, 32)


def in_a_slice(depth=9):
    return ClsViT(depth), seeded(2, 3, 32, 32)


def boxes(iters=6):
    return BoxDecoder(iters), seeded(2, 3, 32, 32)


def rectified(n_steps=8):
    return RectifiedFlow(n_steps), seeded(5, 8)


def dit(depth=8):
    return LoopedDiT(depth), (seeded(3, 6, 8), torch.tensor([[0.1], [0.5], [0.9]]))


def dit_scaled(depth=8):
    return LoopedDiT(depth, 1 / depth), (seeded(3, 6, 8), torch.tensor([[0.1], [0.5], [0.9]]))


def by_layers(layers=8):
    return ODEBlock(layers), seeded(5, 6)


def adaptive():
    return Adaptive(), seeded(5, 6)


def phantom():
    return Phantom(), seeded(5, 6)


TRUTHS = {
    "shared_unet": dict(
        codes=[],
        other=["norm-bounded"],
        level="hard",
        kind="image",
        watch="SharedUNet.forward:x",
        why="each stage acts four times by 1/4, skips are means",
    ),
    "pooled": dict(
        codes=[],
        other=["norm-bounded"],
        loops=6,
        level="hard",
        kind="image",
        watch="PooledViT.forward:x",
        why="1/N while the number of tokens falls",
    ),
    "in_a_slice": dict(
        codes=["unscaled-residual"],
        other=["growth-unexplained"],
        loops=9,
        level="hard",
        kind="hidden",
        watch="ClsViT.forward:x",
        place={"unscaled-residual": ["new[:, 1:] += |mix"]},
        why="full updates of the patches, in place through a view, which the documentation says is not followed; to pass over the growth is wrong",
    ),
    "boxes": dict(
        codes=[],
        may=["dead-branch", "truncated-gradient", "norm-bounded"],
        loops=6,
        level="hard",
        kind="refinement",
        watch="BoxDecoder.forward:tgt",
        why="three branches by 1/N; the boxes are a second state, which stands still at first and is detached as in the papers",
    ),
    "rectified": dict(
        codes=["dead-branch"],
        loops=8,
        level="medium",
        kind="sampler",
        watch="RectifiedFlow.forward:z",
        why="the velocity starts at zero; later it is taken by dt = 1/N",
    ),
    "dit": dict(
        codes=["dead-branch", "unscaled-residual"],
        loops=8,
        layers=1,
        level="hard",
        kind="gate",
        watch="LoopedDiT.forward:x",
        why="gates of zero that every visit shares: what they open to is added N times",
    ),
    "dit_scaled": dict(
        codes=["dead-branch"],
        loops=8,
        layers=1,
        level="medium",
        kind="gate",
        watch="LoopedDiT.forward:x",
        why="the same by 1/N",
    ),
    "by_layers": dict(
        codes=["unscaled-residual"],
        law="linear",
        loops=8,
        level="hard",
        kind="integrator",
        watch="odeint_rk4:y",
        place={"unscaled-residual": ["y = y + h * (k1|net"]},
        why="steps of one: the time is the number of visits",
    ),
    "adaptive": dict(
        codes=[],
        may=["halts-early"],
        level="hard",
        kind="integrator",
        watch="Adaptive.forward:y",
        why="the time is one, however many steps it takes",
    ),
    "phantom": dict(
        codes=["truncated-gradient"],
        may=["norm-bounded"],
        level="hard",
        kind="equilibrium",
        watch="Phantom.forward:z",
        why="16 visits without gradient and 4 with; a contraction",
    ),
}
