"""A mixture of experts in a loop: the branch returns (update, running balance loss), which the loop carries along.

Routing lets visits of one expert see different tokens, which can lower their alignment: this prints the measured kappa
(1 independent .. N aligned) of the experts and of a dense block.
"""

import torch
import torch.nn.functional as F
from looped_vit import Attention, mlp
from torch import Tensor, nn

import loopscale as ls


class Experts(nn.Module):
    """Two of four MLPs for each token. (x [B, T, D], balance) -> (update [B, T, D], balance + this visit's)."""

    def __init__(self, width: int, experts: int = 4, used: int = 2) -> None:
        super().__init__()
        self.router, self.used = nn.Linear(width, experts, bias=False), used
        self.experts = nn.ModuleList(mlp(width) for _ in range(experts))

    def forward(self, x: Tensor, balance: Tensor) -> tuple[Tensor, Tensor]:
        """Every expert is computed and most are masked: plain at this size; a real one gathers tokens."""
        shares = F.softmax(self.router(x), -1)
        kept = torch.zeros_like(shares).scatter(-1, shares.topk(self.used, -1).indices, 1.0)
        weights = shares * kept / (shares * kept).sum(-1, keepdim=True)
        update = sum(weights[..., i, None] * expert(x) for i, expert in enumerate(self.experts))
        uneven = len(self.experts) * (shares.mean((0, 1)) * kept.mean((0, 1))).sum() / self.used
        return update, balance + uneven


class Attend(Attention):
    """Attention that passes the balance on: every branch of a stack is given the same extra arguments."""

    def forward(self, x: Tensor, balance: Tensor) -> Tensor:
        """The balance is left alone."""
        return super().forward(x)


class LoopedMoE(nn.Module):
    """Images [B, 1, 8, 8] -> (logits [B, 10], balance loss); eval() gives logits alone."""

    def __init__(self, loops: int, rule: str = "looped", width: int = 32, sparse: bool = True) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, width, 2, stride=2)
        self.position = nn.Parameter(0.5 * torch.randn(16, width))
        feed = Experts(width) if sparse else Dense(width)
        stack = nn.ModuleList(ls.ScaledResidual(part, nn.LayerNorm(width)) for part in (Attend(width, heads=4), feed))
        self.core = ls.Loop(stack, loops, rule, layers=1)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, images: Tensor, loops: int | None = None) -> tuple[Tensor, Tensor]:
        """The balance is a mean over visits, or it would grow with N."""
        x = self.patch(images).flatten(2).transpose(1, 2) + self.position
        x, balance = self.core(x, torch.zeros(()), loops=loops)
        return self.head(self.norm(x).mean(1)), 0.01 * balance / (loops or self.core.loops)


class Dense(nn.Module):
    """The control: one MLP in place of the experts."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = mlp(width)

    def forward(self, x: Tensor, balance: Tensor) -> tuple[Tensor, Tensor]:
        """No balance to add."""
        return self.mlp(x), balance


def make_model(loops: int, rule: str = "looped", sparse: bool = True) -> nn.Module:
    """The same initial weights at every number of loops."""
    torch.manual_seed(0)
    return LoopedMoE(loops, rule, sparse=sparse)


def alignment(sparse: bool, loops: int = 8) -> dict[str, float]:
    """kappa of the MLP matrices' gradients over the visits, by parameter."""
    from digits import digits

    found = ls.diagnose(make_model(loops, sparse=sparse), digits()[0][:32], products=0)
    return {name: value for name, value in found.details["kappa_by_parameter"].items() if "branch" in name}


if __name__ == "__main__":
    from show import show

    show(make_model)
    for sparse in (True, False):
        print("\nkappa of 8,", "experts" if sparse else "dense")
        for name, value in alignment(sparse).items():
            print(f"  {name:50s} {value:.2f}")
