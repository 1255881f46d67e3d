"""A plain PyTorch loop: our groups, our schedule, the metrics as JSON lines, shown in TensorBoard afterwards.

python examples/ecosystem/plain_loop.py [RUN]
"""

import json
import sys
from pathlib import Path

import torch
from torch.nn import functional as F

import loopscale as ls


def main(run: Path, steps: int = 30) -> float:
    """Train for a moment; give the last loss."""
    run.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = ls.LoopedTransformer(ls.ModelConfig(vocab_size=16, width=32, layers=2, loops=4, strength=0.5))
    optimizer = ls.build_optimizer(model, "adamw", lr=2**-6)
    rate = ls.schedule("cosine", steps, warmup=3)
    (run / "config.toml").write_text("# written by hand: trackers show it\n")
    with (run / "metrics.jsonl").open("w") as metrics:
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * rate(step)
            tokens = torch.arange(24).repeat(8, 1).add(torch.randint(16, (8, 1))) % 16  # counting: what comes next?
            loss = F.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            metrics.write(json.dumps({"step": step + 1, "loss": loss.item(), "rms": model.visit_rms(tokens)}) + "\n")
    return loss.item()


if __name__ == "__main__":
    place = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/plain_loop")
    print(f"loss {main(place):.3f}; to see it: loopscale track {place} --to tensorboard")
