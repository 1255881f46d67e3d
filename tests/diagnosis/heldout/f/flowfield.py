"""Optical flow by recurrent refinement. Small version: the correlation is looked up once, a ConvGRU refines, a head reads the flow."""

import argparse

import torch
import torch.nn as nn
import torch.nn.functional as F


class ConvGRU(nn.Module):
    def __init__(self, hidden_dim=24, input_dim=40):
        super().__init__()
        self.convz = nn.Conv2d(hidden_dim + input_dim, hidden_dim, 3, padding=1)
        self.convr = nn.Conv2d(hidden_dim + input_dim, hidden_dim, 3, padding=1)
        self.convq = nn.Conv2d(hidden_dim + input_dim, hidden_dim, 3, padding=1)

    def forward(self, h, x):
        hx = torch.cat([h, x], dim=1)
        z = torch.sigmoid(self.convz(hx))
        r = torch.sigmoid(self.convr(hx))
        q = torch.tanh(self.convq(torch.cat([r * h, x], dim=1)))
        h = (1 - z) * h + z * q
        return h


class FlowHead(nn.Module):
    def __init__(self, input_dim=24, hidden_dim=32):
        super().__init__()
        self.conv1 = nn.Conv2d(input_dim, hidden_dim, 3, padding=1)
        self.conv2 = nn.Conv2d(hidden_dim, 2, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.conv2(self.relu(self.conv1(x)))


class Encoder(nn.Module):
    def __init__(self, output_dim):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 16, 5, stride=2, padding=2), nn.InstanceNorm2d(16)
        self.conv2 = nn.Conv2d(16, output_dim, 3, stride=2, padding=1)

    def forward(self, x):
        return self.conv2(F.relu(self.norm1(self.conv1(x))))


class CorrBlock:
    def __init__(self, fmap1, fmap2, radius=2):
        self.radius = radius
        self.fmap1, self.fmap2 = fmap1, F.pad(fmap2, [radius] * 4)

    def __call__(self):
        b, c, h, w = self.fmap1.shape
        windows = F.unfold(self.fmap2, 2 * self.radius + 1).view(b, c, -1, h, w)
        return (self.fmap1.unsqueeze(2) * windows).sum(1) / c**0.5


class RAFTSmall(nn.Module):
    def __init__(self, args):
        super().__init__()
        self.args = args
        self.hidden_dim = hdim = 24
        self.context_dim = cdim = 16
        self.fnet, self.cnet = Encoder(24), Encoder(hdim + cdim)
        self.convc = nn.Conv2d(25, 24, 1)
        self.gru, self.flow_head = ConvGRU(hdim, cdim + 24), FlowHead(hdim)

    def forward(self, image1, image2, iters=None, test_mode=True):
        iters = iters or self.args.iters
        fmap1, fmap2 = self.fnet(image1), self.fnet(image2)
        corr = F.relu(self.convc(CorrBlock(fmap1, fmap2)()))
        net, inp = torch.split(self.cnet(image1), [self.hidden_dim, self.context_dim], dim=1)
        net, inp = torch.tanh(net), torch.relu(inp)
        flow_predictions = []
        for _ in range(iters):
            if self.args.warm:
                net = self.gru(net, torch.cat([inp, corr], dim=1))
                flow = self.flow_head(net)
            else:
                hidden = self.gru(net, torch.cat([inp, corr], dim=1))
                flow = self.flow_head(hidden)
            flow_predictions.append(F.interpolate(4 * flow, scale_factor=4, mode="bilinear", align_corners=True))
        return flow_predictions[-1] if test_mode else flow_predictions


def _args(**given):
    parser = argparse.ArgumentParser()
    parser.add_argument("--iters", type=int, default=8)
    parser.add_argument("--warm", type=bool, default=True)
    args = parser.parse_args([])
    vars(args).update(given)
    return args


def _frames():
    g = torch.Generator().manual_seed(81)
    first = torch.randn(2, 3, 32, 32, generator=g)
    return first, torch.roll(first, 2, -1)


def raft_small(iters=8):
    return RAFTSmall(_args(iters=iters)), _frames()


def raft_cold(iters=8):
    return RAFTSmall(_args(iters=iters, warm=False)), _frames()


TRUTHS = {
    "raft_small": dict(
        codes=[],
        may=["norm-bounded"],
        loops=8,
        watch="RAFTSmall.forward:net",
        kind="refinement",
        level="medium",
        why="a gated mean of the state and a tanh: bounded. Context and correlation enter the gates at every visit, not the state",
    ),
    "raft_cold": dict(
        codes=["restarts"],
        watch="RAFTSmall.forward:net",
        kind="restart",
        level="medium",
        why="every iteration hands `net` of before the loop to the GRU; the eight predictions are equal to the last bit",
    ),
}
