"""Token streams: embedded text, synthetic tasks, a user's own data; batch = f(seed, step)."""

from loopscale.lazy import on_first_use

__getattr__, __dir__, __all__ = on_first_use(__name__, __file__)
