"""Models of a stranger's built on `Loop`: one gives its loop all that the plan says, the others forget some of it."""

from torch import nn

import loopscale as ls


class Looped(nn.Module):
    def __init__(self, loops, layers, width, vocab_size, **rule):
        super().__init__()
        self.wte, self.head = nn.Embedding(vocab_size, width), nn.Linear(width, vocab_size, bias=False)
        blocks = [ls.ScaledResidual(nn.Linear(width, width), nn.LayerNorm(width)) for _ in range(layers)]
        self.loop = ls.Loop(nn.Sequential(*blocks), loops, **rule)

    def forward(self, tokens, targets):
        logits = self.head(self.loop(self.wte(tokens)))
        # As in nanoGPT: `view` wants targets in one piece.
        return logits, nn.functional.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1))


def told_all(loops, layers, width, vocab_size, rule, strength, base_layers):
    return Looped(loops, layers, width, vocab_size, rule=rule, strength=strength, base_layers=base_layers)


def no_base(loops, layers, width, vocab_size, rule, strength):
    return Looped(loops, layers, width, vocab_size, rule=rule, strength=strength)


def no_strength(loops, layers, width, vocab_size, rule, base_layers):
    return Looped(loops, layers, width, vocab_size, rule=rule, base_layers=base_layers)


def one_visit(loops, layers, width, vocab_size, rule, strength, base_layers):
    return Looped(1, layers, width, vocab_size, rule=rule, strength=strength, base_layers=base_layers)


class Parts(nn.Module):
    def __init__(self, loops, width, vocab_size, scale):
        super().__init__()
        self.loops, self.wte, self.head = loops, nn.Embedding(vocab_size, width), nn.Linear(width, vocab_size)
        self.block = ls.ScaledResidual(nn.Linear(width, width), nn.LayerNorm(width), scale)

    def forward(self, tokens):
        x = self.wte(tokens)
        for _ in range(self.loops):
            x = self.block(x)
        return self.head(x)


def parts(loops, width, vocab_size, residual_scale):
    return Parts(loops, width, vocab_size, residual_scale)


def unscaled_parts(loops, width, vocab_size, residual_scale):
    return Parts(loops, width, vocab_size, 1.0)
