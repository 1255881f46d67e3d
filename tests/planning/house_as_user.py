"""The house model as somebody's own, so that what is counted on it can be held against the formulas."""

from torch import nn

from loopscale import LoopedTransformer, ModelConfig


def make_model(loops, layers, width, vocab_size, rule, strength, base_layers):
    size = {"loops": loops, "layers": layers, "width": width, "vocab_size": vocab_size, "base_layers": base_layers}
    return LoopedTransformer(ModelConfig(**size, rule=rule, strength=strength))


class Reads(nn.Module):
    """Reads a value of its input, which fake tensors do not have."""

    def __init__(self, loops, width):
        super().__init__()
        self.loops, self.layer = loops, nn.Linear(width, width)

    def forward(self, x):
        assert float(x.sum()) == float(x.sum())
        for _ in range(self.loops):
            x = x + self.layer(x) / self.loops
        return x.square().mean()


def reading(loops, width):
    return Reads(loops, width)
