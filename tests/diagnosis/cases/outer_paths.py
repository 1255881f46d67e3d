"""Paths beside the block: U-net skips from early to late visits (speed-run GPTs), hyper-connections with two streams, the embedding mixed in by two
factors, a highway gate, momentum. Branches have 1/N where nothing else is said. `unet` adds early states at weight 1: the stream is 5 times itself
after 8 visits, and eps does not change that; `unet_right` weighs them by 1/8.
"""

import torch
import torch.nn.functional as F
from torch import nn

TRUTHS = {
    "unet": {
        "codes": "unscaled-injection",
        "or": "nested-skip",
        "law": None,
        "loops": 8,
        "layers": 1,
        "kind": "outer path",
        "mended": "unet_right",
    },
    "unet_right": {"codes": "", "law": "bounded", "loops": 8, "layers": 1, "kind": "outer path", "hard": "look-alike"},
    "hyper": {"codes": "unscaled-residual", "law": "linear", "loops": 8, "kind": "outer path", "mended": "hyper_right"},
    "hyper_right": {"codes": "", "law": "bounded", "loops": 8, "kind": "outer path"},
    "x0_ones": {
        "codes": "unscaled-injection",
        "law": "linear",
        "loops": 8,
        "layers": 1,
        "kind": "outer path",
        "mended": "x0_zero",
    },
    "x0_zero": {"codes": "", "law": "bounded", "loops": 8, "layers": 1, "kind": "outer path", "hard": "look-alike"},
    "x0_half": {
        "codes": "norm-bounded",
        "law": "bounded",
        "loops": 8,
        "layers": 1,
        "kind": "outer path",
        "hard": "look-alike",
    },
    "highway": {"codes": "norm-bounded", "law": "bounded", "loops": 10, "kind": "outer path"},
}


class Half(nn.Module):
    """A branch without its skip: a norm, a depth-wise mixer over time, an MLP."""

    def __init__(self, d=48):
        super().__init__()
        self.norm, self.mix = nn.RMSNorm(d), nn.Conv1d(d, d, 3, padding=1, groups=d)
        self.up, self.down = nn.Linear(d, 3 * d), nn.Linear(3 * d, d)

    def forward(self, x):
        y = self.norm(x)
        return self.down(F.relu(self.up(y + self.mix(y.transpose(1, 2)).transpose(1, 2))).square())


class UNet(nn.Module):
    def __init__(self, weight, num_loops=8, d=48):
        super().__init__()
        self.embed, self.branch, self.num_loops = nn.Embedding(64, d), Half(d), num_loops
        self.skip_weights, self.head = nn.Parameter(torch.full((num_loops // 2,), weight)), nn.Linear(d, 64)

    def forward(self, ids):
        x, held = self.embed(ids), []
        half = self.num_loops // 2
        for i in range(self.num_loops):
            if i >= half and held:
                x = x + self.skip_weights[(i - half) % len(self.skip_weights)] * held.pop()
            x = x + self.branch(x) / self.num_loops
            if i < half:
                held.append(x)
        return self.head(x)


class Hyper(nn.Module):
    """Static hyper-connections: read one stream in turn, write into all of them, mix them by a matrix that starts at one."""

    def __init__(self, beta, n=2, visits=8, d=48):
        super().__init__()
        self.embed, self.branch, self.visits, self.head = nn.Embedding(64, d), Half(d), visits, nn.Linear(d, 64)
        self.mix = nn.Parameter(torch.eye(n))
        self.read = nn.Parameter(torch.full((n,), 1 / n))
        self.write = nn.Parameter(torch.full((n,), float(beta)))

    def forward(self, ids):
        streams = self.embed(ids)[None].expand(len(self.read), -1, -1, -1)
        for _ in range(self.visits):
            y = self.branch(torch.einsum("n,nbtd->btd", self.read, streams))
            streams = torch.einsum("mn,nbtd->mbtd", self.mix, streams) + self.write[:, None, None, None] * y
        return self.head(streams.mean(0))


class X0(nn.Module):
    def __init__(self, keep, add, n_loop=8, d=48):
        super().__init__()
        self.embed, self.branch, self.n_loop, self.head = nn.Embedding(64, d), Half(d), n_loop, nn.Linear(d, 64)
        self.lambdas = nn.Parameter(torch.tensor([float(keep), float(add)]))

    def forward(self, ids):
        x = x0 = F.rms_norm(self.embed(ids), (48,))
        for _ in range(self.n_loop):
            x = self.lambdas[0] * x + self.lambdas[1] * x0
            x = x + self.branch(x) / self.n_loop
        return self.head(x)


class Highway(nn.Module):
    def __init__(self, layers=10, d=48):
        super().__init__()
        self.embed, self.branch, self.gate, self.layers = nn.Embedding(64, d), Half(d), nn.Linear(d, d), layers
        nn.init.constant_(self.gate.bias, -2.0)
        self.head = nn.Linear(d, 64)

    def forward(self, ids):
        x = self.embed(ids)
        for _ in range(self.layers):
            g = torch.sigmoid(self.gate(F.layer_norm(x, (48,))))
            x = (1 - g) * x + g * self.branch(x)
        return self.head(x)


def unet():
    torch.manual_seed(0)
    return UNet(1.0)


def unet_right():
    torch.manual_seed(0)
    return UNet(1 / 8)


def hyper():
    torch.manual_seed(0)
    return Hyper(1.0)


def hyper_right():
    torch.manual_seed(0)
    return Hyper(1 / 8)


def x0_ones():
    torch.manual_seed(0)
    return X0(1, 1)


def x0_zero():
    torch.manual_seed(0)
    return X0(1, 0)


def x0_half():
    torch.manual_seed(0)
    return X0(0.5, 0.5)


def highway():
    torch.manual_seed(0)
    return Highway()
