"""Pictures and samplers: windows that shift, the old residual network made to loop, 1/sqrt(depth), Langevin steps, a condition that is added."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def window_partition(x: Tensor, w: int) -> Tensor:
    B, H, W, C = x.shape
    return x.view(B, H // w, w, W // w, w, C).permute(0, 1, 3, 2, 4, 5).reshape(-1, w * w, C)


def window_reverse(windows: Tensor, w: int, H: int, W: int) -> Tensor:
    B = windows.shape[0] // (H * W // w // w)
    return windows.view(B, H // w, W // w, w, w, -1).permute(0, 1, 3, 2, 4, 5).reshape(B, H, W, -1)


class WindowAttention(nn.Module):
    def __init__(self, dim: int, window: int, heads: int = 2) -> None:
        super().__init__()
        self.qkv, self.proj, self.heads = nn.Linear(dim, dim * 3), nn.Linear(dim, dim), heads
        self.relative_position_bias = nn.Parameter(torch.zeros(heads, window**2, window**2))

    def forward(self, x: Tensor) -> Tensor:
        B_, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B_, N, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        attn = (q * (C // self.heads) ** -0.5) @ k.transpose(-2, -1) + self.relative_position_bias
        return self.proj((attn.softmax(-1) @ v).transpose(1, 2).reshape(B_, N, C))


class RecurrentSwin(nn.Module):
    """One Swin block for every depth; every second visit looks through windows that are shifted by half."""

    def __init__(self, depth: int = 6, dim: int = 24, window: int = 4) -> None:
        super().__init__()
        self.depth, self.window = depth, window
        self.patch_embed = nn.Conv2d(3, dim, kernel_size=4, stride=4)
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(dim), WindowAttention(dim, window), nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.register_buffer("residual_weight", torch.tensor(1.0 / depth))
        self.head = nn.Linear(dim, 10)

    def attend(self, x: Tensor, shift: int) -> Tensor:
        _, H, W, _ = x.shape
        h = torch.roll(self.norm1(x), shifts=(-shift, -shift), dims=(1, 2))
        h = window_reverse(self.attn(window_partition(h, self.window)), self.window, H, W)
        return torch.roll(h, shifts=(shift, shift), dims=(1, 2))

    def forward(self, img: Tensor) -> Tensor:
        x = self.patch_embed(img).permute(0, 2, 3, 1)
        for i in range(self.depth):
            x = x + self.residual_weight * self.attend(x, 0 if i % 2 == 0 else self.window // 2)
            x = x + self.residual_weight * self.mlp(self.norm2(x))
        return self.head(x.mean((1, 2)))


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, planes):
        super().__init__()
        self.conv1 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn1 = nn.GroupNorm(4, planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.GroupNorm(4, planes)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class LoopedResNet(nn.Module):
    """A stage of the old residual network with one block for all its depth; group norms, so that batches of one work."""

    def __init__(self, blocks=9, planes=16):
        super().__init__()
        self.conv1, self.layer1 = nn.Conv2d(3, planes, 3, stride=2, padding=1), BasicBlock(planes)
        self.fc, self.blocks = nn.Linear(planes, 10), blocks

    def forward(self, x):
        x = self.conv1(x)
        for _ in range(self.blocks):
            x = self.layer1(x)
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Tiny(nn.Module):
    """DeiT's depth was 12 and its rule 1/sqrt(2 * 12); here `depth` counts the visits of one block."""

    def __init__(self, depth=25, embed_dim=32, mlp_ratio=3.0, drop_rate=0.0):
        super().__init__()
        self.patch = nn.Unfold(8, stride=8)
        self.proj, self.cls_token = nn.Linear(192, embed_dim), nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.randn(1, 17, embed_dim) * 0.02)
        self.norm1, self.norm2, self.norm = (nn.LayerNorm(embed_dim) for _ in range(3))
        self.attn = nn.MultiheadAttention(embed_dim, 4, batch_first=True)
        self.fc1, self.fc2 = (
            nn.Linear(embed_dim, int(mlp_ratio * embed_dim)),
            nn.Linear(int(mlp_ratio * embed_dim), embed_dim),
        )
        self.drop, self.head, self.depth = nn.Dropout(drop_rate), nn.Linear(embed_dim, 10), depth
        for m in (self.fc1, self.fc2):
            nn.init.kaiming_normal_(m.weight)
        self.scale = (2.0 * depth) ** -0.5

    def forward_features(self, x):
        x = self.proj(self.patch(x).transpose(1, 2))
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + self.pos_embed
        for _ in range(self.depth):
            y = self.norm1(x)
            x = x + self.scale * self.drop(self.attn(y, y, y, need_weights=False)[0])
            x = x + self.scale * self.drop(self.fc2(F.gelu(self.fc1(self.norm2(x)))))
        return self.norm(x)[:, 0]

    def forward(self, x):
        return self.head(self.forward_features(x))


class ScoreNet(nn.Module):
    def __init__(self, dim=8, hidden=48):
        super().__init__()
        self.lin_in, self.lin_t, self.lin_out = nn.Linear(dim, hidden), nn.Linear(1, hidden), nn.Linear(hidden, dim)

    def forward(self, x, sigma):
        return -x + self.lin_out(torch.tanh(self.lin_in(x) + self.lin_t(sigma.log())))


