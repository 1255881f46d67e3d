"""Post-LN, `norm(alpha x + f(x))`, with the rule `deeploop`: alpha follows N at every call, beta is applied once.

The norms have no gain and the branches no bias. Both would act at every visit at their full rate, beyond the reach of alpha
and beta, and their effect would grow with N: with them the check below fails (`make_biased`).
"""

import torch
from looped_vit import Attention, mlp
from torch import Tensor, nn

import loopscale as ls


class LoopedPostNorm(nn.Module):
    """Images [B, 1, 8, 8] -> logits [B, 10]; the stream ends normed, so there is no final norm."""

    def __init__(self, loops: int, rule: str = "deeploop", width: int = 32, plain: bool = True) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, width, 2, stride=2)
        self.position = nn.Parameter(0.5 * torch.randn(16, width))
        branches = (Attention(width, heads=4), mlp(width))
        stack = nn.Sequential(
            *(
                ls.PostNormResidual(without_bias(b) if plain else b, nn.LayerNorm(width, elementwise_affine=not plain))
                for b in branches
            )
        )
        self.core = ls.Loop(stack, loops, rule, layers=1)
        ls.apply_branch_gain(self.core)
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor, loops: int | None = None) -> Tensor:
        """`loops` is a run-time knob; the initial gain is that of the loops given at construction."""
        x = self.patch(images).flatten(2).transpose(1, 2) + self.position
        return self.head(self.core(x, loops=loops).mean(1))


def without_bias(branch: nn.Module) -> nn.Module:
    """The same branch, its linear layers without bias."""
    for part in branch.modules():
        if isinstance(part, nn.Linear):
            part.bias = None
    return branch


def make_model(loops: int, rule: str = "deeploop", plain: bool = True) -> nn.Module:
    """The same initial weights at every number of loops, before the gain."""
    torch.manual_seed(0)
    return LoopedPostNorm(loops, rule, plain=plain)


def make_biased(loops: int, rule: str = "deeploop") -> nn.Module:
    """With gains in the norms and biases in the branches."""
    return make_model(loops, rule, plain=False)


if __name__ == "__main__":
    from show import show

    show(make_model, "deeploop")
