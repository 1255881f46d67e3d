"""Accelerate around a looped model: `accelerate launch examples/ecosystem/accelerate_loop.py`, or plain python.

Groups go through `prepare` like any optimizer's; loops are chosen per batch, on every rank alike.
"""

import torch
from accelerate import Accelerator
from torch.nn import functional as F
from torch.utils.data import DataLoader

import loopscale as ls


def main(steps: int = 30, cpu: bool = False) -> float:
    """Train for a moment; give the last loss."""
    accelerator = Accelerator(cpu=cpu)
    torch.manual_seed(0)
    model = ls.LoopedTransformer(ls.ModelConfig(vocab_size=16, width=32, layers=2, loops=4, strength=0.5))
    optimizer = ls.build_optimizer(model, "adamw", lr=2**-6)
    rows = [(torch.arange(24) + start % 16) % 16 for start in range(8 * steps)]
    model, optimizer, batches = accelerator.prepare(model, optimizer, DataLoader(rows, batch_size=8, shuffle=True))
    sampler = ls.ModelConfig(sampler={"kind": "uniform", "least": 2, "most": 6}).sampler
    for step, tokens in enumerate(batches):
        logits = model(tokens, loops=sampler.draw(step, steps, seed=0, loops=4))
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
    return accelerator.gather(loss.detach()).mean().item()


if __name__ == "__main__":
    print(f"loss {main():.3f}")
