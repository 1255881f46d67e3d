"""Recurrent CNN for small images: the same conv-bn-relu at every step, and a spectral operator on a line (a Fourier layer, complex weights)."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class ConvNormAct(nn.Sequential):
    def __init__(self, cin, cout, stride=1):
        super().__init__(
            nn.Conv2d(cin, cout, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(cout), nn.ReLU(inplace=True)
        )


class RecurrentCNN(nn.Module):
    def __init__(self, width=24, num_classes=10, num_steps=6):
        super().__init__()
        self.stem = ConvNormAct(3, width, stride=2)
        self.cell = ConvNormAct(width, width)
        self.num_steps = num_steps
        for conv in (self.stem[0], self.cell[0]):
            nn.init.xavier_normal_(conv.weight)
        self.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))

    def forward(self, x):
        x = self.stem(x)
        for _ in range(self.num_steps):
            x = self.cell(x)
        return self.classifier(x)


class SpectralConv1d(nn.Module):
    def __init__(self, in_channels, out_channels, modes1):
        super().__init__()
        self.out_channels, self.modes1 = out_channels, modes1
        self.scale = 1 / in_channels**0.5
        self.weights1 = nn.Parameter(self.scale * torch.randn(in_channels, out_channels, modes1, dtype=torch.cfloat))

    def compl_mul1d(self, input, weights):
        return torch.einsum("bix,iox->box", input, weights)

    def forward(self, x):
        x_ft = torch.fft.rfft(x)
        out_ft = torch.zeros(x.shape[0], self.out_channels, x.size(-1) // 2 + 1, dtype=torch.cfloat)
        out_ft[:, :, : self.modes1] = self.compl_mul1d(x_ft[:, :, : self.modes1], self.weights1)
        return torch.fft.irfft(out_ft, n=x.size(-1))


class FNO1d(nn.Module):
    """Fourier neural operator with one shared layer, T of them on unit time."""

    def __init__(self, modes=8, width=24, T=8):
        super().__init__()
        self.T, self.width = T, width
        self.p = nn.Linear(2, self.width)
        self.conv, self.w = SpectralConv1d(width, width, modes), nn.Conv1d(width, width, 1)
        self.mlp1, self.mlp2 = nn.Conv1d(width, width, 1), nn.Conv1d(width, width, 1)
        self.q = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, 1))

    def get_grid(self, shape):
        gridx = torch.linspace(0, 1, shape[1]).reshape(1, shape[1], 1)
        return gridx.repeat([shape[0], 1, 1])

    def forward(self, x):
        x = torch.cat((x, self.get_grid(x.shape)), dim=-1)
        x = self.p(x).permute(0, 2, 1)
        dt = 1 / self.T
        for _ in range(self.T):
            x1 = self.mlp2(F.gelu(self.mlp1(self.conv(x))))
            x2 = self.w(x)
            x = x + dt * F.gelu(x1 + x2)
        return self.q(x.permute(0, 2, 1))


def recurrent_cnn(num_steps=6):
    return RecurrentCNN(num_steps=num_steps), torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(101))


def fourier_operator(T=8):
    return FNO1d(T=T), torch.randn(2, 32, 1, generator=torch.Generator().manual_seed(102)).cumsum(1) / 4


TRUTHS = {
    "recurrent_cnn": dict(
        codes=["train-eval-differ"],
        may=["norm-bounded"],
        loops=6,
        layers=1,
        watch="RecurrentCNN.forward:x",
        kind="mode",
        level="medium",
        why="one BatchNorm for all steps: in training it norms every visit, in evaluation running statistics of 0 and 1 let the state shrink",
    ),
    "fourier_operator": dict(
        codes=[],
        loops=8,
        watch="FNO1d.forward:x",
        kind="sequence",
        level="medium",
        why="the spectral branch and the pointwise one carry 1/T together; complex weights",
    ),
}
