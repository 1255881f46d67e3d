"""Tune once on a small proxy, carry the values to the target, verify in between."""

from loopscale.lazy import on_first_use

__getattr__, __dir__, __all__ = on_first_use(__name__, __file__)
