"""Largest eigenvalue moduli of a linear map known only by its products: Arnoldi, right for complex pairs.

Not SciPy's ARPACK: where the products run out before it converges, as with a large model, it gives no value at all, and a
lower estimate is wanted. Both start from a fixed vector and count products.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Spectrum:
    """Leading eigenvalues, largest modulus first, the products spent, and whether the first has converged."""

    values: tuple[complex, ...]
    products: int
    converged: bool
    singular_value: float | None = None

    @property
    def radius(self) -> float:
        """Spectral radius."""
        return abs(self.values[0]) if self.values else 0.0


def leading_eigenvalues(
    product: Callable[[Tensor], Tensor],
    like: Tensor,
    *,
    most: int = 300,
    tolerance: float = 1e-3,
) -> Spectrum:
    """Run Arnoldi with full re-orthogonalisation in double precision, from a fixed random vector shaped like `like`.

    Stops when the residual of the leading Ritz value is below `tolerance` of it at two checks in a row, when the Krylov
    space is exhausted (then the values are exact), or after `most` products: a count, so that the same map gives the same
    number on a machine however busy it is. Power iteration would be wrong
    for complex pairs, and a residual checked once may catch a value that is not yet the largest.

    >>> turn = torch.tensor([[0.0, -2.0], [2.0, 0.0]])
    >>> round(leading_eigenvalues(lambda v: turn @ v, torch.ones(2)).radius, 6)
    2.0
    """
    generator = torch.Generator().manual_seed(1)
    size = like.numel()
    start = torch.randn(size, generator=generator, dtype=torch.float64)
    basis = [start / start.norm()]
    most = min(most, size)
    hessenberg = np.zeros((most + 1, most))
    good, norm = 0, 0.0
    for step in range(most):
        image = product(basis[-1].to(like).reshape(like.shape)).detach().to("cpu", torch.float64).flatten()
        if not bool(torch.isfinite(image).all()):
            return Spectrum((complex(float("inf")),), step + 1, False)
        norm = max(norm, float(image.norm()))
        stacked = torch.stack(basis)
        for _ in range(2):
            part = stacked @ image
            image = image - part @ stacked
            hessenberg[: step + 1, step] += part.numpy()
        rest = float(image.norm())
        hessenberg[step + 1, step] = rest
        done = step + 1
        exhausted = rest <= 1e-7 * max(norm, 1e-30)
        if exhausted or done == most or done % 8 == 0:
            values, residual = _ritz(hessenberg, done)
            good = good + 1 if residual <= tolerance * abs(values[0]) else 0
            if exhausted or done == most or (good >= 3 and done >= 24):
                return Spectrum(tuple(values[:8]), done, exhausted or good > 0 or done == size)
        basis.append(image / rest)
    return Spectrum((), 0, False)


def _ritz(hessenberg: np.ndarray, done: int) -> tuple[list[complex], float]:
    values, vectors = np.linalg.eig(hessenberg[:done, :done])
    order = np.argsort(-np.abs(values))
    residual = float(abs(hessenberg[done, done - 1] * vectors[-1, order[0]]))
    return [complex(values[i]) for i in order], residual
