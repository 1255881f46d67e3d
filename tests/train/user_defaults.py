"""A factory with defaults of its own."""

from torch import nn


def make_model(loops, width=7):
    return nn.Linear(width, loops)
