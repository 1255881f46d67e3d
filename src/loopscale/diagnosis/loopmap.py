"""The loop map F: stream before one visit -> stream before the next, cut out of the running model by replay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from loopscale.diagnosis.setting import Setting
from loopscale.probe.tape import Tape

_HEAVY = frozenset(
    "linear matmul __matmul__ mm bmm addmm einsum scaled_dot_product_attention conv1d conv2d conv3d".split()
)


class LoopMap:
    """F and its Jacobian-vector products at a point of the trajectory; the model runs from its input to node `end`.

    Raises whatever the model raises when forward-mode differentiation does not know one of its operations; then
    `jvp` falls back to a central difference, right to about three digits.
    """

    def __init__(self, setting: Setting, like: Tape, start: int, end: int) -> None:
        self.setting, self.like = setting, like
        self.start, self.end, self.hollow = start, end, frozenset[int]()
        tape, _ = setting.run(keep=frozenset({start, end}), stop=end, like=like)
        for index, root in enumerate(tape._roots):
            tape.values.setdefault(index, root)
        self.point, self.image = tape.values[start], tape.values[end]
        self.exact = True
        self._skip_what_went_before()

    def _skip_what_went_before(self) -> None:
        """Leave out products whose results this visit does not read, where its image stays the same to the bit."""
        nodes = self.like.nodes
        read, waiting = {self.end, self.start}, [self.end]
        while waiting:
            for parent in nodes[waiting.pop()].parents:
                if parent not in read:
                    read.add(parent)
                    waiting.append(parent)
        self.hollow = frozenset(
            i for i in range(self.start) if nodes[i].op in _HEAVY and nodes[i].data and i not in read
        )
        try:
            same = torch.equal(self(self.point), self.image)
        except Exception:  # what the data decide goes another way on zeros
            same = False
        if not same:
            self.hollow = frozenset()

    def __call__(self, stream: Tensor) -> Tensor:
        """Run F at another point; raises `LookupError` where the model takes another way there."""
        return self._from(lambda _: stream.clone())

    def _from(self, stand_in: Callable[[Tensor], Tensor], **more: Any) -> Tensor:
        where = {"keep": frozenset({self.end}), "stop": self.end, "hollow": self.hollow, "like": self.like}
        return self.setting.run(replace={self.start: stand_in}, **where, **more)[0].values[self.end]

    def jvp(self, direction: Tensor) -> Tensor:
        """Return the derivative of F at `point` in a direction."""
        if self.exact:
            try:
                return self._forward(direction)
            except (RuntimeError, NotImplementedError):
                self.exact = False
        step = 1e-3 * float(self.point.norm()) / max(float(direction.norm()), 1e-30)
        return (self(self.point + step * direction) - self(self.point - step * direction)) / (2 * step)

    def _forward(self, direction: Tensor) -> Tensor:
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(self.point.clone(), direction)  # type: ignore[no-untyped-call]
            image = self._from(lambda _: dual, plain=True)
            tangent = forward_ad.unpack_dual(image).tangent  # type: ignore[no-untyped-call]
            if tangent is None:
                raise RuntimeError("the model cuts the derivative: inference mode or a custom function")
            found: Tensor = tangent.detach().clone()
            return found

    def vjp(self, direction: Tensor) -> Tensor:
        """Return the transposed derivative of F at `point` in a direction; raises what autograd raises."""
        leaf = self.point.clone().requires_grad_(True)
        image = self._from(lambda _: leaf * 1.0, graph=True)
        (found,) = torch.autograd.grad(image, leaf, direction, allow_unused=True)
        if found is None:
            raise RuntimeError("no gradient comes back through the visit")
        return found.detach()
