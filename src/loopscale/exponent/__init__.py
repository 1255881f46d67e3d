"""Measure how fast the best eps and the best hidden rate fall with N, and what each rule would lose when carried."""

from loopscale.lazy import on_first_use

__getattr__, __dir__, __all__ = on_first_use(__name__, __file__)
