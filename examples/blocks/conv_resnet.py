"""A ResNet whose two stages loop one block each. GroupNorm, not BatchNorm: running statistics would mix the visits."""

import torch
from torch import Tensor, nn

import loopscale as ls


def block(channels: int) -> ls.ScaledResidual:
    """Norm, convolution, ReLU, convolution, around the skip."""
    branch = nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        nn.GroupNorm(4, channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
    )
    return ls.ScaledResidual(branch, norm=nn.Sequential(nn.GroupNorm(4, channels), nn.ReLU()))


class LoopedResNet(nn.Module):
    """Images [B, 1, 8, 8] -> logits [B, 10]. Each stage is a `Loop` of its own; the convolution between is visited once."""

    def __init__(self, loops: int, rule: str = "looped") -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.wide = ls.Loop(block(16), loops, rule)
        self.down = nn.Conv2d(16, 32, 2, stride=2)
        self.narrow = ls.Loop(block(32), loops, rule)
        self.norm, self.head = nn.GroupNorm(4, 32), nn.Linear(32, 10)

    def forward(self, images: Tensor, loops: int | None = None) -> Tensor:
        """Both stages loop the same number of times."""
        x = self.wide(self.stem(images), loops=loops)
        x = self.narrow(self.down(x), loops=loops)
        return self.head(self.norm(x).mean((2, 3)))

    def roles(self) -> dict[str, ls.Role]:
        """What cannot be told from loops and names: `down` is neither entry nor exit, its matrix is that of a layer."""
        return {"down.weight": ls.Role.HIDDEN}


def make_model(loops: int, rule: str = "looped") -> nn.Module:
    """The same initial weights at every number of loops."""
    torch.manual_seed(0)
    return LoopedResNet(loops, rule)


if __name__ == "__main__":
    from show import show

    show(make_model)
