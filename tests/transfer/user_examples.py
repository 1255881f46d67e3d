"""A model, batches and objectives that are not the library's: what a stranger would point `--model` at."""

import math

import torch
from torch import nn


class Looped(nn.Module):
    def __init__(self, inputs, loops, layers, width, outputs, scale):
        super().__init__()
        self.loops, self.scale = loops, scale
        self.embed = nn.Linear(inputs, width)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
            for _ in range(layers)
        )
        self.head = nn.Linear(width, outputs)

    def forward(self, x):
        x = self.embed(x)
        for _ in range(self.loops):
            for layer in self.layers:
                x = x + self.scale * layer(x)
        return self.head(x)


def make_model(loops, layers, width, residual_scale):
    """Classifies points of the plane: no tokens anywhere."""
    return Looped(2, loops, layers, width, 3, residual_scale)


def make_batch(split, step, seed, batch_size):
    generator = torch.Generator().manual_seed(1000 * seed + step + (split == "validation") * 10**6)
    points = torch.randn(batch_size, 2, generator=generator)
    return points, (points.prod(-1) > 0).long() + (points.norm(dim=-1) > 2).long()


def ignores(loops, layers, width, residual_scale):
    """Asks for the scale and does not use it."""
    return Looped(2, loops, layers, width, 3, 1.0)


def starts_at_zero(loops, layers, width, residual_scale):
    model = make_model(loops, layers, width, residual_scale)
    for layer in model.layers:
        nn.init.zeros_(layer[-1].weight)
        nn.init.zeros_(layer[-1].bias)
    return model


def objective(values):
    """A valley that stands still under the rule `looped` and moves with any other."""
    strength = values["residual_scale"] * values["loops"]
    return 2 + 0.05 * (math.log2(values["lr"]) + 6 + math.log2(strength)) ** 2 + 0.001 * values["seed"]


def sometimes(values):
    if values["lr"] > 0.02:
        raise RuntimeError("out of luck")
    return objective(values)


def always(values):
    raise RuntimeError("never works")


def deaf(loops, layers, width):
    return nn.Linear(2, 2)


def demanding(loops, secret, residual_scale):
    return nn.Linear(2, 2)


def broken(loops, residual_scale):
    raise ZeroDivisionError("no model today")


def no_module(loops, residual_scale):
    return 7


def wordy(values):
    return "good"


number = 3
