"""What every example prints: is it flat over loops, and does one learning rate train it at every number of loops?"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from digits import digits
from torch import Tensor, nn

import loopscale as ls


def classify(output: Tensor | tuple[Tensor, Tensor], labels: Tensor) -> Tensor:
    """Cross-entropy; a model that returns (logits, extra loss) adds the extra."""
    logits, extra = output if isinstance(output, tuple) else (output, 0.0)
    return F.cross_entropy(logits, labels) + extra


def train(model: nn.Module, lr: float, steps: int, optimizer: str = "adamw") -> tuple[float, float]:
    """Train on batches of 64; give cross-entropy in nats and accuracy on the images held out."""
    images, labels, held_images, held_labels = digits()
    generator = torch.Generator().manual_seed(0)
    chosen = ls.build_optimizer(model, optimizer, lr=lr)
    rate = ls.schedule("linear", steps, warmup=steps // 10)
    for step in range(steps):
        for group in chosen.param_groups:
            group["lr"] = group["initial_lr"] * rate(step)
        picked = torch.randint(len(labels), (64,), generator=generator)
        loss = classify(model(images[picked]), labels[picked])
        chosen.zero_grad()
        loss.backward()
        chosen.step()
    with torch.no_grad():
        output = model(held_images)
    logits = output[0] if isinstance(output, tuple) else output
    accuracy = (logits.argmax(-1) == held_labels).float().mean()
    return float(F.cross_entropy(logits, held_labels)), float(accuracy)


def show(make_model: Callable[[int], nn.Module], rule: str = "looped", lr: float = 2**-7, steps: int = 150) -> None:
    """Print the check over N, then training at N = 1, 2, 4, 8 with the same rate."""
    images, labels, *_ = digits()
    check = ls.check_parameterization(
        make_model, rule, batch=images[:64], loss=lambda output: classify(output, labels[:64])
    )
    print(check.table(), "\n")
    for loops in (1, 2, 4, 8):
        loss, accuracy = train(make_model(loops), lr, steps)
        print(f"trained at {loops} loops: {loss:.3f} nats, {accuracy:.1%} right on images held out")
