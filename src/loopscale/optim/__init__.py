"""Ordinary torch parameter groups and optimisers from roles and a rule."""

from loopscale.lazy import on_first_use

__getattr__, __dir__, __all__ = on_first_use(__name__, __file__)
