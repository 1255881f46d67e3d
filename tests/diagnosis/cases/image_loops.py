"""Images: a looped ViT with LayerScale, a tied convolution net with recall (Deep Thinking), a residual one with BatchNorm in the loop. LayerScale
that starts at 1e-4 (`vit`) is right and no idle loop; at 1 (`vit_ones`) it is no scale at all. `thinking` has no norm: whether its map expands
was computed beforehand by power iteration: radius 1.7, and 1.3 with the norm, which bounds the size and not the differences. `stem` has BatchNorm before the loop only.
"""

import torch
from torch import nn

TRUTHS = {
    "vit": {"codes": "", "law": "bounded", "loops": 6, "layers": 1, "kind": "image", "hard": "look-alike"},
    "vit_ones": {
        "codes": "unscaled-residual",
        "law": "linear",
        "loops": 6,
        "layers": 1,
        "kind": "image",
        "mended": "vit_sixth",
    },
    "vit_sixth": {"codes": "", "law": "bounded", "loops": 6, "layers": 1, "kind": "image"},
    "thinking": {"codes": "expanding-map", "law": "exponential", "loops": 7, "kind": "image"},
    "thinking_normed": {"codes": "norm-bounded expanding-map", "law": "bounded", "loops": 7, "kind": "image"},
    "batch_norm": {"codes": "train-eval-differ", "law": "bounded", "loops": 5, "kind": "image"},
    "stem": {"codes": "", "law": "bounded", "loops": 5, "kind": "image", "hard": "look-alike"},
}


class ViT(nn.Module):
    def __init__(self, init_values, repeats=6, d=48):
        super().__init__()
        self.patch, self.cls = nn.Conv2d(3, d, 4, 4), nn.Parameter(torch.randn(1, 1, d) * 0.02)
        self.pos = nn.Parameter(torch.randn(1, 17, d) * 0.02)
        self.norm1, self.norm2, self.norm = (nn.LayerNorm(d) for _ in range(3))
        self.attn = nn.MultiheadAttention(d, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d))
        self.ls1, self.ls2 = (nn.Parameter(torch.full((d,), init_values)) for _ in range(2))
        self.head, self.repeats = nn.Linear(d, 10), repeats

    def forward(self, image):
        x = self.patch(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.pos
        for _ in range(self.repeats):
            y = self.norm1(x)
            x = x + self.ls1 * self.attn(y, y, y)[0]
            x = x + self.ls2 * self.mlp(self.norm2(x))
        return self.head(self.norm(x)[:, 0])


class Basic(nn.Module):
    def __init__(self, w):
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(w, w, 3, padding=1, bias=False) for _ in range(2))
        nn.init.kaiming_normal_(self.conv1.weight)
        nn.init.kaiming_normal_(self.conv2.weight)

    def forward(self, x):
        return torch.relu(x + self.conv2(torch.relu(self.conv1(x))))


class Thinking(nn.Module):
    """Schwarzschild's nets with recall: the image is read beside the thought at every iteration."""

    def __init__(self, normed=False, iters=7, w=16):
        super().__init__()
        self.project, self.recall = nn.Conv2d(3, w, 3, padding=1), nn.Conv2d(w + 3, w, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(self.recall.weight)
        self.block, self.head = Basic(w), nn.Conv2d(w, 2, 3, padding=1)
        self.norm, self.iters = nn.GroupNorm(4, w) if normed else nn.Identity(), iters

    def forward(self, x):
        thought = torch.relu(self.project(x))
        for _ in range(self.iters):
            thought = self.norm(self.block(self.recall(torch.cat([thought, x], 1))))
        return self.head(thought)


class Residual(nn.Module):
    def __init__(self, inside, num_steps=5, w=16):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, w, 3, padding=1), nn.Identity() if inside else nn.BatchNorm2d(w))
        self.bn = nn.BatchNorm2d(w) if inside else nn.GroupNorm(1, w)
        self.conv1, self.conv2 = nn.Conv2d(w, w, 3, padding=1), nn.Conv2d(w, w, 3, padding=1)
        self.fc, self.num_steps = nn.Linear(w, 10), num_steps

    def forward(self, x):
        x = self.stem(x)
        for _ in range(self.num_steps):
            x = x + self.conv2(torch.relu(self.conv1(self.bn(x)))) / self.num_steps
        return self.fc(x.mean((2, 3)))


def vit():
    torch.manual_seed(0)
    return ViT(1e-4), torch.randn(2, 3, 16, 16)


def vit_ones():
    torch.manual_seed(0)
    return ViT(1.0), torch.randn(2, 3, 16, 16)


def vit_sixth():
    torch.manual_seed(0)
    return ViT(1 / 6), torch.randn(2, 3, 16, 16)


def thinking():
    torch.manual_seed(0)
    return Thinking(), torch.randn(2, 3, 12, 12)


def thinking_normed():
    torch.manual_seed(0)
    return Thinking(True), torch.randn(2, 3, 12, 12)


def batch_norm():
    torch.manual_seed(0)
    return Residual(True), torch.randn(4, 3, 12, 12)


def stem():
    torch.manual_seed(0)
    return Residual(False), torch.randn(4, 3, 12, 12)
