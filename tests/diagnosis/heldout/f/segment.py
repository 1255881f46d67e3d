"""Segmentation: U-Nets that look at their picture more than once."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class DoubleConv(nn.Module):
    """(convolution => [GN] => ReLU) * 2"""

    def __init__(self, in_channels, out_channels, mid_channels=None):
        super().__init__()
        if not mid_channels:
            mid_channels = out_channels
        self.double_conv = nn.Sequential(
            nn.Conv2d(in_channels, mid_channels, kernel_size=3, padding=1, bias=False),
            nn.GroupNorm(4, mid_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(mid_channels, out_channels, kernel_size=3, padding=1, bias=False),
            nn.GroupNorm(4, out_channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, x):
        return self.double_conv(x)


class Down(nn.Module):
    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), DoubleConv(in_channels, out_channels))

    def forward(self, x):
        return self.maxpool_conv(x)


class Up(nn.Module):
    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.conv = DoubleConv(in_channels, out_channels, in_channels // 2)

    def forward(self, x1, x2):
        x1 = self.up(x1)
        diffY, diffX = x2.size()[2] - x1.size()[2], x2.size()[3] - x1.size()[3]
        x1 = F.pad(x1, [diffX // 2, diffX - diffX // 2, diffY // 2, diffY - diffY // 2])
        return self.conv(torch.cat([x2, x1], dim=1))


class Bottleneck(nn.Module):
    def __init__(self, ch, T):
        super().__init__()
        self.norm, self.T = nn.GroupNorm(4, ch), T
        self.mix, self.out = nn.Conv2d(ch, ch, 3, padding=1), nn.Conv2d(ch, ch, 1)

    def forward(self, x):
        for _ in range(self.T):
            x = x + self.out(F.silu(self.mix(self.norm(x)))) / self.T
        return x


class ThinkingUNet(nn.Module):
    """U-Net whose bottleneck iterates T times."""

    def __init__(self, n_channels=3, n_classes=2, base=8, T=8):
        super().__init__()
        self.inc = DoubleConv(n_channels, base)
        self.down1, self.down2 = Down(base, 2 * base), Down(2 * base, 4 * base)
        self.think = Bottleneck(4 * base, T)
        self.up1, self.up2 = Up(6 * base, 2 * base), Up(3 * base, base)
        self.outc = nn.Conv2d(base, n_classes, kernel_size=1)

    def forward(self, x):
        x1 = self.inc(x)
        x2 = self.down1(x1)
        x3 = self.down2(x2)
        x4 = self.think(x3)
        assert x4.shape == x3.shape
        x = self.up1(x3, x2)
        x = self.up2(x, x1)
        return self.outc(x)


class RefiningUNet(nn.Module):
    """Cold-diffusion sampler: the whole U-Net is the velocity, steps of 1/K from noise to picture, time as one more plane."""

    def __init__(self, ch=3, base=8, K=6):
        super().__init__()
        self.K = K
        self.inc, self.down = DoubleConv(ch + 1, base), Down(base, 2 * base)
        self.up, self.outc = Up(3 * base, base), nn.Conv2d(base, ch, 1)

    def velocity(self, x, t):
        a = self.inc(torch.cat([x, t.expand(x.shape[0], 1, *x.shape[-2:])], 1))
        return self.outc(self.up(self.down(a), a))

    def forward(self, x):
        dt = 1.0 / self.K
        for i in range(self.K):
            x = x + self.velocity(x, torch.full((1, 1, 1, 1), i * dt)) * dt
        return x


def _scan(side=16):
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(31))


def thinking_unet(T=8):
    return ThinkingUNet(T=T), _scan()


def refining_unet(K=6):
    return RefiningUNet(K=K), _scan()


TRUTHS = {
    "thinking_unet": dict(
        codes=["idle-loop"],
        loops=8,
        watch="Bottleneck.forward:x",
        kind="idle loop",
        level="medium",
        why="up1 reads x3, not x4: the output is the same to the last bit without the bottleneck, which gets no gradient",
    ),
    "refining_unet": dict(
        codes=[],
        loops=6,
        watch="RefiningUNet.forward:x",
        kind="sampler",
        level="medium",
        why="x + velocity/K; the U-Net inside has skips of its own by concatenation and norms that the stream does not pass",
    ),
}
