"""Building blocks: the scaled residual, the loop, and the looped Transformer of the house."""

from loopscale.lazy import on_first_use

__getattr__, __dir__, __all__ = on_first_use(__name__, __file__)
