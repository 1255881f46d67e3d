"""Models that were not written for a stack: some can be run K at once, the others say why not."""

import torch
from torch import nn

from loopscale import Loop
from loopscale.nn import ScaledResidual


def make_batch(split, step, seed, batch_size):
    x = torch.randn(batch_size, 4)  # from the global generator: each member's own
    return {"x": x, "labels": (x.sum(-1) > 0).long(), "note": "a value that is no tensor"}


class Net(nn.Module):
    def __init__(self, loops, scale, width=8):
        super().__init__()
        self.embed, self.head = nn.Linear(4, width), nn.Linear(width, 2)
        self.loop = Loop(
            nn.Sequential(ScaledResidual(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width)))), loops
        )
        self.scale, self.calls, self.drop = scale, 0, nn.Dropout(0.0)

    def forward(self, x, labels, note):
        h = self.loop(self.drop(self.embed(x)) * self.scale)
        return nn.functional.cross_entropy(self.head(h), labels)


def make_model(loops, residual_scale):
    return Net(loops, residual_scale)


class Attending(Net):
    """An attention of torch's own, a tied weight, a frozen one, an unused one, a buffer that stays."""

    def __init__(self, loops, scale):
        super().__init__(loops, scale)
        del self.loop
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.tied = self.embed
        self.register_buffer("fixed", torch.randn(8))
        self.embed.bias.requires_grad_(False)
        self.unused = nn.Linear(3, 3)

    def forward(self, x, labels, note):
        h = self.embed(x)[:, None] + self.tied(x)[:, None].roll(1, 0) + self.fixed
        h = h + self.scale * self.attention(h, h, h, need_weights=False)[0]
        return nn.functional.cross_entropy(self.head(h[:, 0]), labels)


def attending(loops, residual_scale):
    return Attending(loops, residual_scale)


class Counting(Net):
    def forward(self, x, labels, note):
        self.calls += 1
        return super().forward(x, labels, note)


def counting(loops, residual_scale):
    return Counting(loops, residual_scale)


def dropping(loops, residual_scale):
    net = Net(loops, residual_scale)
    net.drop.p = 0.1
    return net


def unlike(loops, residual_scale, seed):
    return Net(loops, residual_scale * (1 + seed))


class Normed(Net):
    def __init__(self, loops, scale):
        super().__init__(loops, scale)
        self.drop = nn.BatchNorm1d(8)


def normed(loops, residual_scale):
    return Normed(loops, residual_scale)


class Deciding(Net):
    def forward(self, x, labels, note):
        loss = super().forward(x, labels, note)
        return loss * 2 if loss.item() > 0.1 else loss


def deciding(loops, residual_scale):
    return Deciding(loops, residual_scale)


def hiding(loops, residual_scale, seed):
    net = Net(loops, residual_scale)
    hidden = 1.0 + seed
    net.head.register_forward_hook(lambda module, inputs, output: output * hidden)
    return net