class Langevin(nn.Module):
    """Annealed Langevin dynamics as a layer; the whole time is one, whatever the number of steps. The noise is part of the model."""

    def __init__(self, steps=10):
        super().__init__()
        self.score, self.readout = ScoreNet(), nn.Linear(8, 3)
        self.register_buffer("sigmas", torch.logspace(0, -1, steps))

    def forward(self, x):
        step = 1 / len(self.sigmas)
        for sigma in self.sigmas:
            noise = torch.randn_like(x)
            x = x + step * self.score(x, sigma.view(1, 1)) + (2 * step) ** 0.5 * sigma * noise
        return self.readout(x)


class Denoiser(nn.Module):
    """A denoiser of tokens whose one block runs `depth` times; class and noise level are one vector, added to the tokens before every visit."""

    def __init__(self, depth=8, dim=32, classes=10):
        super().__init__()
        self.depth, self.x_in, self.x_out = depth, nn.Linear(6, dim), nn.Linear(dim, 6)
        self.y_embed, self.t_embed = (
            nn.Embedding(classes, dim),
            nn.Sequential(nn.Linear(1, dim), nn.SiLU(), nn.Linear(dim, dim)),
        )
        self.norm_a, self.norm_b = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn, self.ffn = (
            nn.MultiheadAttention(dim, 2, batch_first=True),
            nn.Sequential(nn.Linear(dim, 2 * dim), nn.SiLU(), nn.Linear(2 * dim, dim)),
        )

    def forward(self, x, noise, label):
        h = self.x_in(x)
        cond = (self.y_embed(label) + self.t_embed(noise[:, None])).unsqueeze(1)
        for _ in range(self.depth):
            h = h + cond
            a = self.norm_a(h)
            h = h + self.attn(a, a, a)[0] / self.depth
            h = h + self.ffn(self.norm_b(h)) / self.depth
        return self.x_out(h)


class ZeroInitUpsampler(nn.Module):
    """Residual-in-residual without surprises: the last convolution of the branch starts at zero, the branch is divided by the repeats."""

    def __init__(self, repeats=6, c=16):
        super().__init__()
        self.repeats, self.head, self.tail = (
            repeats,
            nn.Conv2d(1, c, 3, padding=1),
            nn.Sequential(nn.Conv2d(c, 4, 3, padding=1), nn.PixelShuffle(2)),
        )
        self.body = nn.Sequential(nn.Conv2d(c, c, 3, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(c, c, 3, padding=1))
        nn.init.zeros_(self.body[-1].weight), nn.init.zeros_(self.body[-1].bias)

    def forward(self, lr):
        feat = self.head(lr)
        for _ in range(self.repeats):
            feat = feat + self.body(feat).div(self.repeats)
        return self.tail(feat)


def seeded(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(77))


def swin(depth=6):
    return RecurrentSwin(depth), seeded(2, 3, 32, 32)


def resnet(blocks=9):
    return LoopedResNet(blocks), seeded(3, 3, 24, 24)


def deit(depth=25):
    return Tiny(depth), seeded(2, 3, 32, 32)


def langevin(steps=10):
    return Langevin(steps), seeded(16, 8)


def denoiser(depth=8):
    return Denoiser(depth), (seeded(4, 9, 6), torch.tensor([0.1, 0.3, 0.6, 0.9]), torch.tensor([1, 4, 7, 2]))


def upsampler(repeats=6):
    return ZeroInitUpsampler(repeats), seeded(2, 1, 16, 16)


TRUTHS = {
    "swin": dict(
        codes=[],
        loops=6,
        layers=1,
        level="medium",
        kind="image",
        watch="RecurrentSwin.forward:x",
        why="1/N in a buffer, windows that shift every second time",
    ),
    "resnet": dict(
        codes=["unscaled-residual"],
        loops=9,
        layers=1,
        level="medium",
        kind="image",
        watch="LoopedResNet.forward:x",
        place={"unscaled-residual": ["out += identity|layer1"]},
        why="full updates that a ReLU behind the addition lets pile up on one side",
    ),
    "deit": dict(
        codes=["sqrt-scaled"],
        loops=25,
        layers=1,
        level="hard",
        kind="image",
        watch="Tiny.forward_features:x",
        place={
            "sqrt-scaled": [
                "x = x + self.scale * self.drop(self.attn|attn",
                "x = x + self.scale * self.drop(self.fc2|fc2",
            ]
        },
        why="1/sqrt(2 N)",
    ),
    "langevin": dict(
        codes=[],
        loops=10,
        level="hard",
        kind="sampler",
        watch="Langevin.forward:x",
        why="drift by 1/N, independent noise by its root: the size is the same at any number of steps",
    ),
    "denoiser": dict(
        codes=["unscaled-injection"],
        loops=8,
        layers=1,
        level="medium",
        kind="conditioning",
        watch="Denoiser.forward:h",
        place={"unscaled-injection": ["h = h + cond|y_embed|t_embed"]},
        why="class and level at full size at every visit; branches by 1/N",
    ),
    "upsampler": dict(
        codes=["dead-branch"],
        loops=6,
        layers=1,
        level="easy",
        kind="gate",
        watch="ZeroInitUpsampler.forward:feat",
        why="zero at first, 1/N later",
    ),
}
